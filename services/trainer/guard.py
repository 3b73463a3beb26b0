"""Watches over jobs that run: starts lost workers again, ends those that do not obey or take too long."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from octavo.v1 import trainer_pb2 as pb
from services.trainer import disk_room
from services.trainer.control import time_over
from services.trainer.history import ENDING
from services.trainer.supervision import Supervision, worker_lost

MAX_DELAY_S: Final = 60.0


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much runs at once and how patient the supervisor is; the settings of the same names say it in full."""

    max_running_jobs: int
    max_queued_jobs: int
    max_restarts: int
    restart_delay_s: float
    stop_grace_s: float
    stop_workers: bool = False


class Guard:
    """Watches over one job after the other. `refresh` folds a job's new events, `start` starts its worker."""

    def __init__(
        self,
        limits: Limits,
        logger: logging.Logger,
        clock: Callable[[], float],
        *,
        refresh: Callable[[Supervision], None],
        start: Callable[[Supervision], None],
    ) -> None:
        self._limits = limits
        self._logger = logger
        self._clock = clock
        self._refresh = refresh
        self._start = start
        self.loss_count = 0

    def watch_over(self, supervision: Supervision) -> None:
        """See to a job that runs."""
        if supervision.restart_at is not None:
            if self._clock() >= supervision.restart_at and self._has_room(supervision):
                supervision.restart_at = None
                self._start(supervision)
            return
        # Look at the lock first: what a worker wrote before it died is then sure to be among its events.
        is_alive = supervision.is_alive()
        self._refresh(supervision)
        if supervision.job.state != pb.JOB_STATE_RUNNING:
            return
        if not is_alive:
            self._handle_loss(supervision)
        elif supervision.stop_at is not None:
            if self._clock() >= supervision.stop_at:
                supervision.send(signal.SIGKILL)
        elif supervision.is_over_time():
            supervision.add_command(pb.JobCommand(expire=pb.ExpireCommand()))
            supervision.stop_at = self._clock() + self._limits.stop_grace_s

    def _handle_loss(self, supervision: Supervision) -> None:
        """A worker died without an end of its job."""
        if self.end_by_command(supervision) or not self._has_room(supervision):
            return
        self.loss_count += 1
        losses = supervision.count_loss()
        cause = supervision.death()
        job = supervision.job
        if losses > (job.max_restarts if job.HasField("max_restarts") else self._limits.max_restarts):
            with supervision.writing() as log:
                log.append(worker_lost(job, losses, cause, supervision.directory.worker_log))
            self._refresh(supervision)
            return
        delay_s = min(MAX_DELAY_S, self._limits.restart_delay_s * 2 ** (losses - 1))
        supervision.note_loss(cause, delay_s)
        self._logger.warning("a worker was lost", extra={"job": job.name, "cause": cause})
        supervision.restart_at = self._clock() + delay_s

    def _has_room(self, supervision: Supervision) -> bool:
        """Whether a worker may be started; where the disk is full, the job is paused until there is room."""
        path = supervision.directory.path
        if not disk_room.has_none(path):
            return True
        supervision.directory.give_room()
        with supervision.writing() as log:
            log.append(pb.JobEvent(state_change=disk_room.pause_for_room(supervision.job, path)))
        supervision.restart_at = None
        self._refresh(supervision)
        return False

    def end_by_command(self, supervision: Supervision) -> bool:
        """Apply what the worker did not live to apply; whether that ended or paused the job."""
        pending = supervision.pending()
        ends = [command for command in pending if command.WhichOneof("command") in ENDING]
        if not ends:
            return False
        change = _ending({command.WhichOneof("command") for command in ends}, supervision.job)
        with supervision.writing() as log:
            for command in ends:
                applied = pb.CommandApplied(command=command, step=supervision.job.latest_checkpoint.step)
                log.append(pb.JobEvent(command_applied=applied))
            log.append(pb.JobEvent(state_change=change))
        supervision.stop_at = None
        self._refresh(supervision)
        return True


def _ending(kinds: set[str | None], job: pb.Job) -> pb.StateChange:
    """What the strongest of the commands makes of a job that no worker is at."""
    message = "no worker was at it any more; its last checkpoint is kept"
    if "cancel" in kinds:
        return pb.StateChange(state=pb.JOB_STATE_CANCELLED, message=message)
    if "expire" in kinds:
        error = time_over(job.latest_checkpoint.step)
        return pb.StateChange(state=pb.JOB_STATE_FAILED, error=error.to_status(), message=error.message)
    return pb.StateChange(state=pb.JOB_STATE_PAUSED, message=message)
