"""What the supervisor knows of one living job: its state as folded from its events, its worker and its restarts."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from octavo.errors import FailedPrecondition, ResourceExhausted, Unavailable
from octavo.v1 import trainer_pb2 as pb
from octavo.v1.errors_pb2 import Reason
from services.trainer import commands
from services.trainer.events import EventLog, EventReader
from services.trainer.executor import Executor
from services.trainer.history import applied_commands, fold
from services.trainer.job_directory import JobDirectory, Launch
from services.trainer.log_lines import LogFile
from services.trainer.recovery import Recoveries
from services.trainer.running_time import RunningTime

# Between a worker's last event and the end of its process: closing files and the interpreter.
LEAVING_S: Final = 3.0


class Supervision:
    """One living job under supervision. Not thread-safe: the supervisor's lock guards it."""

    def __init__(self, job: pb.Job, directory: JobDirectory, executor: Executor) -> None:
        self.job = _accepted(job, directory)
        self.directory = directory
        self._executor = executor
        self.restart_at: float | None = None
        self.stop_at: float | None = None
        self.saved_at = 0.0
        self.has_begun = True
        self._events = EventReader(directory.path)
        self._running = RunningTime()
        self.is_saved = True
        self._losses = 0
        self._mark: tuple[int, int] = (0, 0)

    def refresh(self) -> bool:
        """Fold the events written since the last call; whether there were any."""
        is_news = False
        while batch := self._events.read():
            is_news = True
            for event in batch:
                fold(self.job, event)
                self._running.note(event)
                self.has_begun |= event.HasField("attempt_start")
        if is_news:
            self.job.running_duration.FromNanoseconds(self._running.total_ns)
        return is_news

    def is_over_time(self) -> bool:
        """Whether the job, which has a living worker, runs for longer than it may."""
        limit = self.job.timeout
        return self.job.HasField("timeout") and self._running.total_s(time.time()) > limit.ToNanoseconds() / 1e9

    def is_alive(self) -> bool:
        """Whether a worker is at it, started by us or found."""
        return self._executor.is_alive(self.directory)

    def start(self, launch: Launch) -> bool:
        """Start a worker; False when one is at work already, started by a supervisor before us."""
        if not self._executor.start(self.directory, launch):
            return False
        self.has_begun = False
        return True

    def add_command(self, command: pb.JobCommand) -> pb.JobCommand:
        """Tell the worker something; durable."""
        return commands.append(self.directory.path, command)

    def pending(self) -> list[pb.JobCommand]:
        """The commands that were accepted and have not been applied."""
        applied = applied_commands(EventReader(self.directory.path).read_all())
        written = commands.CommandReader(self.directory.path).read()
        return [command for command in written if command.sequence not in applied]

    def count_loss(self) -> int:
        """How often the worker was lost since it last got further, this time included."""
        mark = (self.job.latest_checkpoint.step, self.job.progress.phase)
        self._losses = 1 if mark > self._mark else self._losses + 1
        self._mark = mark
        return self._losses

    def death(self) -> str:
        """How the worker ended, as far as it is known."""
        return self._executor.death(self.directory)

    def note_loss(self, cause: str, delay_s: float) -> None:
        """Say that the worker was lost and, where it lacked memory, with what its successor goes on."""
        job = self.job
        step = job.latest_checkpoint.step or job.parent_step
        with self.writing() as log:
            log.log(
                pb.LOG_SEVERITY_WARNING,
                f"the worker was lost ({cause}); starting it again from step {step} in {delay_s:g} s",
                job.progress.step,
            )
            recoveries = Recoveries(job.plan.train, job.recoveries)
            is_training = job.progress.phase == pb.JOB_PHASE_TRAIN
            if is_training and recoveries.can_split and self._executor.was_killed_for_memory(self.directory):
                recovery = recoveries.split(job.progress.step + 1, step=step, cause=pb.RECOVERY_CAUSE_KILLED_FOR_MEMORY)
                log.append(pb.JobEvent(recovery=recovery))
                log.log(pb.LOG_SEVERITY_WARNING, recovery.message, step)

    def send(self, number: signal.Signals) -> None:
        """Send the worker a signal, if there is one."""
        self._executor.send(self.directory, number)

    @contextlib.contextmanager
    def writing(self) -> Iterator[EventLog]:
        """The job's events, to append to while no worker is at it. Waits a moment for one that is leaving."""
        deadline_s = time.monotonic() + LEAVING_S
        while (lock := self.directory.try_lock()) is None and time.monotonic() < deadline_s:
            time.sleep(0.01)
        if lock is None:
            raise Unavailable(
                Reason.REASON_JOB_STATE,
                f"a worker has just taken up {self.job.name}; try again",
                retry_after_s=0.5,
                job=self.job.name,
            )
        try:
            with (
                LogFile(self.directory.log_file, self.job.plan) as file,
                EventLog(self.directory.path, attempt=0, listener=file.tell) as log,
            ):
                yield log
        finally:
            os.close(lock)

    def release(self) -> None:
        """Ask no more for the worker; one that lives goes on."""
        self._executor.release(self.directory)


