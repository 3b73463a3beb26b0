"""Blobs over the wire: written whole or not at all, resumed, read back, refused with a reason."""

import asyncio
import hashlib
import os
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from octavo import serving
from octavo.addresses import Addresses
from octavo.client import AsyncClient
from octavo.errors import Aborted, DataLoss, InvalidArgument, NotFound, OutOfRange, ResourceExhausted, Unavailable
from octavo.v1 import errors_pb2
from octavo.v1.blobs_pb2 import QueryWriteRequest, ReadBlobRequest, StatBlobRequest, WriteBlobRequest
from services.registry import Settings, assemble
from tests.services.registry.conftest import Registry, blob_name, messages

CONTENT = os.urandom(3_000_000)


async def read(registry: Registry, name: str, offset: int = 0, length: int = 0) -> bytes:
    request = ReadBlobRequest(name=name, offset=offset, length=length)
    return b"".join([response.chunk async for response in registry.blobs.ReadBlob(request)])


def is_staging_empty(registry: Registry) -> bool:
    return not list((registry.directory / "staging").iterdir())


@pytest.mark.parametrize("size", [0, 1, (1 << 19) - 1, 1 << 19, (1 << 19) + 1, 3_000_000])
async def test_what_was_written_is_read_back(registry: Registry, size: int) -> None:
    blob = await registry.put(CONTENT[:size])
    assert blob.name == blob_name(CONTENT[:size])
    assert blob.size_bytes == size
    assert await read(registry, blob.name) == CONTENT[:size]
    assert await registry.blobs.StatBlob(StatBlobRequest(name=blob.name)) == blob
    assert is_staging_empty(registry)


@pytest.mark.parametrize(
    ("offset", "length", "end"),
    [
        (0, 10, 10),
        (1_000_000, 7, 1_000_007),
        (2_999_999, 0, 3_000_000),
        (2_999_999, 50, 3_000_000),
        (3_000_000, 0, 3_000_000),
        (5, 0, 3_000_000),
    ],
)
async def test_a_range_of_a_blob_is_read(registry: Registry, offset: int, length: int, end: int) -> None:
    blob = await registry.put(CONTENT)
    assert await read(registry, blob.name, offset, length) == CONTENT[offset:end]


async def test_reading_beyond_the_end_or_before_the_beginning_is_refused(registry: Registry) -> None:
    blob = await registry.put(b"abc")
    with pytest.raises(OutOfRange, match="has 3 bytes"):
        await read(registry, blob.name, 4)
    with pytest.raises(InvalidArgument) as refused:
        await read(registry, blob.name, -1, -1)
    assert set(refused.value.violations) == {"offset", "length"}


async def test_writing_a_blob_that_exists_succeeds_at_once(registry: Registry) -> None:
    first = await registry.put(CONTENT)
    stream = registry.stream(CONTENT)
    header_alone = [next(iter(stream))]
    assert await registry.blobs.WriteBlob(messages(header_alone)) == first


async def test_a_wrong_digest_is_refused_and_leaves_nothing(registry: Registry) -> None:
    wrong = b"x" * len(CONTENT)
    upload = str(uuid.uuid4())
    with pytest.raises(InvalidArgument) as refused:
        await registry.blobs.WriteBlob(messages(registry.stream(wrong, claimed=CONTENT, upload=upload)))
    assert refused.value.reason == errors_pb2.REASON_DIGEST_MISMATCH
    assert refused.value.metadata["received"] == blob_name(wrong)
    assert is_staging_empty(registry)
    with pytest.raises(NotFound):
        await registry.blobs.StatBlob(StatBlobRequest(name=blob_name(CONTENT)))
    with pytest.raises(NotFound):
        await registry.blobs.QueryWrite(QueryWriteRequest(upload=f"uploads/{upload}"))


async def test_more_bytes_than_announced_are_refused_and_dropped(registry: Registry) -> None:
    with pytest.raises(InvalidArgument) as refused:
        await registry.blobs.WriteBlob(messages(registry.stream(CONTENT + b"x", claimed=CONTENT)))
    assert refused.value.reason == errors_pb2.REASON_SIZE_MISMATCH
    assert is_staging_empty(registry)


