"""The examples that are no demonstration: they run as they stand."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from examples.standard_library import corpus

ROOT = Path(__file__).parents[2]


def test_the_corpus_is_the_same_every_time_and_within_its_size():
    text = corpus(200_000)
    assert text == corpus(200_000)
    assert 50_000 < len(text) <= 200_000 + 2 * 100
    assert text.isascii()
    assert "def " in text


@pytest.mark.slow
def test_the_quickstart_trains_and_speaks_against_a_running_suite(suite):
    environment = {**os.environ} | {
        f"OCTAVO_{name.upper()}": address for name, address in suite.addresses.items() if name != "gateway"
    }
    command = [sys.executable, "-m", "examples.quickstart", "20"]
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "models/quickstart/versions/" in result.stdout
    assert "validation loss" in result.stdout
