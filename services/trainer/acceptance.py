"""What a job must be before it is accepted. Every fault is told at once, with its field and what would be right."""

from __future__ import annotations

import hashlib
import re
import secrets
import time
import uuid
from collections.abc import Callable
from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask

from octavo.errors import InvalidArgument, Unimplemented
from octavo.formats.bundle import EXPORTABLE
from octavo.v1 import trainer_pb2 as pb
from octavo.v1.errors_pb2 import Reason
from services.trainer import live_settings
from services.trainer.checks.names import ID, alias_fault, name_fault, precision_fault
from services.trainer.checks.table import NAMED, NUMBERED, faults

MAX_DISPLAY_NAME: Final = 200
MAX_LABELS: Final = 64
MAX_LABEL: Final = 63
MAX_PRIORITY: Final = 100
_CHANGEABLE: Final = ("display_name", "labels", "priority", "timeout", "max_restarts", "live")
MAX_RESTARTS: Final = 1000
# A month: longer work should be several jobs.
MAX_TIME_S: Final = 31 * 86_400
# The kinds of jobs that can be run.
KINDS: Final = ("train", "export", "replay")
MAX_ALLOWED_INCREASE: Final = 10.0


def job_faults(job: pb.Job, job_id: str, request_id: str) -> dict[str, str]:
    """What is wrong with a job by field, before anything is looked up; Unimplemented for what cannot run yet."""
    wrong = _job_faults(job) | _id_faults(job_id, request_id)
    kind = job.WhichOneof("spec")
    if kind is None:
        wrong["job.train"] = "is missing; set the one spec that says what to do"
    elif kind not in KINDS:
        raise Unimplemented(
            Reason.REASON_SPEC_NOT_SUPPORTED,
            f"jobs of the kind {kind!r} cannot be run yet; {', '.join(f'`{one}`' for one in KINDS)} can",
            kind=kind,
        )
    else:
        wrong |= {f"job.{kind}.{field}": fault for field, fault in _spec_faults(job).items()}
    if kind == "train" and not wrong:
        _refuse_unsupported(job.train)
    return wrong


def check_ids(job_id: str, request_id: str) -> None:
    """InvalidArgument unless both are empty or well-formed."""
    wrong = _id_faults(job_id, request_id)
    if wrong:
        raise InvalidArgument.fields(wrong)


def job_change(request: pb.UpdateJobRequest) -> Callable[[pb.Job], None]:
    """What an update does to a job; InvalidArgument with all faults, those of live settings once they are merged."""
    asked = request.job
    paths = list(request.update_mask.paths) or _set_paths(asked)
    wrong = _job_faults(asked)
    for index, path in enumerate(paths):
        is_field = FieldMask(paths=[path]).IsValidForDescriptor(pb.Job.DESCRIPTOR)
        if path.partition(".")[0] not in _CHANGEABLE or not is_field:
            wrong[f"update_mask.paths[{index}]"] = f"{path[:90]!r} cannot be changed; {', '.join(_CHANGEABLE)} can"
    if wrong:
        raise InvalidArgument.fields(wrong)

    def change(job: pb.Job) -> None:
        FieldMask(paths=paths).MergeMessage(asked, job, replace_message_field=True, replace_repeated_field=True)
        faults = live_settings.faults(job.live)
        if faults:
            raise InvalidArgument.fields({f"job.live.{field}": fault for field, fault in faults.items()})

    return change


def _set_paths(asked: pb.Job) -> list[str]:
    """The paths of what is set and can be changed; live settings one by one."""
    fields = [field.name for field, _ in asked.ListFields() if field.name in _CHANGEABLE and field.name != "live"]
    return fields + [f"live.{field.name}" for field, _ in asked.live.ListFields()]


def accepted_job(request: pb.CreateJobRequest) -> pb.Job:
    """The job to be, with only what its creator decides."""
    job = _decided(request.job)
    job.name = f"jobs/{request.job_id or new_id()}"
    return job


def request_digest(request: pb.CreateJobRequest) -> bytes:
    """The same for the same request, whatever its output fields say."""
    decided = pb.CreateJobRequest(job=_decided(request.job), job_id=request.job_id)
    return hashlib.sha256(decided.SerializeToString(deterministic=True)).digest()


def new_id() -> str:
    """A job id that sorts by time of creation, to the second; unique by 40 random bits."""
    return f"j-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(5)}"


def _decided(asked: pb.Job) -> pb.Job:
    """What the creator of a job decides of it."""
    job = pb.Job(display_name=asked.display_name, labels=asked.labels, priority=asked.priority)
    if asked.HasField("timeout"):
        job.timeout.CopyFrom(asked.timeout)
    if asked.HasField("max_restarts"):
        job.max_restarts = asked.max_restarts
    if asked.HasField("export"):
        job.export.CopyFrom(asked.export)
    elif asked.HasField("replay"):
        job.replay.CopyFrom(asked.replay)
    else:
        job.train.CopyFrom(asked.train)
    return job