async def test_fewer_bytes_than_announced_stay_and_the_upload_goes_on(registry: Registry) -> None:
    upload = str(uuid.uuid4())
    with pytest.raises(InvalidArgument) as refused:
        await registry.blobs.WriteBlob(messages(registry.stream(CONTENT[:777_777], claimed=CONTENT, upload=upload)))
    assert refused.value.reason == errors_pb2.REASON_SIZE_MISMATCH
    status = await registry.blobs.QueryWrite(QueryWriteRequest(upload=f"uploads/{upload}"))
    assert status.committed_size_bytes == 777_777
    assert not status.HasField("blob")
    rest = registry.stream(CONTENT, upload=upload, offset=777_777)
    assert (await registry.blobs.WriteBlob(messages(rest))).size_bytes == len(CONTENT)
    assert await read(registry, blob_name(CONTENT)) == CONTENT
    done = await registry.blobs.QueryWrite(QueryWriteRequest(upload=f"uploads/{upload}"))
    assert done.blob.name == blob_name(CONTENT)
    assert done.committed_size_bytes == len(CONTENT)


async def test_an_upload_may_go_on_earlier_than_it_stands_but_not_later(registry: Registry) -> None:
    upload = str(uuid.uuid4())
    with pytest.raises(InvalidArgument):
        await registry.blobs.WriteBlob(messages(registry.stream(CONTENT[:100], claimed=CONTENT, upload=upload)))
    with pytest.raises(OutOfRange) as refused:
        await registry.blobs.WriteBlob(messages(registry.stream(CONTENT, upload=upload, offset=101)))
    assert refused.value.reason == errors_pb2.REASON_OFFSET_MISMATCH
    assert refused.value.metadata["committed_size_bytes"] == "100"
    await registry.blobs.WriteBlob(messages(registry.stream(CONTENT, upload=upload, offset=50)))
    assert await read(registry, blob_name(CONTENT)) == CONTENT


async def test_an_upload_keeps_the_blob_it_was_announced_for(registry: Registry) -> None:
    upload = str(uuid.uuid4())
    with pytest.raises(InvalidArgument):
        await registry.blobs.WriteBlob(messages(registry.stream(CONTENT[:100], claimed=CONTENT, upload=upload)))
    with pytest.raises(InvalidArgument, match="choose a new name"):
        await registry.blobs.WriteBlob(messages(registry.stream(b"other", upload=upload)))


async def test_the_newest_stream_takes_an_upload_over(registry: Registry) -> None:
    upload = str(uuid.uuid4())
    has_begun, may_end = asyncio.Event(), asyncio.Event()

    async def stalled() -> AsyncIterator[WriteBlobRequest]:
        stream = iter(registry.stream(CONTENT, upload=upload))
        for _ in range(4):
            yield next(stream)
        has_begun.set()
        await may_end.wait()

    older = asyncio.ensure_future(registry.blobs.WriteBlob(stalled()))
    await has_begun.wait()
    newer = await registry.blobs.WriteBlob(messages(registry.stream(CONTENT, upload=upload)))
    assert newer.name == blob_name(CONTENT)
    with pytest.raises(Aborted, match="taken"):
        await older
    may_end.set()
    assert await read(registry, newer.name) == CONTENT
    assert is_staging_empty(registry)


async def test_many_writers_of_one_blob_all_succeed(registry: Registry) -> None:
    blobs = await asyncio.gather(*(registry.put(CONTENT) for _ in range(6)))
    assert {blob.name for blob in blobs} == {blob_name(CONTENT)}
    assert len({blob.create_time.ToNanoseconds() for blob in blobs}) == 1
    assert await read(registry, blob_name(CONTENT)) == CONTENT
    assert is_staging_empty(registry)


async def test_many_writers_of_one_upload_leave_one_whole_blob(registry: Registry) -> None:
    upload = str(uuid.uuid4())
    streams = [registry.blobs.WriteBlob(messages(registry.stream(CONTENT, upload=upload))) for _ in range(6)]
    results = await asyncio.gather(*streams, return_exceptions=True)
    # Unavailable is an answer that gRPC has lost to a write that failed.
    refusals = (Aborted, Unavailable)
    unexpected = [
        result for result in results if isinstance(result, BaseException) and not isinstance(result, refusals)
    ]
    assert not unexpected
    assert any(not isinstance(result, BaseException) for result in results)
    assert await read(registry, blob_name(CONTENT)) == CONTENT


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("upload", "uploads/short"),
        ("upload", "uploads/../../etc/passwd-0000000"),
        ("upload", ""),
        ("blob", "blobs/sha256:ABC"),
        ("blob", "blobs/md5:0123"),
        ("size_bytes", -1),
        ("size_bytes", 1 << 62),
        ("offset", -1),
        ("offset", 6),
    ],
)
async def test_a_header_that_cannot_be_is_refused_by_field(registry: Registry, field: str, value: str | int) -> None:
    header = next(iter(registry.stream(b"12345"))).header
    setattr(header, field, value)
    with pytest.raises(InvalidArgument) as refused:
        await registry.blobs.WriteBlob(messages([WriteBlobRequest(header=header)]))
    assert list(refused.value.violations) == [f"header.{field}"]


