"""Where workers run: what the supervisor asks of such a place, and the one there is, processes of this machine.

Knows nothing of what workers do, nor of restarts: whoever asks decides.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final, Protocol

from octavo.serving.settings import child_environment
from services.trainer.job_directory import JobDirectory, Launch
from services.trainer.memory_shortage import OomKills

# Exit status of a worker that was told to go (SIGTERM) and left a checkpoint: sysexits.h EX_TEMPFAIL.
EXIT_PREEMPTED: Final = 75
# Where the packages of the programs are found.
ROOT: Final = Path(__file__).parents[2]

_WORKER_ENVIRONMENT: Final = {
    # Without it cuBLAS is not deterministic, and torch refuses to promise that it is.
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    # Threads that spin for long at every barrier starve one another when the cores are shared, threads that sleep at
    # once wake too late when they are not: a step takes 65 ms idle and 179 ms beside two busy programs with this bound,
    # 60 and 684 ms with ten times as many turns, 102 and 260 ms without any.
    "GOMP_SPINCOUNT": "2000",
}


class Executor(Protocol):
    """Runs `python -m services.trainer.worker DIRECTORY` somewhere, and finds those again that an earlier one started.

    What it has to keep: the directory of a job is the same for supervisor and worker, with working flock; at most one
    worker is at a job, and holds the lock of its directory until it is gone; a worker outlives its supervisor. The
    truth about a job is in its directory alone, so an executor keeps nothing that a new one could not find out.
    """

    def start(self, directory: JobDirectory, launch: Launch) -> bool:
        """Start a worker; False where one is at the job already. From here on, `is_alive` says so."""
        ...

    def is_alive(self, directory: JobDirectory) -> bool:
        """Whether a worker is at the job, whoever started it. Once False, nothing more is written by it."""
        ...

    def send(self, directory: JobDirectory, number: signal.Signals) -> None:
        """SIGTERM: save and leave; SIGKILL: be gone. Without a worker, nothing."""
        ...

    def death(self, directory: JobDirectory) -> str:
        """How the last worker ended, as far as it is known, for people."""
        ...

    def was_killed_for_memory(self, directory: JobDirectory) -> bool:
        """Whether the last worker was ended from outside because memory ran out; False where that is not known."""
        ...

    def release(self, directory: JobDirectory) -> None:
        """Nobody asks for this job's worker any more; one that lives goes on."""
        ...

    def close(self) -> None:
        """Let go of everything; workers go on."""
        ...


class LocalProcesses:
    """Workers as processes of this machine. Not thread-safe: the supervisor's lock guards it."""

    def __init__(self) -> None:
        self._processes: dict[Path, subprocess.Popen[bytes]] = {}
        # Those that nobody asks for any more: waited for, so that they do not stay as zombies.
        self._released: list[subprocess.Popen[bytes]] = []
        self._oom_kills: dict[Path, OomKills] = {}

    def start(self, directory: JobDirectory, launch: Launch) -> bool:
        """Start a worker that inherits the job's lock, so that at no moment the job looks abandoned."""
        self.release(directory)
        lock = directory.try_lock()
        if lock is None:
            return False
        try:
            directory.write_launch(launch)
            directory.note_pid(lock, None)
            with directory.worker_log.open("ab") as output:
                process = subprocess.Popen(
                    [sys.executable, "-m", "services.trainer.worker", str(directory.path), "--lock", str(lock)],
                    cwd=ROOT,
                    env=child_environment(_WORKER_ENVIRONMENT),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    pass_fds=(lock,),
                    start_new_session=True,
                )
            directory.note_pid(lock, process.pid)
        finally:
            os.close(lock)
        self._processes[directory.path] = process
        self._oom_kills[directory.path] = OomKills(process.pid)
        return True

    def is_alive(self, directory: JobDirectory) -> bool:
        """Whether the job's lock is held: a stale file or a reused process id cannot be mistaken for a worker."""
        if directory.path in self._processes:
            self._processes[directory.path].poll()  # reaps it
        return directory.is_locked()

    def send(self, directory: JobDirectory, number: signal.Signals) -> None:
        """Send the worker a signal. The pid in the lock file is the holder's while it is held."""
        pid = directory.worker_pid()
        if pid is None:
            return
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(pid)
            try:
                if directory.is_locked():  # still the same process: a pidfd is never reused
                    signal.pidfd_send_signal(descriptor, number)
            finally:
                os.close(descriptor)

    def death(self, directory: JobDirectory) -> str:
        """The signal or exit status of a worker that this object started."""
        process = self._processes.get(directory.path)
        status = process.returncode if process is not None else None
        if status is None:
            return "how is not known: it was not started by this process"
        if status == EXIT_PREEMPTED:
            return "it was told to stop"
        return signal.Signals(-status).name if status < 0 else f"exit status {status}"

    def was_killed_for_memory(self, directory: JobDirectory) -> bool:
        """Whether a worker that this object started got SIGKILL, and the kernel counts a kill since its start."""
        process = self._processes.get(directory.path)
        is_killed = process is not None and process.returncode == -signal.SIGKILL
        return is_killed and self._oom_kills[directory.path].is_any()

    def release(self, directory: JobDirectory) -> None:
        """Wait for the worker's end in passing, with the others of its kind."""
        if process := self._processes.pop(directory.path, None):
            self._released.append(process)
            del self._oom_kills[directory.path]
        self._released = [one for one in self._released if one.poll() is None]

    def close(self) -> None:
        """Leave the workers to themselves."""
        for process in [*self._processes.values(), *self._released]:
            if process.poll() is None:
                process.returncode = 0  # it outlives us on purpose: keeps Popen from warning of it
