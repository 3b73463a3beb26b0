"""A registry in a process of its own, to be killed."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Self

REPOSITORY = Path(__file__).parents[3]


class ServerProcess:
    """`python -m services registry` on one folder; started again after a kill, it listens where it did."""

    def __init__(
        self, data_dir: Path, environment: Mapping[str, str] | None = None, *, max_file_bytes: int = 0
    ) -> None:
        self._data_dir = data_dir
        self._environment = dict(environment or {})
        self._max_file_bytes = max_file_bytes
        self._port = "0"
        self.address = ""
        self.start()

    def start(self) -> None:
        settings = {
            "OCTAVO_DATA_DIR": str(self._data_dir),
            "OCTAVO_REGISTRY_PORT": self._port,
            "OCTAVO_METRICS_PORT": "0",
            "OCTAVO_REGISTRY_DRAIN_S": "0.1",
        }
        command = [sys.executable, "-m", "services", "registry"]
        if self._max_file_bytes:
            command = ["prlimit", f"--fsize={self._max_file_bytes}", *command]
        self._process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=os.environ | settings | self._environment,
            stderr=subprocess.STDOUT,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout
        for line in self._process.stdout:
            if found := re.search(r"listening.*address=(\S+)", line):
                self.address = found[1]
                self._port = self.address.rpartition(":")[2]
                return
        raise AssertionError(f"the registry ended with {self._process.wait()} before it listened")

    def kill(self) -> None:
        """Ends it at once, wherever it is."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Kills it and starts its successor."""
        self.kill()
        self.start()

    def _end(self, number: signal.Signals) -> None:
        assert self._process.stdout
        self._process.send_signal(number)
        self._process.wait(20)
        self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._end(signal.SIGTERM)
