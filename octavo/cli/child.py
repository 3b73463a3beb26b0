"""A process of the suite: started with its log in a file, watched, stopped gently and then firmly."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from octavo.cli.failure import Refusal
from octavo.serving.settings import child_environment

# A log that has grown beyond this is put aside when the program starts anew.
_LARGEST_LOG_BYTES = 16 << 20
_TAIL_BYTES = 8192


@dataclass(frozen=True)
class Child:
    """One process and the programs it hosts."""

    name: str
    programs: tuple[str, ...]
    log: Path
    process: subprocess.Popen[bytes]

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative for a signal."""
        return self.process.poll()

    def last_lines(self, lines: int = 12) -> str:
        """The end of its log."""
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def stop(self, patience_s: float) -> bool:
        """SIGTERM, and SIGKILL once patience is over. Whether it went by itself."""
        if self.exit_code is not None:
            return True
        self.process.terminate()
        try:
            self.process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return False
        return True


def checkout() -> Path:
    """The folder that holds the programs. Raises Refusal where only the library is installed."""
    root = Path(__file__).resolve().parents[2]
    if not (root / "services" / "__main__.py").is_file():
        raise Refusal(
            "the programs are not here: the installed package holds the library, the client and this command line",
            "run `octavo up` from a checkout of the repository, or start the container image",
        )
    return root


@dataclass(frozen=True)
class Launch:
    """What to start: `python -m module arguments`, which host `programs`."""

    name: str
    module: str
    arguments: Sequence[str]
    programs: tuple[str, ...]


def start(launch: Launch, log: Path, changes: Mapping[str, str], lock: IO[str]) -> Child:
    """Starts a process in the checkout, its output appended to `log`. It ends when this process ends.

    It holds `lock` too: while any process of a suite lives, nobody else takes its data directory.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists() and log.stat().st_size > _LARGEST_LOG_BYTES:
        log.replace(log.with_suffix(".log.1"))
    with log.open("ab") as file:
        file.write(f"--- {launch.name} started {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode())
        file.flush()
        process = subprocess.Popen(
            [sys.executable, "-m", "octavo.cli.tether", str(os.getpid()), launch.module, *launch.arguments],
            cwd=checkout(),
            env=child_environment(changes),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the one who stops the others in order
            pass_fds=(lock.fileno(),),
        )
    return Child(launch.name, launch.programs, log, process)


def exit_words(code: int) -> str:
    """`exit code 1`, `killed by SIGKILL`."""
    if code >= 0:
        return f"exit code {code}"
    return f"killed by {signal.Signals(-code).name}"
