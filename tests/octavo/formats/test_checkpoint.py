"""Checkpoints are whole or not there, whatever happens while they are written or lie on disk."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo.errors import DataLoss, NotFound
from octavo.formats.checkpoint import MANIFEST, TENSORS, CheckpointFolder, arrays_equal

ROOT = Path(__file__).parents[3]


def state(seed: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {
        "weights": generator.standard_normal((16, 8), dtype=np.float32),
        "step": np.array(seed, np.int64),
        "empty": np.empty((0, 4), np.float32),
    }


def test_what_is_read_is_what_was_written(tmp_path):
    folder = CheckpointFolder(tmp_path / "checkpoints")
    entry = folder.write(7, state(7), {"loss": 1.5})
    checkpoint = folder.read(7)
    assert arrays_equal(checkpoint.tensors, state(7))
    assert checkpoint.entry == entry
    assert checkpoint.entry.facts == {"loss": 1.5}
    assert entry.size_bytes == sum(file.stat().st_size for file in entry.path.iterdir())


def test_without_checkpoints_there_is_none(tmp_path):
    folder = CheckpointFolder(tmp_path / "checkpoints")
    assert folder.read_newest() == (None, [])
    with pytest.raises(NotFound, match="step 3"):
        folder.read(3)


def test_writing_a_step_again_keeps_the_whole_one(tmp_path):
    folder = CheckpointFolder(tmp_path)
    first = folder.write(1, state(1), {})
    assert folder.write(1, state(2), {}) == first
    assert arrays_equal(folder.read(1).tensors, state(1))


def test_writing_a_step_again_replaces_a_damaged_one(tmp_path):
    folder = CheckpointFolder(tmp_path)
    entry = folder.write(1, state(1), {})
    (entry.path / TENSORS).write_bytes(b"x")
    folder.write(1, state(2), {})
    assert arrays_equal(folder.read(1).tensors, state(2))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_one_flipped_or_missing_byte_anywhere_falls_back_to_the_one_before(tmp_path_factory, data):
    folder = CheckpointFolder(tmp_path_factory.mktemp("checkpoints"))
    folder.write(1, state(1), {})
    entry = folder.write(2, state(2), {"note": "x"})
    file = entry.path / data.draw(st.sampled_from([TENSORS, MANIFEST]))
    content = bytearray(file.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        del content[position:]
    else:
        content[position] ^= data.draw(st.integers(1, 255))
    file.write_bytes(content)
    checkpoint, damages = folder.read_newest()
    if checkpoint.entry.step == 1:
        assert arrays_equal(checkpoint.tensors, state(1))
        assert [damage.step for damage in damages] == [2]
    else:  # a blank of the manifest that became another kind of blank
        assert file.name == MANIFEST
        assert checkpoint.entry.digest == entry.digest
        assert checkpoint.entry.facts == entry.facts
        assert arrays_equal(checkpoint.tensors, state(2))


def test_a_checkpoint_without_manifest_or_under_another_step_is_damaged(tmp_path):
    folder = CheckpointFolder(tmp_path)
    entry = folder.write(1, state(1), {})
    entry.path.rename(tmp_path / "step-0000000009")
    with pytest.raises(DataLoss, match="step 9"):
        folder.read(9)
    (tmp_path / "step-0000000009" / MANIFEST).unlink()
    with pytest.raises(DataLoss, match="no manifest"):
        folder.read(9)


def test_a_changed_fact_is_damage(tmp_path):
    folder = CheckpointFolder(tmp_path)
    entry = folder.write(1, state(1), {"best_loss": 1.5})
    sealed = json.loads((entry.path / MANIFEST).read_text())
    sealed["manifest"]["facts"]["best_loss"] = 1.4
    (entry.path / MANIFEST).write_text(json.dumps(sealed))
    with pytest.raises(DataLoss, match="seals"):
        folder.read(1)


def test_retention_keeps_the_newest_and_the_chosen(tmp_path):
    folder = CheckpointFolder(tmp_path)
    for step in range(1, 7):
        folder.write(step, state(step), {})
    assert folder.retain(2, keep_steps={3}) == [1, 2, 4]
    assert folder.steps() == [3, 5, 6]
    assert {entry.name for entry in tmp_path.iterdir()} == {f"step-{step:010d}" for step in (3, 5, 6)}


def test_a_writer_killed_at_any_moment_leaves_only_whole_checkpoints(tmp_path):
    program = textwrap.dedent(
        """
        import sys, numpy, pathlib
        from octavo.formats.checkpoint import CheckpointFolder
        folder = CheckpointFolder(pathlib.Path(sys.argv[1]))
        print("ready", flush=True)
        for step in range(1, 100_000):
            folder.write(step, {"w": numpy.full((64, 64), step, numpy.float32)}, {})
            folder.retain(3)
            print(step, flush=True)
        """
    )
    for attempt in range(4):
        directory = tmp_path / str(attempt)
        writer = subprocess.Popen(
            [sys.executable, "-c", program, directory], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        with writer, writer.stdout:
            durable = 0
            for line in writer.stdout:
                durable = int(line) if line.strip().isdigit() else durable
                if durable >= 3 + 7 * attempt:
                    break
            os.kill(writer.pid, signal.SIGKILL)
            rest = [int(line) for line in writer.stdout.read().split()]
        durable = max([durable, *rest])
        checkpoint, damages = CheckpointFolder(directory).read_newest()
        assert damages == []
        assert checkpoint.entry.step in {durable, durable + 1}
        assert (checkpoint.tensors["w"] == checkpoint.entry.step).all()
