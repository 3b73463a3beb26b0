"""Bytes to and from the registry: resumed where they broke off, verified by SHA-256, in place only when whole.

Each transfer is a script of steps that knows the protocol and does nothing itself, so that the protocol is written
once; transfer_steps has the drivers, one for the event loop and one for threads.
"""

import hashlib
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from octavo.client.partial_file import PartialFile
from octavo.client.transfer_steps import Ask, Receive, Script, Send, Wait, Work, drive, drive_blocking
from octavo.errors import Aborted, DataLoss, InvalidArgument, NotFound, OctavoError, OutOfRange, Unavailable
from octavo.v1 import errors_pb2
from octavo.v1.blobs_pb2 import (
    Blob,
    QueryWriteRequest,
    ReadBlobRequest,
    StatBlobRequest,
    WriteBlobRequest,
)

# gRPC moves 512 KiB at a third of the CPU time that 1 MiB costs (0.33 s and 1.0 s a 512 MiB, measured).
CHUNK_BYTES = 1 << 19
PATIENCE_S = 30.0
"""How long a transfer goes on trying without a byte of progress, in seconds."""
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, 3.0
# When a server refuses a stream, the refusal may be lost to the write that failed. The next attempt listens after its
# header before it talks, so that a refusal that is still due arrives as what it is.
_LISTEN_S = 0.2

Progress: TypeAlias = Callable[[int, int], None]
"""Told how many bytes are through, and how many there are."""

_Result = TypeVar("_Result")


async def upload(blobs: Any, source: Path | bytes, *, progress: Progress | None = None) -> Blob:
    """Uploads a file or bytes; answers once the registry has them durably. What it has already is not sent.

    `blobs` is `AsyncClient.blobs`. Raises what the registry raises, Unavailable after 30 s without progress.
    """
    return await drive(blobs, _uploading(source, progress or _ignore))


def upload_blocking(blobs: Any, source: Path | bytes, *, progress: Progress | None = None) -> Blob:
    """`upload`, for threads; `blobs` is `Client.blobs`."""
    return drive_blocking(blobs, _uploading(source, progress or _ignore))


async def download(
    blobs: Any, name: str, target: Path, *, size_bytes: int | None = None, progress: Progress | None = None
) -> Path:
    """Downloads a blob to the file `target`, which appears whole and verified or not at all.

    What an earlier attempt left beside it is used. Raises DataLoss if the bytes do not have the digest,
    InvalidArgument if the blob does not have `size_bytes`.
    """
    return await drive(blobs, _downloading(name, target, size_bytes, progress or _ignore))


def download_blocking(
    blobs: Any, name: str, target: Path, *, size_bytes: int | None = None, progress: Progress | None = None
) -> Path:
    """`download`, for threads."""
    return drive_blocking(blobs, _downloading(name, target, size_bytes, progress or _ignore))


async def read(blobs: Any, name: str, offset: int = 0, length: int = 0) -> bytes:
    """Reads `length` bytes of a blob from `offset`, all to its end with 0. A whole blob is verified."""
    return await drive(blobs, _reading(name, offset, length))


def read_blocking(blobs: Any, name: str, offset: int = 0, length: int = 0) -> bytes:
    """`read`, for threads."""
    return drive_blocking(blobs, _reading(name, offset, length))


@dataclass
class _Patience:
    """How long to go on: `PATIENCE_S` from the last progress, with growing, jittered waits."""

    best: int = -1
    failures: int = 0
    since_s: float = field(default_factory=time.monotonic)

    def after(self, error: OctavoError, reached: int) -> Wait:
        """The wait before the next attempt. Raises `error` if it will not help, or none has for long."""
        if not _may_pass(error):
            raise error
        if reached > self.best:
            self.best, self.failures, self.since_s = reached, 0, time.monotonic()
        elif time.monotonic() - self.since_s > PATIENCE_S:
            raise error
        longest_s = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2**self.failures)
        self.failures += 1
        return Wait(random.uniform(longest_s / 2, longest_s))  # noqa: S311 - spreads retries, hides nothing


def _may_pass(error: OctavoError) -> bool:
    """Whether another attempt may fare better."""
    is_offset = isinstance(error, OutOfRange) and error.reason == errors_pb2.REASON_OFFSET_MISMATCH
    return is_offset or isinstance(error, Unavailable | Aborted)


def _uploading(source: Path | bytes, progress: Progress) -> Script[Blob]:
    digest, size_bytes = yield Work(lambda: _described(source))
    # The name says the content: another process that uploads the same bytes goes on with them.
    header = WriteBlobRequest.Header(upload=f"uploads/{digest}", blob=f"blobs/sha256:{digest}", size_bytes=size_bytes)
    patience, committed, listen_s = _Patience(), 0, 0.0
    while True:
        try:
            blob = yield from _existing(header.blob)
            if blob is None:
                committed = header.offset = yield from _committed(header.upload)
                blob = yield Send(_requests(source, header, progress, listen_s))
            progress(size_bytes, size_bytes)
            return blob
        except InvalidArgument as error:
            # What an earlier, broken-off attempt left may be damaged; the registry has dropped it.
            if error.reason != errors_pb2.REASON_DIGEST_MISMATCH or not committed:
                raise
            committed = 0
        except OctavoError as error:
            listen_s = _LISTEN_S
            yield patience.after(error, committed)


