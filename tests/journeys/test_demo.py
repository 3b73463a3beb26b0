"""What `make demo` shows: the whole life of a model, to the end, on the built-in corpus and on a text of one's own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]


def demo(directory, *options):
    command = [sys.executable, "-m", "examples.demo", "--directory", str(directory), *options]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
def test_the_demonstration_shows_every_step_and_leaves_nothing_running(tmp_path):
    with demo(tmp_path / "kept", "--time-budget", "5s") as process:
        output, _ = process.communicate(timeout=280)
    assert process.returncode == 0, output
    for words in (
        "Five programs",
        "datasets/demo/versions/1",
        "byte bpe, 1,024 entries",
        "validation",
        "models/demo/versions/1",
        "logits within",
        "the hash chain over",
        "tokens/s",
        "the same text to the last byte",
        "model.safetensors",
        "generate demo",
    ):
        assert words in output, f"no {words!r} in:\n{output}"
    assert (tmp_path / "kept" / "registry").is_dir()
    assert not (tmp_path / "kept" / "suite.json").exists()


@pytest.mark.slow
def test_a_text_of_ones_own_makes_the_next_version_of_what_is_kept(tmp_path):
    text = tmp_path / "verses.txt"
    text.write_text("".join(f"Verse {number}: the crow said nothing at all, née Crow.\n" for number in range(3000)))
    for version in (1, 2):
        with demo(tmp_path / "kept", "--data", text, "--time-budget", "1s", "--prompt", "Verse 7") as process:
            output, _ = process.communicate(timeout=280)
        assert process.returncode == 0, output
        assert "datasets/demo/versions/1" in output
        assert f"models/demo/versions/{version}" in output
        assert "the same text to the last byte" in output


@pytest.mark.slow
def test_an_interrupted_demonstration_takes_its_training_with_it(tmp_path):
    with demo(tmp_path / "kept", "--time-budget", "10min") as process:
        try:
            line = ""
            while "train: " not in line:
                line = process.stdout.readline()
                assert line, "the demonstration ended before it trained"
            started = psutil.Process(process.pid).children(recursive=True)
            os.kill(process.pid, signal.SIGINT)
            process.communicate(timeout=60)
            assert process.returncode == 130
            assert not psutil.wait_procs(started, 20)[1]
            assert not list(living_workers(tmp_path))
        finally:
            process.kill()


def living_workers(directory, patience_s=20):
    """Workers of jobs below a directory that are still there after a while: they belong to nobody's children."""
    deadline_s = time.monotonic() + patience_s
    while found := [worker for worker in psutil.process_iter(["cmdline"]) if is_worker(worker, directory)]:
        if time.monotonic() > deadline_s:
            return found
        time.sleep(0.1)
    return []


def is_worker(process, directory):
    words = process.info["cmdline"] or []
    return "services.trainer.worker" in words and any(str(directory) in word for word in words)


def test_a_file_that_is_no_text_is_refused_before_anything_starts(tmp_path):
    binary = tmp_path / "image.bin"
    binary.write_bytes(b"\xff\xfe\x00binary")
    with demo(tmp_path / "kept", "--data", binary) as process:
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "is no UTF-8 text" in output
    assert not (tmp_path / "kept").exists()
