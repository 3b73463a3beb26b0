"""A job that goes on from a checkpoint of another: the parent's resolved spec with a few fields changed."""

from __future__ import annotations

import hashlib
import os
from typing import Final

from google.protobuf.field_mask_pb2 import FieldMask

from octavo.errors import InvalidArgument, NotFound
from octavo.formats.checkpoint import CheckpointFolder
from octavo.v1 import trainer_pb2 as pb
from octavo.v1.errors_pb2 import Reason
from services.trainer import live_settings
from services.trainer.acceptance import new_id
from services.trainer.events import EventReader
from services.trainer.history import applied_commands
from services.trainer.job_directory import JobDirectory
from services.trainer.recovery import Recoveries
from services.trainer.supervision import require_training

# What the parent's weights, optimizer state and data order are made of.
_FIXED: Final = (
    "architecture",
    "data",
    "dataset",
    "family",
    "size",
    "tokenizer",
    "validation_fraction",
    "base_version",
    "lora",
)


def forked_job(parent: pb.Job, request: pb.ForkJobRequest) -> tuple[pb.Job, bytes]:
    """The job to be, without its step, and the digest of the request. FailedPrecondition for jobs without steps."""
    require_training(parent, "only a train job has checkpoints to go on from")
    job = pb.Job(
        name=f"jobs/{request.job_id or new_id()}",
        display_name=parent.display_name,
        labels=parent.labels,
        priority=parent.priority,
        train=forked_spec(parent, request),
        parent_job=parent.name,
    )
    decided = pb.ForkJobRequest()
    decided.CopyFrom(request)
    decided.ClearField("request_id")
    return job, hashlib.sha256(decided.SerializeToString(deterministic=True)).digest()


def inherited_settings(parent: JobDirectory, step: int, request: pb.ForkJobRequest) -> pb.LiveSettings:
    """The parent's live settings and lowered rates in force after `step`, less what the fork changes in its spec."""
    events = EventReader(parent.path).read_all()
    applied = applied_commands(events).values()
    past = [(one.step, one.command.sequence, one.command.live) for one in applied if one.command.HasField("live")]
    before = sorted((one for one in past if one[0] <= step), key=lambda one: one[:2])
    live = pb.LiveSettings()
    live.CopyFrom(before[-1][2] if before else parent.read_job().live)
    recoveries = Recoveries(pb.TrainSpec(), [event.recovery for event in events if event.HasField("recovery")])
    factor = recoveries.learning_rate_factor(step + 1)
    if factor != 1.0:
        live.learning_rate_scale = factor * (live.learning_rate_scale if live.HasField("learning_rate_scale") else 1.0)
    return live_settings.inherited(live, request.update_mask.paths)


def check_steps(job: pb.Job) -> None:
    """InvalidArgument when the fork would have nothing to do."""
    planned = job.live.steps if job.live.HasField("steps") else job.plan.train.steps
    if planned and planned <= job.parent_step:
        raise InvalidArgument.field(
            "train.steps",
            f"{planned} is reached by step {job.parent_step} of {job.parent_job}; ask for more",
        )


def forked_spec(parent: pb.Job, request: pb.ForkJobRequest) -> pb.TrainSpec:
    """The parent's resolved spec with the masked fields of the request; InvalidArgument for fields that are fixed."""
    spec = pb.TrainSpec()
    spec.CopyFrom(parent.plan.train)
    if parent.recoveries:
        spec.microbatch_size = parent.recoveries[-1].microbatch_size
    mask = FieldMask(paths=request.update_mask.paths)
    if not mask.IsValidForDescriptor(pb.TrainSpec.DESCRIPTOR):
        raise InvalidArgument.field("update_mask", "it has a path that is no field of TrainSpec, such as `steps`")
    wrong = {
        f"update_mask.paths[{index}]": f"{path} cannot change in a fork: the checkpoint depends on it"
        for index, path in enumerate(mask.paths)
        if path.partition(".")[0] in _FIXED
    }
    if wrong:
        raise InvalidArgument.fields(wrong)
    # Optional scalars that the mask names and the request leaves unset are derived again.
    mask.MergeMessage(request.train, spec, replace_message_field=True, replace_repeated_field=True)
    return spec


def choose_step(folder: CheckpointFolder, request: pb.ForkJobRequest) -> int:
    """The checkpoint to go on from: the one asked for, or the newest whole one. NotFound says which there are."""
    steps = folder.steps()
    if request.HasField("step") and request.step in steps:
        return request.step
    newest, _ = folder.read_newest()
    if request.HasField("step") or newest is None:
        kept = ", ".join(map(str, steps)) or "none"
        raise NotFound(
            Reason.REASON_CHECKPOINT_NOT_FOUND,
            f"{request.name} keeps no whole checkpoint of that step; it keeps {kept}",
            job=request.name,
        )
    return newest.entry.step


def adopt_checkpoint(parent: JobDirectory, step: int, child: JobDirectory) -> None:
    """Give the child the parent's checkpoint of `step`, verified. Files are linked: checkpoints never change."""
    source = CheckpointFolder(parent.checkpoints).read(step).entry.path
    target = child.checkpoints / source.name
    target.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        os.link(file, target / file.name)
    CheckpointFolder(child.checkpoints).read(step)
