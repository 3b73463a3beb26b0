"""Bytes to and from the registry: resumed where they broke off, verified by SHA-256, in place only when whole.

Each transfer is a generator of steps that knows the protocol and does nothing itself; two short drivers take the
steps, one for the event loop and one for threads, so that the protocol is written once.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import os
import random
import time
import uuid
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, TypeVar

from octavo.errors import Aborted, DataLoss, Internal, InvalidArgument, NotFound, OctavoError, OutOfRange, Unavailable
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
# When a server refuses a stream, grpc.aio may report the write that failed instead of why: with these words. The next
# attempt listens after its header before it talks, so that a refusal that is still due arrives as what it is.
_CUT = "Internal error from Core"
_LISTEN_S = 0.2

Progress: TypeAlias = Callable[[int, int], None]
"""Told how many bytes are through, and how many there are."""

_Result = TypeVar("_Result")


async def upload(blobs: Any, source: Path | bytes, *, progress: Progress | None = None) -> Blob:
    """Uploads a file or bytes; answers once the registry has them durably. What it has already is not sent.

    `blobs` is `AsyncClient.blobs`. Raises what the registry raises, Unavailable after 30 s without progress.
    """
    return await _drive(blobs, _uploading(source, progress or _ignore))


def upload_blocking(blobs: Any, source: Path | bytes, *, progress: Progress | None = None) -> Blob:
    """`upload`, for threads; `blobs` is `Client.blobs`."""
    return _drive_blocking(blobs, _uploading(source, progress or _ignore))


async def download(
    blobs: Any, name: str, target: Path, *, size_bytes: int | None = None, progress: Progress | None = None
) -> Path:
    """Downloads a blob to the file `target`, which appears whole and verified or not at all.

    What an earlier attempt left beside it is used. Raises DataLoss if the bytes do not have the digest,
    InvalidArgument if the blob does not have `size_bytes`.
    """
    return await _drive(blobs, _downloading(name, target, size_bytes, progress or _ignore))


def download_blocking(
    blobs: Any, name: str, target: Path, *, size_bytes: int | None = None, progress: Progress | None = None
) -> Path:
    """`download`, for threads."""
    return _drive_blocking(blobs, _downloading(name, target, size_bytes, progress or _ignore))


async def read(blobs: Any, name: str, offset: int = 0, length: int = 0) -> bytes:
    """Reads `length` bytes of a blob from `offset`, all to its end with 0. A whole blob is verified."""
    return await _drive(blobs, _reading(name, offset, length))


def read_blocking(blobs: Any, name: str, offset: int = 0, length: int = 0) -> bytes:
    """`read`, for threads."""
    return _drive_blocking(blobs, _reading(name, offset, length))


@dataclass(frozen=True, slots=True)
class _Ask:
    """Call a unary RPC; its answer comes back."""

    rpc: str
    request: Any


@dataclass(frozen=True, slots=True)
class _Send:
    """Stream an upload; the blob comes back."""

    requests: Iterator[WriteBlobRequest]


@dataclass(frozen=True, slots=True)
class _Receive:
    """Stream a blob into `sink`, chunk by chunk."""

    request: ReadBlobRequest
    sink: Callable[[bytes], object]


@dataclass(frozen=True, slots=True)
class _Work:
    """Run something that blocks; what it returns comes back."""

    work: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class _Wait:
    """Let time pass."""

    seconds: float


_Step: TypeAlias = _Ask | _Send | _Receive | _Work | _Wait
_Script: TypeAlias = Generator[_Step, Any, _Result]


async def _drive(blobs: Any, script: _Script[_Result]) -> _Result:
    """Takes the steps of a script on the event loop."""
    answer: Any = None
    failure: OctavoError | None = None
    with contextlib.closing(script):
        while True:
            try:
                step = script.throw(failure) if failure else script.send(answer)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            failure = None
            try:
                answer = await _taken(blobs, step)
            except OctavoError as error:
                failure = error


async def _taken(blobs: Any, step: _Step) -> Any:
    match step:
        case _Ask():
            return await getattr(blobs, step.rpc)(step.request)
        case _Send():
            return await blobs.WriteBlob(_read_ahead(step.requests))
        case _Receive():
            async for response in blobs.ReadBlob(step.request):
                await asyncio.to_thread(step.sink, response.chunk)
            return None
        case _Work():
            return await asyncio.to_thread(step.work)
        case _Wait():
            return await asyncio.sleep(step.seconds)


async def _read_ahead(requests: Iterator[WriteBlobRequest]) -> AsyncIterator[WriteBlobRequest]:
    while (request := await asyncio.to_thread(next, requests, None)) is not None:
        yield request


def _drive_blocking(blobs: Any, script: _Script[_Result]) -> _Result:
    """Takes the steps of a script in this thread."""
    answer: Any = None
    failure: OctavoError | None = None
    with contextlib.closing(script):
        while True:
            try:
                step = script.throw(failure) if failure else script.send(answer)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            failure = None
            try:
                answer = _taken_blocking(blobs, step)
            except OctavoError as error:
                failure = error


def _taken_blocking(blobs: Any, step: _Step) -> Any:
    match step:
        case _Ask():
            return getattr(blobs, step.rpc)(step.request)
        case _Send():
            return blobs.WriteBlob(step.requests)
        case _Receive():
            for response in blobs.ReadBlob(step.request):
                step.sink(response.chunk)
            return None
        case _Work():
            return step.work()
        case _Wait():
            return time.sleep(step.seconds)


@dataclass
class _Patience:
    """How long to go on: `PATIENCE_S` from the last progress, with growing, jittered waits."""

    best: int = -1
    failures: int = 0
    since_s: float = field(default_factory=time.monotonic)

    def after(self, error: OctavoError, reached: int) -> _Wait:
        """The wait before the next attempt. Raises `error` if it will not help, or none has for long."""
        if not _may_pass(error):
            raise error
        if reached > self.best:
            self.best, self.failures, self.since_s = reached, 0, time.monotonic()
        elif time.monotonic() - self.since_s > PATIENCE_S:
            raise error
        longest_s = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2**self.failures)
        self.failures += 1
        return _Wait(random.uniform(longest_s / 2, longest_s))  # noqa: S311 - spreads retries, hides nothing


def _may_pass(error: OctavoError) -> bool:
    """Whether another attempt may fare better."""
    is_cut = isinstance(error, Internal) and error.message == _CUT
    is_offset = isinstance(error, OutOfRange) and error.reason == errors_pb2.REASON_OFFSET_MISMATCH
    return is_cut or is_offset or isinstance(error, Unavailable | Aborted)


def _uploading(source: Path | bytes, progress: Progress) -> _Script[Blob]:
    digest, size_bytes = yield _Work(lambda: _described(source))
    # The name says the content: another process that uploads the same bytes goes on with them.
    header = WriteBlobRequest.Header(upload=f"uploads/{digest}", blob=f"blobs/sha256:{digest}", size_bytes=size_bytes)
    patience, committed, listen_s = _Patience(), 0, 0.0
    while True:
        try:
            blob = yield from _existing(header.blob)
            if blob is None:
                committed = header.offset = yield from _committed(header.upload)
                blob = yield _Send(_requests(source, header, progress, listen_s))
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


def _existing(name: str) -> _Script[Blob | None]:
    try:
        return (yield _Ask("StatBlob", StatBlobRequest(name=name)))  # type: ignore[no-any-return]
    except NotFound:
        return None


def _committed(upload_name: str) -> _Script[int]:
    try:
        answer = yield _Ask("QueryWrite", QueryWriteRequest(upload=upload_name))
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


class _Partial:
    """A download under way: a hidden file beside its target, hashed as it grows."""

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
        while block := self._file.read(CHUNK_BYTES):
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

    def close(self) -> None:
        """Keeps what is there for another attempt."""
        self._file.close()

    def _opened(self) -> BinaryIO:
        file = self._path.open("a+b", buffering=0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # Somebody else downloads the same to here: a file of our own, which nobody else will take up.
            file.close()
            self._path = self._path.with_name(f"{self._path.name}.{uuid.uuid4().hex}")
            file = self._path.open("a+b", buffering=0)
        return file


def _downloading(name: str, target: Path, size_bytes: int | None, progress: Progress) -> _Script[Path]:
    digest = _digest_in(name)
    if (yield _Work(lambda: _is_there(target, digest))):
        return target
    patience = _Patience()
    total = yield from _size(name, size_bytes, patience)
    partial: _Partial = yield _Work(lambda: _Partial(target, digest))
    try:
        yield _Work(lambda: partial.restart(total))
        was_resumed = partial.size_bytes > 0
        yield from _filling(name, partial, total, progress, patience)
        if was_resumed and not partial.has_digest():
            partial.restart(0)
            yield from _filling(name, partial, total, progress, patience)
        if not partial.has_digest():
            partial.restart(0)
            raise _damaged(name)
        yield _Work(partial.publish)
    finally:
        partial.close()
    return target


def _filling(name: str, partial: _Partial, total: int, progress: Progress, patience: _Patience) -> _Script[None]:
    def sink(chunk: bytes) -> None:
        partial.write(chunk)
        progress(partial.size_bytes, total)

    while partial.size_bytes < total:
        try:
            yield _Receive(ReadBlobRequest(name=name, offset=partial.size_bytes), sink)
        except OctavoError as error:
            yield patience.after(error, partial.size_bytes)


def _reading(name: str, offset: int, length: int) -> _Script[bytes]:
    digest = _digest_in(name)
    received = bytearray()
    patience = _Patience()
    while True:
        wanted = ReadBlobRequest(
            name=name, offset=offset + len(received), length=length - len(received) if length else 0
        )
        try:
            yield _Receive(wanted, received.extend)
            break
        except OctavoError as error:
            if length and len(received) == length:
                break
            yield patience.after(error, len(received))
    if not offset and not length and hashlib.sha256(received).hexdigest() != digest:
        raise _damaged(name)
    return bytes(received)


def _size(name: str, expected: int | None, patience: _Patience) -> _Script[int]:
    while True:
        try:
            blob = yield _Ask("StatBlob", StatBlobRequest(name=name))
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
