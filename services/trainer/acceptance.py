"""What a job must be before it is accepted. Every fault is told at once, with its field and what would be right."""

from __future__ import annotations

import hashlib
import re
import secrets
import time
import uuid
from collections.abc import Callable
from typing import Final

from google.protobuf.field_mask_pb2 import FieldMask

from octavo.errors import InvalidArgument, Unimplemented
from octavo.v1 import trainer_pb2 as pb
from octavo.v1.errors_pb2 import Reason

MAX_DISPLAY_NAME: Final = 200
MAX_LABELS: Final = 64
MAX_LABEL: Final = 63
MAX_PRIORITY: Final = 100
MAX_ALIASES: Final = 16
MAX_PROMPT: Final = 10_000
MAX_LEARNING_RATE_SCALE: Final = 100.0
_CHANGEABLE: Final = ("display_name", "labels", "priority")
# A month: longer work should be several jobs.
MAX_TIME_BUDGET_S: Final = 31 * 86_400

ID: Final = r"[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?"
_PATTERNS: Final = {
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
    elif kind != "train":
        raise Unimplemented(
            Reason.REASON_SPEC_NOT_SUPPORTED,
            f"jobs of the kind {kind!r} cannot be run yet; `train` can",
            kind=kind,
        )
    else:
        wrong |= {f"job.train.{field}": fault for field, fault in _train_faults(job.train).items()}
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
    """What an update does to a job; InvalidArgument with all faults."""
    asked = request.job
    set_fields = [field for field in _CHANGEABLE if getattr(asked, field)]
    paths = list(request.update_mask.paths) or set_fields
    wrong = _job_faults(asked)
    for index, path in enumerate(paths):
        if path not in _CHANGEABLE:
            wrong[f"update_mask.paths[{index}]"] = f"{path[:90]!r} cannot be changed; {', '.join(_CHANGEABLE)} can"
    if request.HasField("learning_rate_scale") and not 0 < request.learning_rate_scale <= MAX_LEARNING_RATE_SCALE:
        wrong["learning_rate_scale"] = (
            f"{request.learning_rate_scale:g} is not above 0 and at most {MAX_LEARNING_RATE_SCALE:g}; 0.5 halves them"
        )
    if wrong:
        raise InvalidArgument.fields(wrong)

    def change(job: pb.Job) -> None:
        FieldMask(paths=paths).MergeMessage(asked, job, replace_message_field=True, replace_repeated_field=True)

    return change


def accepted_job(request: pb.CreateJobRequest) -> pb.Job:
    """The job to be, with only what its creator decides."""
    asked = request.job
    job = pb.Job(display_name=asked.display_name, labels=asked.labels, priority=asked.priority, train=asked.train)
    job.name = f"jobs/{request.job_id or new_id()}"
    return job


def request_digest(request: pb.CreateJobRequest) -> bytes:
    """The same for the same request, whatever its output fields say."""
    decided = pb.CreateJobRequest(
        job=pb.Job(
            display_name=request.job.display_name,
            labels=request.job.labels,
            priority=request.job.priority,
            train=request.job.train,
        ),
        job_id=request.job_id,
    )
    return hashlib.sha256(decided.SerializeToString(deterministic=True)).digest()


def new_id() -> str:
    """A job id that sorts by time of creation, to the second; unique by 40 random bits."""
    return f"j-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(5)}"


def _job_faults(job: pb.Job) -> dict[str, str]:
    wrong = {}
    if len(job.display_name) > MAX_DISPLAY_NAME:
        wrong["job.display_name"] = f"has {len(job.display_name)} characters; at most {MAX_DISPLAY_NAME}"
    if abs(job.priority) > MAX_PRIORITY:
        wrong["job.priority"] = f"{job.priority} is out of range; -{MAX_PRIORITY} to {MAX_PRIORITY}"
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


def _train_faults(spec: pb.TrainSpec) -> dict[str, str]:
    wrong = {}
    for field, (pattern, example) in _PATTERNS.items():
        value = getattr(spec, field)
        if not value and field != "deployment":
            wrong[field] = f"is missing; name one, such as {example}"
        elif value and not re.fullmatch(pattern, value):
            wrong[field] = f"{value[:90]!r} is not a name such as {example}"
    if len(spec.aliases) > MAX_ALIASES:
        wrong["aliases"] = f"has {len(spec.aliases)} aliases; at most {MAX_ALIASES}"
    for index, alias in enumerate(spec.aliases):
        if not re.fullmatch(ID, alias) or alias == "latest" or re.fullmatch(r"v[0-9]+", alias):
            wrong[f"aliases[{index}]"] = (
                f"{alias[:70]!r} must be 1 to 63 of a-z 0-9 -, begin with a letter, and be neither `latest` nor `v1`"
            )
    if len(spec.sample.prompt) > MAX_PROMPT:
        wrong["sample.prompt"] = f"has {len(spec.sample.prompt)} characters; at most {MAX_PROMPT}"
    if spec.HasField("time_budget"):
        budget_s = spec.time_budget.ToNanoseconds() / 1e9
        if not 1 <= budget_s <= MAX_TIME_BUDGET_S:
            wrong["time_budget"] = f"{budget_s:g} s is out of range; 1 s to 31 days"
    if spec.HasField("steps") and spec.steps < 1:
        wrong["steps"] = f"{spec.steps} steps train nothing; at least 1, or leave it out to have it derived"
    if spec.checkpoints.HasField("keep_latest") and spec.checkpoints.keep_latest < 2:
        wrong["checkpoints.keep_latest"] = "must be at least 2: the older is the fallback when the newest is damaged"
    return wrong


def _refuse_unsupported(spec: pb.TrainSpec) -> None:
    unsupported = {
        "base_version": bool(spec.base_version),
        "lora": spec.HasField("lora"),
        "early_stopping": spec.HasField("early_stopping"),
        "export_precisions": bool(set(spec.export_precisions) - {"fp32"}),
    }
    for field, is_set in unsupported.items():
        if is_set:
            raise Unimplemented(
                Reason.REASON_SPEC_NOT_SUPPORTED,
                f"train.{field} cannot be honoured yet; leave it out to train from scratch to the last step, in fp32",
                field=field,
            )
