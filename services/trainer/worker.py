"""The process of one job: `python -m services.trainer.worker DIRECTORY`. Runs the job's pipeline to its end.

Holds the job's lock for as long as it lives, writes its events, hears its commands. Whatever happens is an event;
tracebacks go to standard error, which the supervisor keeps as worker.log beside the events.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import functools
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from octavo.errors import Internal, OctavoError, ResourceExhausted
from octavo.v1 import trainer_pb2 as pb
from octavo.v1.errors_pb2 import Reason
from services.trainer import disk_room
from services.trainer.control import Control, Leaving
from services.trainer.events import TERMINAL, EventLog, EventReader
from services.trainer.executor import EXIT_PREEMPTED
from services.trainer.history import fold
from services.trainer.job_directory import JobDirectory
from services.trainer.log_lines import LogFile
from services.trainer.memory_shortage import is_out_of_memory
from services.trainer.resource_usage import UsageSampler

if TYPE_CHECKING:
    from services.trainer.loop import Training
    from services.trainer.process_group import ProcessGroup

# Another process is at work in the directory: sysexits.h EX_CANTCREAT.
EXIT_TAKEN = 73
# Not even the reason could be written: sysexits.h EX_IOERR.
EXIT_DISK_FULL = 74
_PR_SET_PDEATHSIG = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job in a directory; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m services.trainer.worker", description="Run one job.")
    parser.add_argument("directory", type=Path, help="the job's directory")
    parser.add_argument("--lock", type=int, help="the descriptor of the job's lock, when it is inherited")
    parser.add_argument("--agent", type=int, help="be one of the processes that this one has started for the job")
    options = parser.parse_args(arguments)
    directory = JobDirectory(options.directory)
    if options.agent is not None:
        _die_with(options.agent)
        from services.trainer.parallel_worker import take_part

        return take_part(directory, work)
    lock = options.lock if options.lock is not None else directory.try_lock()
    if lock is None:
        print(f"another process is at work in {options.directory}", file=sys.stderr)
        return EXIT_TAKEN
    os.set_inheritable(lock, False)
    directory.note_pid(lock, os.getpid())
    job = directory.read_job()
    if job.HasField("train") and job.plan.train.processes > 1:
        from services.trainer.parallel_worker import launch

        return launch(directory, job.plan.train.processes)
    return work(directory)


def _die_with(parent: int) -> None:
    """Let the kernel kill this process as soon as its parent is gone, however it went."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:
        sys.exit(EXIT_PREEMPTED)  # it was gone before the kernel knew


def work(directory: JobDirectory, group: ProcessGroup | None = None) -> int:
    """Run the job from where its events leave it; returns the exit status.

    The caller holds the job's lock, or was started by whoever does, to lead a `group` of processes.
    """
    past = EventReader(directory.path).read_all()
    job = directory.read_job()
    for event in past:
        fold(job, event)
    if job.state in TERMINAL:
        return 0
    attempt = job.attempt_count + 1
    with contextlib.suppress(OSError):
        directory.keep_room()
    with LogFile(directory.log_file, job.plan) as file, EventLog(directory.path, attempt, listener=file.tell) as log:
        try:
            control = Control(directory.path, log, past, job.live)
            control.hear_signals()
            _run(directory, job, past, log, control, group=group)
            change = pb.StateChange(state=pb.JOB_STATE_SUCCEEDED, message=_farewell(job))
        except Leaving as leaving:
            if leaving.state is None:
                log.log(pb.LOG_SEVERITY_INFO, str(leaving))
                return EXIT_PREEMPTED
            change = pb.StateChange(state=leaving.state, message=str(leaving))
            if leaving.error is not None:
                change.error.CopyFrom(leaving.error.to_status())
        except Exception as error:
            with contextlib.suppress(OSError):  # worker.log may be on the disk that is full
                traceback.print_exc()
            if disk_room.is_disk_full(error):
                return _pause_for_room(directory, log)
            change = failure(error, directory)
        log.append(pb.JobEvent(state_change=change))
    return 0


def _pause_for_room(directory: JobDirectory, log: EventLog) -> int:
    """Say that the job waits for room, in the room kept for it; where even that is gone, the supervisor says so."""
    job = directory.read_job()
    for event in EventReader(directory.path).read_all():
        fold(job, event)
    directory.give_room()
    try:
        log.append(pb.JobEvent(state_change=disk_room.pause_for_room(job, directory.path)))
    except OSError:
        return EXIT_DISK_FULL
    return 0


def _run(
    directory: JobDirectory,
    job: pb.Job,
    past: Sequence[pb.JobEvent],
    log: EventLog,
    control: Control,
    *,
    group: ProcessGroup | None,
) -> None:
    # Imported here: loading torch takes seconds, in which the lock is already held and signals are heard.
    from services.trainer.export_pipeline import ExportPipeline
    from services.trainer.job_run import JobRun
    from services.trainer.pipeline import Pipeline
    from services.trainer.replay_pipeline import ReplayPipeline

    run = JobRun(directory, job, past, log, control)
    try:
        attempt = job.attempt_count + 1
        with UsageSampler(log, directory.path):
            if job.HasField("export"):
                ExportPipeline(run).run(attempt)
            elif job.HasField("replay"):
                ReplayPipeline(run).run(attempt)
            else:
                Pipeline(run, _maker(group)).run(attempt)
    finally:
        run.close()


def _maker(group: ProcessGroup | None) -> Callable[..., Training]:
    """What makes a training: of this process alone, or shared by a group."""
    from services.trainer.loop import Training

    if group is None:
        return Training
    from services.trainer.parallel_loop import LeadingTraining

    return functools.partial(LeadingTraining, group=group)


def _farewell(job: pb.Job) -> str:
    return "everything is compared" if job.HasField("replay") else "everything is registered"


def failure(error: Exception, directory: JobDirectory) -> pb.StateChange:
    """The change of state for an error: what people can do about it, without a traceback."""
    status = _understood(error, directory).to_status()
    return pb.StateChange(state=pb.JOB_STATE_FAILED, error=status, message=status.message)


def _understood(error: Exception, directory: JobDirectory) -> OctavoError:
    if isinstance(error, OctavoError):
        return error
    if is_out_of_memory(error):
        return ResourceExhausted(
            Reason.REASON_OUT_OF_MEMORY,
            "the spec does not fit the memory of this machine, however its batch is split: make "
            "train.architecture.context_length or train.size smaller, or run fewer jobs at once",
        )
    return Internal(
        Reason.REASON_INTERNAL,
        f"a defect of the trainer; {directory.worker_log} on its machine has the details",
        kind=type(error).__name__,
    )


if __name__ == "__main__":
    sys.exit(main())
