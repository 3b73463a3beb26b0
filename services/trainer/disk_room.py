"""Whether there is room on the disk for a job, and how a lack of it is told.

A job pauses at the write that fails and goes on when there is room for more than that write, so that a disk at its
limit does not make it pause and go on forever.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from octavo.errors import ResourceExhausted, from_status
from octavo.v1 import trainer_pb2 as pb
from octavo.v1.errors_pb2 import Reason

CHECK_INTERVAL_S: Final = 1.0
# Events, logs and databases of many jobs.
_LEAST_BYTES: Final = 8 << 20
# Below it, a worker that died without a word died for want of room.
_NOTHING_BYTES: Final = 256 << 10
_MIB: Final = 1 << 20
# Weights, gradients' moments and their average, in fp32.
_CHECKPOINT_BYTES_PER_PARAMETER: Final = 16


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, says that a disk or a quota is full."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
            return True
        # safetensors and ONNX say so in words only.
        if "no space left" in str(error).lower():
            return True
        error = error.__cause__ or error.__context__
    return False


def needed_bytes(job: pb.Job) -> int:
    """Room without which a job does not go on: for two more of its checkpoints, or for its bundle."""
    checkpoint = job.latest_checkpoint.size_bytes or _CHECKPOINT_BYTES_PER_PARAMETER * job.plan.parameter_count
    return _LEAST_BYTES + 2 * checkpoint


def has_none(path: Path) -> bool:
    """Whether the disk of a path is as good as full."""
    return shutil.disk_usage(path).free < _NOTHING_BYTES


def disk_full(path: Path) -> ResourceExhausted:
    """The error for something that was asked for and could not be written."""
    return ResourceExhausted(
        Reason.REASON_DISK_FULL,
        f"no room is left on the disk of {path}: free some and ask again; nothing was changed",
        retry_after_s=30.0,
    )


def pause_for_room(job: pb.Job, path: Path) -> pb.StateChange:
    """The change of state of a job that cannot write."""
    needed_mib = -(-needed_bytes(job) // _MIB)
    message = (
        f"the disk of {path} is full; free some of it: the job goes on by itself, from step "
        f"{job.latest_checkpoint.step}, when {needed_mib} MiB are free"
    )
    error = ResourceExhausted(Reason.REASON_DISK_FULL, message, job=job.name, needed_mib=needed_mib)
    return pb.StateChange(state=pb.JOB_STATE_PAUSED, error=error.to_status(), message=message)


def awaits_room(job: pb.Job) -> bool:
    """Whether a job is paused until there is room."""
    if job.state != pb.JOB_STATE_PAUSED or not job.HasField("error"):
        return False
    return from_status(job.error).reason == Reason.REASON_DISK_FULL


def wait_for_room(job: pb.Job, living: Iterable[pb.Job], path: Path) -> str:
    """What a queued job waits for before it may write to a disk, if anything. Who had begun goes on first."""
    paused = [one.name for one in living if awaits_room(one)]
    if paused:
        return f"waits for room on the disk, after {paused[0]}"
    is_room = shutil.disk_usage(path).free >= needed_bytes(job)
    return "" if is_room else f"waits for {needed_bytes(job) >> 20} MiB of room on the disk"
