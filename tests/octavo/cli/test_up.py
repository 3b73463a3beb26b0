"""`octavo up`: one command starts all, says what is wrong, and leaves nothing behind."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import psutil
import pytest

from octavo.cli import __main__ as command_line
from octavo.cli import ports, whereabouts
from octavo.cli.failure import Refusal

READY_WITHIN_S = 90


@contextmanager
def suite(data_dir, *options):
    """`octavo up` as a process of its own; killed with its children if a test leaves it running."""
    command = [sys.executable, "-m", "octavo.cli", "up", "--data", str(data_dir), "--any-ports", "--json", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            for left in (
                [*psutil.Process(process.pid).children(recursive=True), process] if process.poll() is None else []
            ):
                left.kill()


def ready(process):
    """Waits until the suite says that it is ready; the `host:port` of each program."""
    line = process.stdout.readline()
    assert line, process.stderr.read()
    return json.loads(line)["programs"]


def children(process):
    return psutil.Process(process.pid).children(recursive=True)


def gone(processes, within_s=15):
    return not psutil.wait_procs(processes, within_s)[1]


@pytest.mark.slow
def test_a_suite_starts_refuses_a_second_one_and_stops_without_a_trace(tmp_path, capsys):
    with suite(tmp_path) as process:
        programs = ready(process)
        assert whereabouts.read(tmp_path).programs == programs
        assert command_line.main(["--data", str(tmp_path), "status", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["versions"]["octavo"]
        assert command_line.main(["up", "--data", str(tmp_path), "--any-ports"]) == 1
        assert f"a suite is already running on {tmp_path} (process {process.pid}" in capsys.readouterr().err
        started = children(process)
        assert len(psutil.Process(process.pid).children()) == 2
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert gone(started)
        assert whereabouts.read(tmp_path) is None
        assert {path.name for path in (tmp_path / "logs").iterdir()} == {"services.log", "gateway.log"}


@pytest.mark.slow
def test_after_a_kill_nothing_lives_on_and_the_next_start_just_works(tmp_path):
    with suite(tmp_path) as process:
        first = ready(process)
        started = children(process)
        process.kill()
        process.wait()
    with suite(tmp_path) as process:
        second = ready(process)
        assert gone(started)
        assert whereabouts.read(tmp_path).programs == second != first
        process.send_signal(signal.SIGHUP)  # a terminal that is closed is a reason to stop in order
        assert process.wait(30) == 0


@pytest.mark.slow
def test_when_a_program_dies_the_others_stop_and_its_last_lines_are_shown(tmp_path):
    with suite(tmp_path) as process:
        ready(process)
        started = children(process)
        services = next(child for child in started if "services" in child.cmdline())
        services.send_signal(signal.SIGKILL)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 1
        report = json.loads(errors.splitlines()[-1])["message"]
        assert "services (registry, trainer, inference, inspector) has ended: killed by SIGKILL" in report
        assert "listening" in report
        assert gone(started)


def test_taken_ports_are_named_with_their_programs():
    chosen = ports.free()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", chosen.programs["trainer"]))
        taken.listen()
        with pytest.raises(Refusal, match=rf"{chosen.programs['trainer']} \(trainer\)"):
            ports.require_free(chosen)
    ports.require_free(chosen)


def test_an_offset_moves_every_port(monkeypatch):
    monkeypatch.setenv("OCTAVO_TRAINER_PORT", "6000")
    shifted = ports.usual(100)
    assert (shifted.programs["gateway"], shifted.programs["trainer"]) == (8180, 6100)
    assert shifted.metrics["registry"] == ports.usual().metrics["registry"] + 100
    with pytest.raises(Refusal, match="cannot have port"):
        ports.usual(60_000)


def test_a_note_that_cannot_be_read_is_refused_by_its_path(tmp_path):
    (tmp_path / whereabouts.NOTE).write_text("{")
    with pytest.raises(Refusal, match=whereabouts.NOTE):
        whereabouts.programs(tmp_path)


def test_a_tethered_program_ends_with_its_parent(tmp_path):
    """The parent is a shell that is killed; the child is any module that would run for long."""
    started = tmp_path / "pid"
    code = (
        "import os, subprocess, sys, time; "
        "child = subprocess.Popen([sys.executable, '-m', 'octavo.cli.tether', str(os.getpid()), 'http.server', '0']); "
        f"open({str(started)!r}, 'w').write(str(child.pid)); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as parent:
        deadline_s = time.monotonic() + 20
        while not (started.exists() and started.read_text()) and time.monotonic() < deadline_s:
            time.sleep(0.05)
        child = psutil.Process(int(started.read_text()))
        while "http.server" not in " ".join(child.cmdline()) and time.monotonic() < deadline_s:
            time.sleep(0.05)
        time.sleep(0.5)
        os.kill(parent.pid, signal.SIGKILL)
    assert gone([child])
