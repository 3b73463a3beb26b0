"""Uploads on disk: `staging/<upload>/<digest>-<size>`, a file that grows and is hashed as it grows.

The file's name says all there is to know of it, so that a restart needs nothing else to go on.
"""

import fcntl
import hashlib
import math
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from octavo.errors import Aborted, InvalidArgument, OutOfRange
from octavo.v1 import errors_pb2
from services.registry.blob_files import (
    READ_BYTES,
    BlobFiles,
    full_disk_explained,
    make_directory,
    sync_directory,
)

# How much an upload may lose with the power: at 500 MB/s an eighth of a second.
_SYNC_BYTES = 64 << 20


RELEASE_WITHIN_S = 0.02
"""How long the stream that held an upload may take to let go of it, in seconds."""


class Announcement(NamedTuple):
    """What an upload says it will be."""

    upload: str
    digest: str
    size_bytes: int

    @property
    def file_name(self) -> str:
        """The name of the staged file."""
        return f"{self.digest}-{self.size_bytes}"


class StagedUpload:
    """One staged file, open for one writer. Every method blocks and may be called from any thread."""

    def __init__(self, files: BlobFiles, announced: Announcement) -> None:
        self.size_bytes = 0
        self.synced_bytes = 0
        self._files = files
        self._announced = announced
        self._lock = threading.Lock()
        self._hasher = hashlib.sha256()
        self._folder = files.staging / announced.upload
        self._path = self._folder / announced.file_name
        self._descriptor = -1

    def open(self, offset: int) -> None:
        """Opens the upload, or begins it, to go on at `offset`; what lies beyond is dropped.

        Raises InvalidArgument if the name was announced for other bytes, OutOfRange if less than `offset` is
        there, Aborted if another stream holds it.
        """
        with self._lock, full_disk_explained():
            self._check_name()
            make_directory(self._folder)
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self._take_up(offset)

    def append(self, chunk: bytes) -> None:
        """Adds the next bytes, and syncs them every 64 MiB.

        Raises InvalidArgument, and drops the upload, if there are more than announced; ResourceExhausted, and
        drops it too, if the disk is full: what cannot be finished shall not take the room of others.
        """
        with self._lock:
            self._check_open()
            if self.size_bytes + len(chunk) > self._announced.size_bytes:
                self._drop()
                raise _wrong_size(self._announced, f"more than {self._announced.size_bytes}")
            try:
                with full_disk_explained():
                    self._write(chunk)
            except BaseException:
                self._drop()
                raise

    def publish(self) -> None:
        """Syncs, verifies and moves the bytes to where blobs are.

        Raises InvalidArgument if they are fewer than announced (the upload can go on), or if they have another
        digest (it is dropped).
        """
        with self._lock:
            self._check_open()
            self._sync()
            if self.size_bytes != self._announced.size_bytes:
                raise _wrong_size(self._announced, str(self.size_bytes))
            if self._hasher.hexdigest() != self._announced.digest:
                self._drop()
                raise _wrong_digest(self._announced, self._hasher.hexdigest())
            self._files.publish(self._path, self._announced.digest)
            shutil.rmtree(self._folder, ignore_errors=True)

    def close(self) -> None:
        """Lets go of the file, after whatever is being written; what is there stays."""
        with self._lock:
            self._let_go()

    def _check_name(self) -> None:
        others = [path for path in _staged(self._folder) if path != self._path]
        if others:
            raise InvalidArgument.field(
                "header.upload",
                f"uploads/{self._announced.upload} was announced for sha256:{others[0].name.replace('-', ' with ')} "
                "bytes; choose a new name for other bytes",
            )

    def _take_up(self, offset: int) -> None:
        # A stream that is taken over lets go at its next message; a busy machine may need a moment for that.
        deadline_s = time.monotonic() + RELEASE_WITHIN_S
        while not (is_held := _locked(self._descriptor)) and time.monotonic() < deadline_s:
            time.sleep(0.01)
        # What was opened may have become a blob while this stream waited: it must not be written to any more.
        if not is_held or not _is_at(self._descriptor, self._path):
            raise Aborted(
                errors_pb2.REASON_OFFSET_MISMATCH,
                f"another stream is writing uploads/{self._announced.upload}; ask QueryWrite, then go on",
            )
        stored = os.fstat(self._descriptor).st_size
        if offset > stored:
            raise _wrong_offset(self._announced.upload, offset, stored)
        os.ftruncate(self._descriptor, offset)
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        while self.size_bytes < offset:
            block = os.read(self._descriptor, min(READ_BYTES, offset - self.size_bytes))
            self._hasher.update(block)
            self.size_bytes += len(block)
        self._sync()
        sync_directory(self._folder)

    def _write(self, chunk: bytes) -> None:
        view = memoryview(chunk)
        while view:
            view = view[os.write(self._descriptor, view) :]
        self._hasher.update(chunk)
        self.size_bytes += len(chunk)
        if self.size_bytes - self.synced_bytes >= _SYNC_BYTES:
            self._sync()

    def _sync(self) -> None:
        os.fdatasync(self._descriptor)
        self.synced_bytes = self.size_bytes

    def _drop(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._let_go()

    def _let_go(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _check_open(self) -> None:
        if self._descriptor < 0:
            raise RuntimeError("the staged upload is closed")


def committed_bytes(files: BlobFiles, upload: str) -> int | None:
    """How many bytes of an upload that nobody writes are on disk, synced; None if there is no such upload."""
    for path in _staged(files.staging / upload):
        with path.open("rb") as file:
            os.fdatasync(file.fileno())
            return os.fstat(file.fileno()).st_size
    return None


def sweep(files: BlobFiles, expiry_s: float, clock_s: Callable[[], float] = time.time) -> int:
    """Removes the uploads that nobody went on with for `expiry_s`; returns how many."""
    expired = [folder for folder in files.staging.iterdir() if _touched_s(folder) < clock_s() - expiry_s]
    for folder in expired:
        shutil.rmtree(folder, ignore_errors=True)
    return len(expired)


def _touched_s(folder: Path) -> float:
    """When somebody last wrote an upload; never in the past for one that is published while we look."""
    try:
        return max(path.stat().st_mtime for path in (folder, *_staged(folder)))
    except FileNotFoundError:
        return math.inf


def _staged(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _wrong_size(announced: Announcement, received: str) -> InvalidArgument:
    return InvalidArgument.field(
        "header.size_bytes",
        f"{announced.size_bytes} bytes were announced and {received} received",
        reason=errors_pb2.REASON_SIZE_MISMATCH,
        upload=f"uploads/{announced.upload}",
    )


def _wrong_digest(announced: Announcement, digest: str) -> InvalidArgument:
    return InvalidArgument.field(
        "header.blob",
        f"the bytes received are sha256:{digest}, announced were sha256:{announced.digest}; the upload is "
        "dropped: begin again from 0, under the name of what is sent",
        reason=errors_pb2.REASON_DIGEST_MISMATCH,
        received=f"blobs/sha256:{digest}",
    )


def _wrong_offset(upload: str, offset: int, stored: int) -> OutOfRange:
    return OutOfRange(
        errors_pb2.REASON_OFFSET_MISMATCH,
        f"uploads/{upload} has {stored} bytes and cannot go on at {offset}; QueryWrite says where",
        violations={"header.offset": f"{offset} is beyond the {stored} bytes that are there"},
        committed_size_bytes=stored,
    )


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