def _existing(name: str) -> Script[Blob | None]:
    try:
        return (yield Ask("StatBlob", StatBlobRequest(name=name)))  # type: ignore[no-any-return]
    except NotFound:
        return None


def _committed(upload_name: str) -> Script[int]:
    try:
        answer = yield Ask("QueryWrite", QueryWriteRequest(upload=upload_name))
    except NotFound:
        return 0
    return int(answer.committed_size_bytes)


def _described(source: Path | bytes) -> tuple[str, int]:
    """The digest, in hexadecimal, and the size in bytes."""
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest(), len(source)
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return digest, file.tell()


def _requests(
    source: Path | bytes, header: WriteBlobRequest.Header, progress: Progress, listen_s: float
) -> Iterator[WriteBlobRequest]:
    yield WriteBlobRequest(header=header)
    time.sleep(listen_s)
    position = header.offset
    for chunk in _chunks(source, position):
        yield WriteBlobRequest(chunk=chunk)
        position += len(chunk)
        progress(position, header.size_bytes)


def _chunks(source: Path | bytes, offset: int) -> Iterator[bytes]:
    if isinstance(source, bytes):
        for begin in range(offset, len(source), CHUNK_BYTES):
            yield source[begin : begin + CHUNK_BYTES]
        return
    with source.open("rb", buffering=0) as file:
        file.seek(offset)
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _downloading(name: str, target: Path, size_bytes: int | None, progress: Progress) -> Script[Path]:
    digest = _digest_in(name)
    if (yield Work(lambda: _is_there(target, digest))):
        return target
    patience = _Patience()
    total = yield from _size(name, size_bytes, patience)
    with ExitStack() as files:
        # Opened and noted in one step: whoever is cancelled meanwhile closes it all the same.
        partial: PartialFile = yield Work(lambda: files.enter_context(closing(PartialFile(target, digest))))
        yield Work(lambda: partial.restart(total))
        was_resumed = partial.size_bytes > 0
        yield from _filling(name, partial, total, progress, patience)
        if was_resumed and not partial.has_digest():
            partial.restart(0)
            yield from _filling(name, partial, total, progress, patience)
        if not partial.has_digest():
            partial.restart(0)
            raise _damaged(name)
        yield Work(partial.publish)
    return target


def _filling(name: str, partial: PartialFile, total: int, progress: Progress, patience: _Patience) -> Script[None]:
    def sink(chunk: bytes) -> None:
        partial.write(chunk)
        progress(partial.size_bytes, total)

    while partial.size_bytes < total:
        try:
            yield Receive(ReadBlobRequest(name=name, offset=partial.size_bytes), sink)
        except OctavoError as error:
            yield patience.after(error, partial.size_bytes)


def _reading(name: str, offset: int, length: int) -> Script[bytes]:
    digest = _digest_in(name)
    received = bytearray()
    patience = _Patience()
    while True:
        wanted = ReadBlobRequest(
            name=name, offset=offset + len(received), length=length - len(received) if length else 0
        )
        try:
            yield Receive(wanted, received.extend)
            break
        except OctavoError as error:
            if length and len(received) == length:
                break
            yield patience.after(error, len(received))
    if not offset and not length and hashlib.sha256(received).hexdigest() != digest:
        raise _damaged(name)
    return bytes(received)


def _size(name: str, expected: int | None, patience: _Patience) -> Script[int]:
    while True:
        try:
            blob = yield Ask("StatBlob", StatBlobRequest(name=name))
            break
        except OctavoError as error:
            yield patience.after(error, -1)
    size_bytes = int(blob.size_bytes)
    if expected is not None and size_bytes != expected:
        raise InvalidArgument.field(
            "size_bytes",
            f"{name} has {size_bytes} bytes, not {expected}",
            reason=errors_pb2.REASON_SIZE_MISMATCH,
        )
    return size_bytes


def _is_there(target: Path, digest: str) -> bool:
    if not target.is_file():
        return False
    with target.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == digest


def _digest_in(name: str) -> str:
    digest = name.removeprefix("blobs/sha256:")
    if len(digest) != 64 or digest == name:
        raise InvalidArgument.field(
            "name", f"{name!r} is not a blob; `blobs/sha256:` and 64 digits", reason=errors_pb2.REASON_INVALID_NAME
        )
    return digest


def _damaged(name: str) -> DataLoss:
    return DataLoss(errors_pb2.REASON_BLOB_CORRUPT, f"the bytes received are not {name}; download it again", blob=name)


def _ignore(_done_bytes: int, _total_bytes: int) -> None:
    """What is told to nobody."""