def _job_faults(job: pb.Job) -> dict[str, str]:
    wrong = {}
    if len(job.display_name) > MAX_DISPLAY_NAME:
        wrong["job.display_name"] = f"has {len(job.display_name)} characters; at most {MAX_DISPLAY_NAME}"
    if abs(job.priority) > MAX_PRIORITY:
        wrong["job.priority"] = f"{job.priority} is out of range; -{MAX_PRIORITY} to {MAX_PRIORITY}"
    if job.HasField("timeout") and (fault := _time_fault(job.timeout)):
        wrong["job.timeout"] = fault
    if job.HasField("max_restarts") and not 0 <= job.max_restarts <= MAX_RESTARTS:
        wrong["job.max_restarts"] = f"{job.max_restarts} is out of range; 0 to {MAX_RESTARTS}"
    if len(job.labels) > MAX_LABELS:
        wrong["job.labels"] = f"has {len(job.labels)} labels; at most {MAX_LABELS}"
    for key, value in job.labels.items():
        if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]{0,62}", key) or len(value) > MAX_LABEL:
            shown = key[:MAX_LABEL]
            wrong[f"job.labels[{shown!r}]"] = (
                f"keys are 1 to {MAX_LABEL} of a-z 0-9 _ . -, values at most {MAX_LABEL} characters"
            )
    return wrong


def _id_faults(job_id: str, request_id: str) -> dict[str, str]:
    wrong = {}
    if job_id and not re.fullmatch(ID, job_id):
        wrong["job_id"] = f"{job_id[:70]!r} must be 1 to 63 of a-z 0-9 -, begin with a letter and not end with -"
    if request_id:
        try:
            uuid.UUID(request_id)
        except ValueError:
            wrong["request_id"] = f"{request_id[:70]!r} is not a UUID"
    return wrong


def _spec_faults(job: pb.Job) -> dict[str, str]:
    if job.HasField("export"):
        return _export_faults(job.export)
    return _replay_faults(job.replay) if job.HasField("replay") else _train_faults(job.train)


def _export_faults(spec: pb.ExportSpec) -> dict[str, str]:
    findings = {
        "version": name_fault("version", spec.version, is_required=True),
        "dataset": name_fault("dataset", spec.dataset, is_required=False),
        "deployment": name_fault("deployment", spec.deployment, is_required=False),
        "aliases": alias_fault(spec.aliases),
        "precisions": precision_fault("precisions", spec.precisions, EXPORTABLE),
    }
    wrong = {finding.field or field: f"{finding.why}; {finding.fix}" for field, finding in findings.items() if finding}
    if not spec.precisions:
        wrong["precisions"] = f"is missing; name one or more of {', '.join(EXPORTABLE)}"
    if spec.HasField("max_perplexity_increase") and not 0 <= spec.max_perplexity_increase <= MAX_ALLOWED_INCREASE:
        wrong["max_perplexity_increase"] = (
            f"{spec.max_perplexity_increase:g} is not from 0 to {MAX_ALLOWED_INCREASE:g}; 0.02 allows 2 %"
        )
    if spec.HasField("threads") and not 1 <= spec.threads <= 1024:
        wrong["threads"] = f"{spec.threads} is not from 1 to 1024; leave it out to use those of the machine"
    return wrong


def _replay_faults(spec: pb.ReplaySpec) -> dict[str, str]:
    finding = name_fault("job", spec.job, is_required=True)
    wrong = {"job": f"{finding.why}; {finding.fix}"} if finding else {}
    for field, meaning in (("from_step", "the beginning"), ("to_step", "the newest step")):
        if getattr(spec, field) < 0:
            wrong[field] = f"{getattr(spec, field)} is negative; 0 means {meaning}"
    return wrong


def _train_faults(spec: pb.TrainSpec) -> dict[str, str]:
    wrong, _ = faults((*NAMED, *NUMBERED), spec)
    return wrong


def _time_fault(duration: Duration) -> str | None:
    seconds = duration.ToNanoseconds() / 1e9
    return None if 1 <= seconds <= MAX_TIME_S else f"{seconds:g} s is out of range; 1 s to 31 days"


def _refuse_unsupported(spec: pb.TrainSpec) -> None:
    unsupported = {
        "base_version": bool(spec.base_version),
        "lora": spec.HasField("lora"),
    }
    for field, is_set in unsupported.items():
        if is_set:
            raise Unimplemented(
                Reason.REASON_SPEC_NOT_SUPPORTED,
                f"train.{field} cannot be honoured yet; leave it out to train from scratch to the last step",
                field=field,
            )
