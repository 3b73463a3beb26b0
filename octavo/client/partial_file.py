"""A download under way: a hidden file beside its target, which takes the target's place when it is whole."""

import fcntl
import hashlib
import os
import uuid
from pathlib import Path
from typing import BinaryIO

_READ_BYTES = 1 << 19


class PartialFile:
    """One such file, hashed as it grows. Every method blocks."""

    def __init__(self, target: Path, digest: str) -> None:
        self._target = target
        self._digest = digest
        target.parent.mkdir(parents=True, exist_ok=True)
        self._path = target.with_name(f".{target.name}.{digest[:16]}.partial")
        self._file = self._opened()
        self._hasher = hashlib.sha256()

    @property
    def size_bytes(self) -> int:
        """How much is there."""
        return self._file.tell()

    def restart(self, limit_bytes: int) -> None:
        """Takes up what is there, or nothing of it if it is more than `limit_bytes`."""
        self._hasher = hashlib.sha256()
        self._file.seek(0)
        if os.fstat(self._file.fileno()).st_size > limit_bytes:
            self._file.truncate(0)
        while block := self._file.read(_READ_BYTES):
            self._hasher.update(block)

    def write(self, chunk: bytes) -> None:
        """Adds the next bytes."""
        self._file.write(chunk)
        self._hasher.update(chunk)

    def has_digest(self) -> bool:
        """Whether the bytes are those that were asked for."""
        return self._hasher.hexdigest() == self._digest

    def publish(self) -> None:
        """Puts the bytes, durably, where the target is."""
        os.fdatasync(self._file.fileno())
        self._path.replace(self._target)
        folder = os.open(self._target.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def close(self) -> None:
        """Keeps what is there for another attempt."""
        self._file.close()

    def _opened(self) -> BinaryIO:
        file = self._path.open("a+b", buffering=0)
        if not self._is_ours(file):
            # Somebody else downloads the same to here: a file of our own, which nobody else will take up.
            file.close()
            self._path = self._path.with_name(f"{self._path.name}.{uuid.uuid4().hex}")
            file = self._path.open("a+b", buffering=0)
        return file

    def _is_ours(self, file: BinaryIO) -> bool:
        """Whether nobody else writes the file, and nobody has put it where its target is since we opened it."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return os.path.samestat(os.fstat(file.fileno()), self._path.stat())
        except (BlockingIOError, FileNotFoundError):
            return False
