"""Blobs as files: what is done with a file whose bytes have changed."""

import hashlib
from collections.abc import Generator
from pathlib import Path

import pytest

from octavo.errors import DataLoss
from services.registry.blob_files import BlobFiles

CONTENT = b"content" * 100_000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def files(tmp_path: Path) -> BlobFiles:
    files = BlobFiles(tmp_path, 0)
    files.prepare()
    publish(files, CONTENT)
    return files


def publish(files: BlobFiles, content: bytes) -> None:
    staged = files.staging / "staged"
    staged.write_bytes(content)
    files.publish(staged, DIGEST)


def reading(files: BlobFiles) -> Generator[bytes, None, None]:
    """A reader that has begun."""
    blocks = files.blocks(DIGEST, 0, len(CONTENT), len(CONTENT))
    next(blocks)
    return blocks


def test_a_corrupt_file_is_set_aside_by_the_first_reader_that_sees_it(files: BlobFiles) -> None:
    files.path(DIGEST).write_bytes(b"x" + CONTENT[1:])
    with pytest.raises(DataLoss):
        list(reading(files))
    assert files.size(DIGEST) is None


def test_a_slow_reader_of_the_corrupt_file_leaves_the_mended_one_alone(files: BlobFiles) -> None:
    files.path(DIGEST).write_bytes(b"x" + CONTENT[1:])
    quick, slow, slower = reading(files), reading(files), reading(files)
    with pytest.raises(DataLoss):
        list(quick)
    with pytest.raises(DataLoss):
        list(slow)  # nothing is left to set aside
    publish(files, CONTENT)
    with pytest.raises(DataLoss):
        list(slower)
    assert b"".join(files.blocks(DIGEST, 0, len(CONTENT), len(CONTENT))) == CONTENT
