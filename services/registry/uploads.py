"""Writing and reading blobs: streams on the event loop, files in the disk threads, rows last.

The order of a write: stage, fdatasync, verify digest and size, rename, fsync the folder, commit the row, answer.
An upload's name belongs to its newest stream: a writer that comes back takes over from its own broken connection.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from octavo.errors import Aborted, InvalidArgument, NotFound, OutOfRange
from octavo.v1 import errors_pb2
from octavo.v1.blobs_pb2 import (
    Blob,
    QueryWriteResponse,
    ReadBlobRequest,
    ReadBlobResponse,
    WriteBlobRequest,
)
from services.registry import blobs, staging
from services.registry.blob_files import BlobFiles
from services.registry.names import blob_in, upload_in
from services.registry.staging import Announcement, StagedUpload
from services.registry.transactions import Transactions

_Answer = TypeVar("_Answer")
_CHUNK_BYTES = 1 << 20


@dataclass(eq=False, slots=True)
class _Stream:
    """One WriteBlob under way."""

    announced: Announcement
    offset: int
    staged: StagedUpload | None = None
    task: asyncio.Task[None] | None = None


class Uploads:
    """Takes uploads in and streams blobs out. File work runs in `disk`, off the event loop."""

    def __init__(self, files: BlobFiles, transactions: Transactions, disk: Executor, max_blob_bytes: int) -> None:
        self._files = files
        self._transactions = transactions
        self._disk = disk
        self._max_blob_bytes = max_blob_bytes
        self._active: dict[str, _Stream] = {}

    async def write(self, requests: AsyncIterator[WriteBlobRequest], actor: str) -> Blob:
        """Takes one stream of an upload in; answers once the blob is durable."""
        stream = self._checked(await _header(requests))
        blob = await self._existing(stream.announced, actor)
        if blob is not None:
            return blob
        upload = stream.announced.upload
        predecessor = self._active.get(upload)
        self._active[upload] = stream
        stream.task = asyncio.create_task(self._receive(stream, predecessor, requests))
        try:
            await stream.task
        except asyncio.CancelledError:
            if self._active.get(upload) is stream:
                raise
            raise _taken_over(upload) from None
        finally:
            if self._active.get(upload) is stream:
                del self._active[upload]
        return await self._register(stream.announced, actor)

    async def query(self, name: str) -> QueryWriteResponse:
        """How much of an upload is synced to disk; NotFound if there is none of that name."""
        upload = upload_in(name)
        stream = self._active.get(upload)
        if stream is not None and stream.staged is not None:
            return QueryWriteResponse(committed_size_bytes=stream.staged.synced_bytes)
        committed = await self._in_thread(lambda: staging.committed_bytes(self._files, upload))
        if committed is not None:
            return QueryWriteResponse(committed_size_bytes=committed)
        completed = await self._transactions.read(
            lambda connection: blobs.find_completed(connection, self._files, upload)
        )
        if completed is None:
            raise NotFound(errors_pb2.REASON_UPLOAD_NOT_FOUND, f"there is no {name}; begin at offset 0", upload=name)
        return completed

    async def stat(self, name: str) -> Blob:
        """The blob; NotFound if it is not there."""
        digest = blob_in(name)
        return await self._transactions.read(lambda connection: blobs.get(connection, self._files, digest))

    async def read(self, request: ReadBlobRequest) -> AsyncGenerator[ReadBlobResponse, None]:
        """Streams a blob or a range of it, one block ahead of what is being sent."""
        digest = blob_in(request.name)
        blob = await self._transactions.read(lambda connection: blobs.get_readable(connection, self._files, digest))
        length = _checked_length(request, blob.size_bytes)
        offset = request.offset
        with contextlib.closing(self._files.blocks(digest, offset, length, blob.size_bytes)) as blocks:
            upcoming = self._in_thread(lambda: next(blocks, b""))
            try:
                while block := await upcoming:
                    upcoming = self._in_thread(lambda: next(blocks, b""))
                    yield ReadBlobResponse(chunk=block, offset=offset)
                    offset += len(block)
            finally:
                # A generator that still runs in its thread cannot be closed.
                await asyncio.wait([upcoming])

    def _checked(self, header: WriteBlobRequest.Header) -> _Stream:
        announced = Announcement(
            upload_in(header.upload, "header.upload"), blob_in(header.blob, "header.blob"), header.size_bytes
        )
        if not 0 <= header.size_bytes <= self._max_blob_bytes:
            raise InvalidArgument.field(
                "header.size_bytes",
                f"{header.size_bytes} bytes; 0 to {self._max_blob_bytes} (OCTAVO_REGISTRY_MAX_BLOB_BYTES)",
                reason=errors_pb2.REASON_LIMIT_EXCEEDED,
            )
        if not 0 <= header.offset <= header.size_bytes:
            raise InvalidArgument.field(
                "header.offset", f"{header.offset} is not within the {header.size_bytes} bytes announced"
            )
        return _Stream(announced, header.offset)

    async def _existing(self, announced: Announcement, actor: str) -> Blob | None:
        """The blob, if it is there; also when a crash came between its rename and its row."""
        digest = announced.digest
        blob = await self._transactions.read(lambda connection: blobs.find(connection, self._files, digest))
        if blob is not None:
            blobs.check_size(blob, announced.size_bytes, "header.size_bytes")
            return blob
        if self._files.size(digest) != announced.size_bytes:
            return None
        if not await self._in_thread(lambda: self._files.has_digest(digest)):
            return None
        return await self._register(announced, actor)

    async def _receive(
        self, stream: _Stream, predecessor: _Stream | None, requests: AsyncIterator[WriteBlobRequest]
    ) -> None:
        if predecessor is not None and predecessor.task is not None:
            predecessor.task.cancel()
            await asyncio.wait([predecessor.task])
        wanted = stream.announced.size_bytes - stream.offset
        await self._in_thread(lambda: self._files.check_room(wanted))
        staged = StagedUpload(self._files, stream.announced)
        try:
            await self._in_thread(lambda: staged.open(stream.offset))
            stream.staged = staged
            await self._store(staged, requests)
            await self._in_thread(staged.publish)
        finally:
            await asyncio.shield(self._in_thread(staged.close))

    async def _store(self, staged: StagedUpload, requests: AsyncIterator[WriteBlobRequest]) -> None:
        """Writes each chunk while the next one arrives."""
        writing: asyncio.Future[None] | None = None
        async for request in requests:
            chunk = _checked_chunk(request)
            if writing is not None:
                await writing
            writing = self._in_thread(partial(staged.append, chunk))
        if writing is not None:
            await writing

    async def _register(self, announced: Announcement, actor: str) -> Blob:
        return await self._transactions.write(
            lambda change: blobs.add_uploaded(change, announced.digest, announced.size_bytes, announced.upload),
            actor=actor,
        )

    def _in_thread(self, work: Callable[[], _Answer]) -> "asyncio.Future[_Answer]":
        return asyncio.get_running_loop().run_in_executor(self._disk, work)


async def _header(requests: AsyncIterator[WriteBlobRequest]) -> WriteBlobRequest.Header:
    async for request in requests:
        if request.WhichOneof("payload") == "header":
            return request.header
        break
    raise InvalidArgument.field(
        "header", "is missing; the first message is the header", reason=errors_pb2.REASON_MISSING_FIELD
    )


def _checked_chunk(request: WriteBlobRequest) -> bytes:
    if request.WhichOneof("payload") != "chunk":
        raise InvalidArgument.field("chunk", "is missing; after the header, every message is a chunk")
    if len(request.chunk) > _CHUNK_BYTES:
        raise InvalidArgument.field(
            "chunk",
            f"{len(request.chunk)} bytes; {_CHUNK_BYTES} at most",
            reason=errors_pb2.REASON_LIMIT_EXCEEDED,
        )
    return request.chunk


def _checked_length(request: ReadBlobRequest, size_bytes: int) -> int:
    negative = {name: "is negative" for name in ("offset", "length") if getattr(request, name) < 0}
    if negative:
        raise InvalidArgument.fields(negative)
    if request.offset > size_bytes:
        raise OutOfRange(
            errors_pb2.REASON_INVALID_FIELD,
            f"offset {request.offset} is beyond the end of {request.name}, which has {size_bytes} bytes",
            violations={"offset": f"{request.offset} is beyond the {size_bytes} bytes there are"},
            size_bytes=size_bytes,
        )
    rest = size_bytes - request.offset
    return min(request.length or rest, rest)


def _taken_over(upload: str) -> Aborted:
    return Aborted(
        errors_pb2.REASON_OFFSET_MISMATCH,
        f"another stream has taken uploads/{upload} over; ask QueryWrite, then go on",
        upload=f"uploads/{upload}",
    )
