"""Blobs as files: `blobs/sha256/ab/<hex>`, reached only by a rename of synced and verified bytes.

Uploads under way lie below `staging/`, files whose bytes no longer have their digest below `corrupt/`. Knows
nothing of the database: a file here is a blob once a row says so.
"""

import errno
import hashlib
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedRandom
from pathlib import Path

from octavo.errors import DataLoss, ResourceExhausted
from octavo.v1 import errors_pb2

# gRPC and malloc move 512 KiB at a third of the CPU time that 1 MiB costs (0.33 s and 1.0 s a 512 MiB, measured).
READ_BYTES = 1 << 19
# A full file system, a full quota, a limit on the size of files: for the writer they are the same.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class BlobFiles:
    """The files below `directory`. Every method blocks."""

    def __init__(
        self,
        directory: Path,
        reserve_bytes: int,
        free_bytes: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free,
    ) -> None:
        self.staging = directory / "staging"
        self._blobs = directory / "blobs" / "sha256"
        self._corrupt = directory / "corrupt"
        self._reserve_bytes = reserve_bytes
        self._free_bytes = free_bytes
        # Between a look at what a name stands for and a move of it, nothing else may take its place.
        self._setting_aside = threading.Lock()

    def prepare(self) -> None:
        """Makes the folders, durably."""
        for directory in (self._blobs, self.staging, self._corrupt):
            make_directory(directory)

    def path(self, digest: str) -> Path:
        """Where the blob is, or would be."""
        return self._blobs / digest[:2] / digest

    def size(self, digest: str) -> int | None:
        """The size of the blob's file in bytes; None if there is none."""
        try:
            return self.path(digest).stat().st_size
        except FileNotFoundError:
            return None

    def check_room(self, wanted_bytes: int) -> None:
        """Raises ResourceExhausted if the disk cannot take `wanted_bytes` and keep its reserve."""
        free = self._free_bytes(self.staging)
        if free < wanted_bytes + self._reserve_bytes:
            raise ResourceExhausted(
                errors_pb2.REASON_STORAGE_FULL,
                f"{wanted_bytes} bytes do not fit on the registry's disk: {free} are free, and "
                f"{self._reserve_bytes} stay free; make room, then go on",
                wanted_bytes=wanted_bytes,
                free_bytes=free,
            )

    def publish(self, staged: Path, digest: str) -> None:
        """Moves synced and verified bytes to their place, so that a crash leaves them there or where they were."""
        target = self.path(digest)
        if not target.parent.is_dir():
            make_directory(target.parent)
        with self._setting_aside:
            staged.rename(target)
        sync_directory(target.parent)

    @contextmanager
    def new_file(self) -> Iterator["NewFile"]:
        """A file to write a blob of our own making to; gone afterwards unless it was published."""
        folder = self.staging / str(uuid.uuid4())
        make_directory(folder)
        try:
            with full_disk_explained(), (folder / "new").open("w+b") as file:
                yield NewFile(self, file, folder / "new")
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def has_digest(self, digest: str) -> bool:
        """Reads the blob's file and says whether it is what its name says."""
        with self.path(digest).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == digest

    def set_aside(self, digest: str, descriptor: int) -> None:
        """Takes the open, corrupt file out of the way, so that the next upload mends the blob; kept to be looked at.

        Leaves a file alone that has taken its place meanwhile: another reader saw the damage, and it was mended.
        """
        source = self.path(digest)
        with self._setting_aside:
            if not _is_at(descriptor, source):
                return
            source.replace(self._corrupt / digest)
        sync_directory(source.parent)

    def blocks(self, digest: str, offset: int, length: int, size_bytes: int) -> Generator[bytes, None, None]:
        """The bytes from `offset`, `length` of them, in blocks of up to 512 KiB.

        A whole read is hashed as it goes; its last block comes only if the digest is right, else DataLoss.
        """
        is_whole = offset == 0 and length == size_bytes
        hasher = hashlib.sha256()
        with self.path(digest).open("rb", buffering=0) as file:
            file.seek(offset)
            remaining = length
            while remaining:
                block = file.read(min(READ_BYTES, remaining))
                remaining -= len(block)
                hasher.update(block if is_whole else b"")
                is_wrong = is_whole and not remaining and hasher.hexdigest() != digest
                if not block or is_wrong:
                    self.set_aside(digest, file.fileno())
                    raise corrupt(digest)
                yield block


@dataclass(frozen=True, slots=True)
class NewFile:
    """A blob in the making, whose digest is known when it is written."""

    files: BlobFiles
    file: BufferedRandom
    path: Path

    def publish(self) -> tuple[str, int]:
        """Syncs the bytes and moves them to where blobs are; returns their digest and size."""
        self.file.flush()
        os.fdatasync(self.file.fileno())
        self.file.seek(0)
        digest = hashlib.file_digest(self.file, "sha256").hexdigest()
        size_bytes = self.file.tell()
        self.files.publish(self.path, digest)
        return digest, size_bytes


def corrupt(digest: str) -> DataLoss:
    """The error that says so, and how to mend it."""
    name = f"blobs/sha256:{digest}"
    return DataLoss(
        errors_pb2.REASON_BLOB_CORRUPT,
        f"the bytes of {name} on the registry's disk have changed; upload it again to mend it",
        blob=name,
    )


@contextmanager
def full_disk_explained() -> Iterator[None]:
    """Turns the failures of a full disk into ResourceExhausted."""
    try:
        yield
    except OSError as failure:
        if failure.errno not in _FULL:
            raise
        raise ResourceExhausted(
            errors_pb2.REASON_STORAGE_FULL,
            f"the registry cannot store more ({os.strerror(failure.errno)}): the upload is dropped; make room, "
            "then begin again",
        ) from failure


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is the one that the path names now."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def make_directory(path: Path) -> None:
    """Makes a folder and those above it, each durable in the one above."""
    if path.is_dir():
        return
    make_directory(path.parent)
    path.mkdir(exist_ok=True)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Makes what a folder lists durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
