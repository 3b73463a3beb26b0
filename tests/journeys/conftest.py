"""The whole suite as its users start it: `octavo up` on free ports, with a data directory of its own."""

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from octavo.addresses import Addresses
from octavo.client import Client

OCTAVO = Path(sys.executable).with_name("octavo")


class Suite:
    """A running suite: where it is, its client, and ways to end it."""

    def __init__(self, data_dir):
        self.data_dir = data_dir
        command = [OCTAVO, "up", "--data", data_dir, "--any-ports", "--json"]
        environment = {**os.environ, "OCTAVO_METRICS_PORT": "0"}
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        line = self._process.stdout.readline()
        assert line, "the suite did not start; its log is above"
        self.programs = json.loads(line)["programs"]
        self.client = Client(Addresses(**{name: at for name, at in self.programs.items() if name != "gateway"}))

    @property
    def gateway(self):
        return f"http://{self.programs['gateway']}"

    def octavo(self, *arguments):
        """Runs the command line against this suite; answers what it printed."""
        command = [OCTAVO, "--data", self.data_dir, *arguments]
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
        assert result.returncode == 0, result.stderr
        return result.stdout

    def kill_everything(self):
        """kill -9 of every process: the suite, its programs, the training workers. Nothing is asked to stop."""
        mine = str(self.data_dir)
        doomed = psutil.Process(self._process.pid).children(recursive=True)
        doomed += [
            process for process in psutil.process_iter(["cmdline"]) if mine in " ".join(process.info["cmdline"] or [])
        ]
        for process in {process.pid: process for process in doomed}.values():
            with suppressed_gone():
                process.kill()
        self._process.kill()
        self._process.wait()
        psutil.wait_procs(doomed, timeout=10)
        self._close()

    def stop(self):
        """Ctrl-C."""
        self._process.send_signal(signal.SIGINT)
        assert self._process.wait(60) == 0
        self._close()

    def _close(self):
        self.client.close()
        self._process.stdout.close()


@contextmanager
def suppressed_gone():
    try:
        yield
    except psutil.NoSuchProcess:
        return


@pytest.fixture
def suites(tmp_path):
    """Starts suites on one data directory; whatever still runs at the end is killed."""
    started = []

    def start():
        started.append(Suite(tmp_path / "data"))
        return started[-1]

    yield start
    for suite in started:
        if suite._process.poll() is None:
            suite.kill_everything()


@pytest.fixture
def corpus(tmp_path):
    """200,000 characters of English prose that every Python carries: its own language reference."""
    from pydoc_data.topics import topics

    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(topics[name] for name in sorted(topics)).encode("ascii", "ignore").decode()[:200_000])
    return path