async def test_messages_out_of_order_are_refused(registry: Registry) -> None:
    header, chunk = list(registry.stream(b"12345"))
    for stream in ([], [chunk], [header, header], [header, WriteBlobRequest()]):
        with pytest.raises(InvalidArgument):
            await registry.blobs.WriteBlob(messages(stream))
    with pytest.raises(InvalidArgument, match="1048576 at most"):
        await registry.blobs.WriteBlob(messages(registry.stream(CONTENT, chunk_bytes=(1 << 20) + 1)))


async def test_a_changed_file_is_found_when_it_is_read_and_mended_by_writing_it_again(registry: Registry) -> None:
    blob = await registry.put(CONTENT)
    digest = blob.name.removeprefix("blobs/sha256:")
    path = registry.directory / "blobs" / "sha256" / digest[:2] / digest
    changed = bytearray(CONTENT)
    changed[1_500_000] ^= 1
    path.write_bytes(changed)
    received = b""
    with pytest.raises(DataLoss) as lost:
        async for response in registry.blobs.ReadBlob(ReadBlobRequest(name=blob.name)):
            received += response.chunk
    assert lost.value.reason == errors_pb2.REASON_BLOB_CORRUPT
    assert len(received) < len(CONTENT)
    with pytest.raises(NotFound):
        await registry.blobs.StatBlob(StatBlobRequest(name=blob.name))
    with pytest.raises(DataLoss):
        await read(registry, blob.name)
    await registry.put(CONTENT)
    assert await read(registry, blob.name) == CONTENT


async def test_a_truncated_file_is_no_blob(registry: Registry) -> None:
    blob = await registry.put(CONTENT)
    digest = blob.name.removeprefix("blobs/sha256:")
    os.truncate(registry.directory / "blobs" / "sha256" / digest[:2] / digest, 1000)
    with pytest.raises(DataLoss):
        await read(registry, blob.name)
    with pytest.raises(NotFound):
        await registry.blobs.StatBlob(StatBlobRequest(name=blob.name))


async def test_a_file_that_a_crash_left_without_its_row_is_adopted_without_sending_it_again(
    registry: Registry,
) -> None:
    digest = hashlib.sha256(CONTENT).hexdigest()
    path = registry.directory / "blobs" / "sha256" / digest[:2] / digest
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    with pytest.raises(NotFound):
        await registry.blobs.StatBlob(StatBlobRequest(name=blob_name(CONTENT)))
    header_alone = [next(iter(registry.stream(CONTENT)))]
    assert (await registry.blobs.WriteBlob(messages(header_alone))).size_bytes == len(CONTENT)


async def test_what_the_disk_cannot_hold_is_refused_before_a_byte_of_it(
    settings: Settings, telemetry: serving.Telemetry
) -> None:
    full = replace(settings, reserve_bytes=1 << 60)
    async with (
        serving.running(assemble(full, telemetry)) as addresses,
        AsyncClient(Addresses(registry=addresses["registry"])) as client,
    ):
        registry = Registry(client, full.directory)
        with pytest.raises(ResourceExhausted) as refused:
            await registry.put(CONTENT)
        assert refused.value.reason == errors_pb2.REASON_STORAGE_FULL
        assert is_staging_empty(registry)


async def test_a_blob_above_the_limit_is_refused(settings: Settings, telemetry: serving.Telemetry) -> None:
    small = replace(settings, max_blob_bytes=1000)
    async with (
        serving.running(assemble(small, telemetry)) as addresses,
        AsyncClient(Addresses(registry=addresses["registry"])) as client,
    ):
        registry = Registry(client, small.directory)
        await registry.put(b"x" * 1000)
        with pytest.raises(InvalidArgument) as refused:
            await registry.put(b"x" * 1001)
        assert refused.value.reason == errors_pb2.REASON_LIMIT_EXCEEDED
