import fcntl
import hashlib
from pathlib import Path

import pytest

from octavo.client.partial_file import PartialFile

CONTENT = b"content"
DIGEST = hashlib.sha256(CONTENT).hexdigest()


def finish(partial: PartialFile) -> None:
    partial.write(CONTENT)
    assert partial.has_digest()
    partial.publish()
    partial.close()


def test_a_file_that_became_its_target_before_it_was_locked_is_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"
    first, lock = PartialFile(target, DIGEST), fcntl.flock

    def late(file, operation) -> None:
        if not target.exists():
            finish(first)
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    second = PartialFile(target, DIGEST)
    second.restart(0)
    assert target.read_bytes() == CONTENT
    finish(second)
    assert target.read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
