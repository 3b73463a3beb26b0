"""What the supervisor knows of one living job: its state as folded from its events, its worker and its restarts."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from octavo.errors import FailedPrecondition, ResourceExhausted, Unavailable
from octavo.serving.settings import child_environment
from octavo.v1 import trainer_pb2 as pb
from octavo.v1.errors_pb2 import Reason
from services.trainer import commands
from services.trainer.events import EventLog, EventReader
from services.trainer.history import applied_commands, fold
from services.trainer.job_directory import JobDirectory, Launch

# Exit status of a worker that was told to go (SIGTERM) and left a checkpoint: sysexits.h EX_TEMPFAIL.
EXIT_PREEMPTED: Final = 75
# Where the packages of the programs are found.
ROOT: Final = Path(__file__).parents[2]
# Between a worker's last event and the end of its process: closing files and the interpreter.
LEAVING_S: Final = 3.0

_WORKER_ENVIRONMENT: Final = {
    # Without it cuBLAS is not deterministic, and torch refuses to promise that it is.
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    # Threads that spin for long at every barrier starve one another when the cores are shared, threads that sleep at
    # once wake too late when they are not: a step takes 65 ms idle and 179 ms beside two busy programs with this bound,
    # 60 and 684 ms with ten times as many turns, 102 and 260 ms without any.
    "GOMP_SPINCOUNT": "2000",
}


class Supervision:
    """One living job under supervision. Not thread-safe: the supervisor's lock guards it."""

    def __init__(self, job: pb.Job, directory: JobDirectory) -> None:
        self.job = _accepted(job, directory)
        self.directory = directory
        self.process: subprocess.Popen[bytes] | None = None
        self.restart_at: float | None = None
        self.stop_at: float | None = None
        self.saved_at = 0.0
        self.has_begun = True
        self._events = EventReader(directory.path)
        self._losses = 0
        self._mark: tuple[int, int] = (0, 0)

    def refresh(self) -> bool:
        """Fold the events written since the last call; whether there were any."""
        is_news = False
        while batch := self._events.read():
            is_news = True
            for event in batch:
                fold(self.job, event)
                self.has_begun |= event.HasField("attempt_start")
        return is_news

    def is_alive(self) -> bool:
        """Whether a worker is at it, started by us or found."""
        if self.process is not None:
            self.process.poll()  # reaps it
        return self.directory.is_locked()

    def start(self, launch: Launch) -> subprocess.Popen[bytes] | None:
        """Start a worker that inherits the job's lock, so that at no moment the job looks abandoned.

        None when one is at work already, started by a supervisor before us.
        """
        directory = self.directory
        lock = directory.try_lock()
        if lock is None:
            return None
        try:
            directory.write_launch(launch)
            self.has_begun = False
            directory.note_pid(lock, None)
            with directory.worker_log.open("ab") as output:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "services.trainer.worker", str(directory.path), "--lock", str(lock)],
                    cwd=ROOT,
                    env=child_environment(_WORKER_ENVIRONMENT),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    pass_fds=(lock,),
                    start_new_session=True,
                )
            directory.note_pid(lock, self.process.pid)
        finally:
            os.close(lock)
        return self.process

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
        status = self.process.returncode if self.process is not None else None
        if status is None:
            return "how is not known: it was not started by this process"
        if status == EXIT_PREEMPTED:
            return "it was told to stop"
        return signal.Signals(-status).name if status < 0 else f"exit status {status}"

    def send(self, number: signal.Signals) -> None:
        """Send the worker a signal, if there is one. The pid in the lock file is the holder's while it is held."""
        pid = self.directory.worker_pid()
        if pid is None:
            return
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(pid)
            try:
                if self.directory.is_locked():  # still the same process: a pidfd is never reused
                    signal.pidfd_send_signal(descriptor, number)
            finally:
                os.close(descriptor)

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
            with EventLog(self.directory.path, attempt=0) as log:
                yield log
        finally:
            os.close(lock)

    def detach(self) -> list[subprocess.Popen[bytes]]:
        """Hand over the worker's process, if it is ours, to whoever waits for its end."""
        process, self.process = self.process, None
        return [process] if process is not None else []


def _accepted(row: pb.Job, directory: JobDirectory) -> pb.Job:
    """The job as accepted, with what people changed since: all else is folded from its events anew.

    The row may know more than the events do after the machine itself was lost; the events count.
    """
    job = directory.read_job()
    job.display_name, job.priority = row.display_name, row.priority
    job.labels.clear()
    job.labels.update(row.labels)
    return job


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
        f"a lack of memory: try a smaller microbatch_size. What it printed is in {log} on the trainer's machine",
        job=job.name,
        losses=losses,
        cause=cause,
    )
    return pb.JobEvent(
        state_change=pb.StateChange(
            state=pb.JOB_STATE_FAILED, error=error.to_status(), message="the worker was lost too often"
        )
    )
