"""All programs of one data directory as child processes: claimed, started, asked for their health, stopped in order."""

import fcntl
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from octavo.addresses import PORTS
from octavo.cli import child, health, whereabouts
from octavo.cli.child import Child, Launch
from octavo.cli.failure import Refusal
from octavo.cli.health import Health
from octavo.cli.ports import Ports, require_free
from octavo.cli.whereabouts import Note

# Two locks, both gone with the processes that hold them: the one who starts programs has the first, the programs
# themselves the second, so that programs whose starter was killed are waited for and never doubled.
STARTER_LOCK = "suite.lock"
PROGRAMS_LOCK = "programs.lock"
# How long programs may drain whose starter was killed.
_DRAIN_PATIENCE_S = 20.0
# The programs drain for 10 s by default (settings.drain_s).
_STOP_PATIENCE_S = 15.0

SERVICES = tuple(name for name in PORTS if name != "gateway")


class Fleet:
    """The programs of a data directory. Use it as a context: leaving it stops them all."""

    def __init__(self, data_dir: Path, ports: Ports, *, is_separate: bool = False) -> None:
        self.data_dir = data_dir.expanduser().absolute()
        self.addresses = ports.addresses
        self.children: list[Child] = []
        self._ports = ports
        self._is_separate = is_separate
        self._locks: list[TextIO] = []

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def health(self) -> dict[str, Health]:
        """What each program says of itself now."""
        return {name: health.check(name, address) for name, address in self.addresses.items()}

    def fallen(self) -> Child | None:
        """The first process that has ended, if one has."""
        return next((process for process in self.children if process.exit_code is not None), None)

    def stop(self, *, patience_s: float = _STOP_PATIENCE_S) -> list[str]:
        """Stops the processes, the front door first; names those that had to be killed."""
        killed = [process.name for process in reversed(self.children) if not process.stop(patience_s)]
        self.children.clear()
        if self._locks:
            (self.data_dir / whereabouts.NOTE).unlink(missing_ok=True)
        while self._locks:
            self._locks.pop().close()
        return killed

    def _start(self) -> None:
        child.checkout()
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self._locks.append(_claim(self.data_dir / STARTER_LOCK, self.data_dir, patience_s=0))
        self._locks.append(_claim(self.data_dir / PROGRAMS_LOCK, self.data_dir, patience_s=_DRAIN_PATIENCE_S))
        require_free(self._ports)
        for launch in self._launches():
            metrics_port = self._ports.metrics[launch.programs[0]]
            changes = self._environment() | {"OCTAVO_METRICS_PORT": str(metrics_port)}
            log = self.data_dir / "logs" / f"{launch.name}.log"
            self.children.append(child.start(launch, log, changes, self._locks[-1]))
        whereabouts.write(self.data_dir, Note(pid=os.getpid(), programs=self.addresses))

    def _launches(self) -> list[Launch]:
        """A process is a list of programs: all services in one, or each in one of its own; the gateway always so."""
        groups = {name: (name,) for name in SERVICES} if self._is_separate else {"services": SERVICES}
        services = [Launch(name, "services", programs, programs) for name, programs in groups.items()]
        return [*services, Launch("gateway", "gateway", (), ("gateway",))]

    def _environment(self) -> dict[str, str]:
        """Where everything is, for every process."""
        changes = {f"OCTAVO_{name.upper()}": self.addresses[name] for name in SERVICES}
        changes |= {f"OCTAVO_{name.upper()}_PORT": str(port) for name, port in self._ports.programs.items()}
        # Ctrl-C leaves nothing running: workers save a checkpoint, and go on when the suite starts again.
        return changes | {"OCTAVO_DATA_DIR": str(self.data_dir), "OCTAVO_TRAINER_STOP_WORKERS": "true"}


def _claim(path: Path, data_dir: Path, *, patience_s: float) -> TextIO:
    """A lock that lives as long as this process. Raises Refusal while another suite has it."""
    lock = path.open("a")
    deadline_s = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline_s:
                lock.close()
                raise _already_running(data_dir, whereabouts.read(data_dir)) from None
            time.sleep(0.1)
        else:
            return lock


def _already_running(data_dir: Path, note: Note | None) -> Refusal:
    where = f" (process {note.pid}, gateway at http://{note.programs['gateway']})" if note else ""
    return Refusal(
        f"a suite is already running on {data_dir}{where}",
        f"`octavo --data {data_dir} status` shows it; another one needs another --data and --port-offset 100",
    )
