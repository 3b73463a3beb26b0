"""What a job must be before it is accepted. Every fault is told at once, with its field and what would be right."""

from __future__ import annotations

import hashlib
import re
import secrets
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask

from octavo.errors import InvalidArgument, Unimplemented
from octavo.formats.bundle import EXPORTABLE, PRECISIONS
from octavo.v1 import trainer_pb2 as pb
from octavo.v1.errors_pb2 import Reason
from services.trainer import live_settings
from services.trainer.spec_faults import early_stopping_faults, sample_faults

MAX_DISPLAY_NAME: Final = 200
MAX_LABELS: Final = 64
MAX_LABEL: Final = 63
MAX_PRIORITY: Final = 100
MAX_ALIASES: Final = 16
_CHANGEABLE: Final = ("display_name", "labels", "priority", "timeout", "max_restarts", "live")
MAX_RESTARTS: Final = 1000
# A month: longer work should be several jobs.
MAX_TIME_S: Final = 31 * 86_400

ID: Final = r"[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?"
# The kinds of jobs that can be run.
KINDS: Final = ("train", "export")
MAX_ALLOWED_INCREASE: Final = 10.0
_PATTERNS: Final = {
    "version": (
        rf"models/{ID}(/versions/[1-9][0-9]{{0,17}}|@{ID})?",
        "`models/poet`, `models/poet/versions/3` or `models/poet@champion`",
    ),
    "dataset": (rf"datasets/{ID}(/versions/[1-9][0-9]{{0,17}})?", "`datasets/tiny` or `datasets/tiny/versions/2`"),
    "model": (f"models/{ID}", "`models/poet`"),
    "deployment": (f"deployments/{ID}", "`deployments/poet`"),
}


def check_job(job: pb.Job, job_id: str, request_id: str) -> None:
    """Refuse what cannot be a job: InvalidArgument with all faults, Unimplemented for kinds that do not run yet."""
    wrong = _job_faults(job) | _id_faults(job_id, request_id)
    kind = job.WhichOneof("spec")
    if kind is None:
        wrong["job.train"] = "is missing; set the one spec that says what to do"
    elif kind not in KINDS:
        raise Unimplemented(
            Reason.REASON_SPEC_NOT_SUPPORTED,
            f"jobs of the kind {kind!r} cannot be run yet; {' and '.join(f'`{one}`' for one in KINDS)} can",
            kind=kind,
        )
    else:
        faults = _export_faults(job.export) if kind == "export" else _train_faults(job.train)
        wrong |= {f"job.{kind}.{field}": fault for field, fault in faults.items()}
    if wrong:
        raise InvalidArgument.fields(wrong)
    if kind == "train":
        _refuse_unsupported(job.train)


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


def _export_faults(spec: pb.ExportSpec) -> dict[str, str]:
    wrong = _name_faults(spec, "version", "dataset", "deployment", required=("version",)) | _alias_faults(spec.aliases)
    if not spec.precisions:
        wrong["precisions"] = f"is missing; name one or more of {', '.join(EXPORTABLE)}"
    wrong |= _precision_faults("precisions", spec.precisions, EXPORTABLE)
    if spec.HasField("max_perplexity_increase") and not 0 <= spec.max_perplexity_increase <= MAX_ALLOWED_INCREASE:
        wrong["max_perplexity_increase"] = (
            f"{spec.max_perplexity_increase:g} is not from 0 to {MAX_ALLOWED_INCREASE:g}; 0.02 allows 2 %"
        )
    if spec.HasField("threads") and not 1 <= spec.threads <= 1024:
        wrong["threads"] = f"{spec.threads} is not from 1 to 1024; leave it out to use those of the machine"
    return wrong


def _train_faults(spec: pb.TrainSpec) -> dict[str, str]:
    wrong = _name_faults(spec, "dataset", "model", "deployment", required=("dataset", "model"))
    wrong |= _alias_faults(spec.aliases)
    wrong |= _precision_faults("export_precisions", spec.export_precisions, PRECISIONS)
    wrong |= {f"sample.{field}": fault for field, fault in sample_faults(spec.sample).items()}
    if spec.HasField("early_stopping"):
        stopping = early_stopping_faults(spec.early_stopping)
        wrong |= {f"early_stopping.{field}": fault for field, fault in stopping.items()}
    if spec.HasField("time_budget") and (fault := _time_fault(spec.time_budget)):
        wrong["time_budget"] = fault
    if spec.HasField("steps") and spec.steps < 1:
        wrong["steps"] = f"{spec.steps} steps train nothing; at least 1, or leave it out to have it derived"
    if spec.checkpoints.HasField("keep_latest") and spec.checkpoints.keep_latest < 2:
        wrong["checkpoints.keep_latest"] = "must be at least 2: the older is the fallback when the newest is damaged"
    return wrong


def _time_fault(duration: Duration) -> str | None:
    seconds = duration.ToNanoseconds() / 1e9
    return None if 1 <= seconds <= MAX_TIME_S else f"{seconds:g} s is out of range; 1 s to 31 days"


def _name_faults(spec: pb.TrainSpec | pb.ExportSpec, *fields: str, required: Sequence[str]) -> dict[str, str]:
    wrong = {}
    for field in fields:
        pattern, example = _PATTERNS[field]
        value = getattr(spec, field)
        if not value and field in required:
            wrong[field] = f"is missing; name one, such as {example}"
        elif value and not re.fullmatch(pattern, value):
            wrong[field] = f"{value[:90]!r} is not a name such as {example}"
    return wrong


def _alias_faults(aliases: Sequence[str]) -> dict[str, str]:
    wrong = {}
    if len(aliases) > MAX_ALIASES:
        wrong["aliases"] = f"has {len(aliases)} aliases; at most {MAX_ALIASES}"
    for index, alias in enumerate(aliases):
        if not re.fullmatch(ID, alias) or alias == "latest" or re.fullmatch(r"v[0-9]+", alias):
            wrong[f"aliases[{index}]"] = (
                f"{alias[:70]!r} must be 1 to 63 of a-z 0-9 -, begin with a letter, and be neither `latest` nor `v1`"
            )
    return wrong


def _precision_faults(field: str, words: Sequence[str], known: Sequence[str]) -> dict[str, str]:
    wrong = {}
    for index, word in enumerate(words):
        if word not in known:
            wrong[f"{field}[{index}]"] = f"{word[:40]!r} is none of {', '.join(known)}"
        elif word in words[:index]:
            wrong[f"{field}[{index}]"] = f"{word} is named twice"
    return wrong


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