def _accepted(row: pb.Job, directory: JobDirectory) -> pb.Job:
    """The job as accepted, with what people changed since: all else is folded from its events anew.

    The row may know more than the events do after the machine itself was lost; the events count.
    """
    job = directory.read_job()
    job.display_name, job.priority = row.display_name, row.priority
    job.labels.clear()
    job.labels.update(row.labels)
    for field in ("timeout", "max_restarts"):
        job.ClearField(field)
    if row.HasField("timeout"):
        job.timeout.CopyFrom(row.timeout)
    if row.HasField("max_restarts"):
        job.max_restarts = row.max_restarts
    told = [one.live for one in commands.CommandReader(directory.path).read() if one.HasField("live")]
    if told:
        job.live.CopyFrom(told[-1])
    return job


def changed_while_living(before: pb.Job, after: pb.Job) -> bool:
    """Whether something differs that only a job which has not ended can heed."""
    return any(getattr(before, field) != getattr(after, field) for field in ("live", "timeout", "max_restarts"))


def stop_workers(supervisions: Sequence[Supervision], grace_s: float) -> None:
    """Have all workers save and leave, and end those that do not; another supervisor starts them again."""
    running = [one for one in supervisions if one.is_alive()]
    for one in running:
        one.send(signal.SIGTERM)
    deadline_s = time.monotonic() + grace_s
    while any(one.is_alive() for one in running) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    for one in running:
        one.send(signal.SIGKILL)


def require_state(job: pb.Job, *states: pb.JobState.ValueType, verb: str) -> None:
    """FailedPrecondition unless the job is in one of the states."""
    if job.state not in states:
        words = [pb.JobState.Name(state).removeprefix("JOB_STATE_") for state in (job.state, *sorted(states))]
        raise FailedPrecondition(
            Reason.REASON_JOB_STATE,
            f"{job.name} is {words[0]}; it can be {verb} when it is {' or '.join(words[1:])}",
            job=job.name,
            state=words[0],
        )


def require_training(job: pb.Job, why: str) -> pb.Job:
    """The job, if it trains; FailedPrecondition for all others, and `why` says what they lack."""
    if not job.HasField("train"):
        kind = job.WhichOneof("spec")
        raise FailedPrecondition(Reason.REASON_JOB_STATE, f"{job.name} is a job of kind {kind}; {why}", job=job.name)
    return job


def queue_full(queued: int) -> ResourceExhausted:
    """The error for a job that finds too many before it."""
    return ResourceExhausted(
        Reason.REASON_LIMIT_EXCEEDED,
        f"{queued} jobs are queued, as many as may be; cancel some or wait",
        retry_after_s=30.0,
        queued=queued,
    )


def worker_lost(job: pb.Job, losses: int, cause: str, log: Path) -> pb.JobEvent:
    """The event that ends a job whose worker was lost too often."""
    error = FailedPrecondition(
        Reason.REASON_WORKER_LOST,
        f"the worker was lost {losses} times without getting further, the last time by {cause}. SIGKILL is often "
        "a lack of memory: make context_length or size smaller, or run fewer jobs at once. What it printed is in "
        f"{log} on the trainer's machine",
        job=job.name,
        losses=losses,
        cause=cause,
    )
    return pb.JobEvent(
        state_change=pb.StateChange(
            state=pb.JOB_STATE_FAILED, error=error.to_status(), message="the worker was lost too often"
        )
    )
