"""The README's first ten minutes, word for word, but for the addresses of a suite on free ports."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text()
SKIPPED = ("make ", "source ", "octavo up")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def console_commands():
    """Each command of the README's console blocks, continued lines joined."""
    for block in blocks("console"):
        yield from (line for line in block.replace("\\\n", " ").splitlines() if not line.startswith(SKIPPED))


def test_the_commands_that_are_skipped_exist():
    makefile = (Path(__file__).parents[2] / "Makefile").read_text()
    for block in blocks("console"):
        for target in re.findall(r"^make (\w+)", block, re.MULTILINE):
            assert f"\n{target}:" in makefile


@pytest.mark.slow
def test_the_first_ten_minutes_are_as_the_readme_tells(suites, corpus):
    suite = suites()
    corpus.rename(corpus.with_name("my-text.txt"))
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OCTAVO_DATA_DIR": str(suite.data_dir),
    }
    outputs = {}
    for command in console_commands():
        here = command.replace("http://127.0.0.1:8080", suite.gateway)
        result = subprocess.run(
            shlex.split(here),
            cwd=corpus.parent,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
        outputs[command] = result.stdout
    assert len(outputs) >= 7
    (stream,) = [output for command, output in outputs.items() if "streamGenerate" in command]
    assert "event: done" in stream
    (script,) = blocks("python")
    addresses = {name: at for name, at in suite.programs.items() if name != "gateway"}
    assert "with Client() as client" in script
    script = script.replace("Client()", f"Client(Addresses(**{addresses}))")
    script = f"from octavo.addresses import Addresses\n{script}"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()
