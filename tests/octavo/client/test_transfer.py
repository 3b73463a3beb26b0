"""Transfers survive what happens on the way: a registry killed, a connection cut, bytes damaged, two at once."""

import asyncio
import hashlib
import os
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from octavo import serving
from octavo.addresses import Addresses
from octavo.client import AsyncClient, Client, transfer
from octavo.client.partial_file import PartialFile
from octavo.errors import DataLoss, InvalidArgument, NotFound
from octavo.v1.blobs_pb2 import WriteBlobRequest
from services.registry import Settings, assemble
from tests.services.registry.server_process import ServerProcess

CONTENT = os.urandom(1 << 20) * 5 + b"end"


@pytest.fixture
async def address(tmp_path: Path) -> AsyncIterator[str]:
    settings = Settings(port=0, data_dir=tmp_path / "data", drain_s=0.1)
    service = assemble(settings, serving.Telemetry.create("registry", serving.ProcessMetrics()))
    async with serving.running(service) as addresses:
        yield addresses["registry"]


@pytest.fixture
async def client(address: str) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(Addresses(registry=address)) as client:
        yield client


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(CONTENT)
    return path


def stored(tmp_path: Path, name: str) -> Path:
    digest = name.removeprefix("blobs/sha256:")
    return tmp_path / "data" / "registry" / "blobs" / "sha256" / digest[:2] / digest


def listing(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def open_files() -> list[Path]:
    """What this process has open. Linux's."""
    return [link.readlink() for link in Path("/proc/self/fd").iterdir() if link.exists()]


async def test_a_file_goes_up_and_comes_down_the_same(client: AsyncClient, source: Path, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    blob = await transfer.upload(client.blobs, source, progress=lambda *step: steps.append(step))
    assert blob.name == f"blobs/sha256:{hashlib.sha256(CONTENT).hexdigest()}"
    assert steps[-1] == (len(CONTENT), len(CONTENT))
    assert steps == sorted(steps)
    target = tmp_path / "deep" / "target"
    assert await transfer.download(client.blobs, blob.name, target, size_bytes=len(CONTENT)) == target
    assert target.read_bytes() == CONTENT
    assert listing(target.parent) == {"target"}


async def test_bytes_and_empty_bytes_go_up_too(client: AsyncClient) -> None:
    for content in (b"", b"x", CONTENT):
        blob = await transfer.upload(client.blobs, content)
        assert await transfer.read(client.blobs, blob.name) == content


async def test_what_is_there_is_not_sent_again(client: AsyncClient, source: Path) -> None:
    await transfer.upload(client.blobs, source)
    steps: list[tuple[int, int]] = []
    await transfer.upload(client.blobs, source, progress=lambda *step: steps.append(step))
    assert steps == [(len(CONTENT), len(CONTENT))]


async def test_parts_are_read(client: AsyncClient) -> None:
    blob = await transfer.upload(client.blobs, CONTENT)
    assert await transfer.read(client.blobs, blob.name, 3, 4) == CONTENT[3:7]
    assert await transfer.read(client.blobs, blob.name, len(CONTENT) - 3) == b"end"


async def test_threads_do_the_same(address: str, source: Path, tmp_path: Path) -> None:
    def work() -> None:
        with Client(Addresses(registry=address)) as client:
            blob = transfer.upload_blocking(client.blobs, source)
            target = transfer.download_blocking(client.blobs, blob.name, tmp_path / "target")
            assert target.read_bytes() == CONTENT
            assert transfer.read_blocking(client.blobs, blob.name, 1, 2) == CONTENT[1:3]
            with pytest.raises(NotFound):
                transfer.read_blocking(client.blobs, f"blobs/sha256:{'0' * 64}")

    await asyncio.to_thread(work)


async def test_an_upload_goes_on_with_what_an_earlier_process_left(client: AsyncClient, source: Path) -> None:
    digest = hashlib.sha256(CONTENT).hexdigest()

    async def beginning() -> AsyncIterator[WriteBlobRequest]:
        yield WriteBlobRequest(
            header=WriteBlobRequest.Header(
                upload=f"uploads/{digest}", blob=f"blobs/sha256:{digest}", size_bytes=len(CONTENT)
            )
        )
        yield WriteBlobRequest(chunk=CONTENT[: 1 << 20])

    with pytest.raises(InvalidArgument):
        await client.blobs.WriteBlob(beginning())
    steps: list[tuple[int, int]] = []
    await transfer.upload(client.blobs, source, progress=lambda *step: steps.append(step))
    assert steps[0][0] > 1 << 20
    assert await transfer.read(client.blobs, f"blobs/sha256:{digest}") == CONTENT


async def test_a_damaged_beginning_is_sent_again(client: AsyncClient, source: Path, tmp_path: Path) -> None:
    digest = hashlib.sha256(CONTENT).hexdigest()
    staged = tmp_path / "data" / "registry" / "staging" / digest
    staged.mkdir()
    (staged / f"{digest}-{len(CONTENT)}").write_bytes(b"damaged" * 1000)
    blob = await transfer.upload(client.blobs, source)
    assert await transfer.read(client.blobs, blob.name) == CONTENT


async def test_a_download_goes_on_with_what_is_there_and_throws_damage_away(
    client: AsyncClient, tmp_path: Path
) -> None:
    blob = await transfer.upload(client.blobs, CONTENT)
    digest = blob.name.removeprefix("blobs/sha256:")
    for left in (CONTENT[:2_000_000], b"damaged" * 1000, CONTENT + b"too much", CONTENT):
        target = tmp_path / "target"
        (tmp_path / f".target.{digest[:16]}.partial").write_bytes(left)
        steps: list[tuple[int, int]] = []
        await transfer.download(client.blobs, blob.name, target, progress=lambda *step, to=steps: to.append(step))
        assert target.read_bytes() == CONTENT
        if left == CONTENT[:2_000_000]:
            assert steps[0][0] > 2_000_000
        target.unlink()


async def test_a_target_that_is_right_is_left_alone_and_a_wrong_one_replaced(
    client: AsyncClient, tmp_path: Path
) -> None:
    blob = await transfer.upload(client.blobs, CONTENT)
    target = tmp_path / "target"
    target.write_bytes(b"old")
    await transfer.download(client.blobs, blob.name, target)
    before = target.stat().st_ino
    await transfer.download(client.blobs, blob.name, target)
    assert target.stat().st_ino == before
    assert target.read_bytes() == CONTENT


async def test_downloads_to_one_target_at_once_all_succeed(client: AsyncClient, tmp_path: Path) -> None:
    blob = await transfer.upload(client.blobs, CONTENT)
    target = tmp_path / "there" / "target"
    await asyncio.gather(*(transfer.download(client.blobs, blob.name, target) for _ in range(4)))
    assert target.read_bytes() == CONTENT
    assert listing(target.parent) == {"target"}


async def test_a_download_that_is_cancelled_while_its_file_opens_leaves_no_file_open(
    client: AsyncClient, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = await transfer.upload(client.blobs, source)
    is_opening, may_open = threading.Event(), threading.Event()
    opened = PartialFile._opened

    def slowly(self: PartialFile) -> BinaryIO:
        is_opening.set()
        may_open.wait(10)
        return opened(self)

    monkeypatch.setattr(PartialFile, "_opened", slowly)
    downloading = asyncio.create_task(transfer.download(client.blobs, blob.name, tmp_path / "target"))
    await asyncio.to_thread(is_opening.wait, 10)
    downloading.cancel()
    await asyncio.sleep(0)
    may_open.set()
    with pytest.raises(asyncio.CancelledError):
        await downloading
    assert not [path for path in open_files() if path.is_relative_to(tmp_path) and path.suffix == ".partial"]


async def test_uploads_of_the_same_bytes_at_once_all_succeed(client: AsyncClient) -> None:
    blobs = await asyncio.gather(*(transfer.upload(client.blobs, CONTENT) for _ in range(4)))
    assert len({blob.name for blob in blobs}) == 1
    assert await transfer.read(client.blobs, blobs[0].name) == CONTENT


async def test_bytes_that_changed_on_the_registrys_disk_never_become_a_file(
    client: AsyncClient, tmp_path: Path
) -> None:
    blob = await transfer.upload(client.blobs, CONTENT)
    path = stored(tmp_path, blob.name)
    path.write_bytes(CONTENT[:-1] + b"X")
    with pytest.raises(DataLoss):
        await transfer.download(client.blobs, blob.name, tmp_path / "target")
    assert not (tmp_path / "target").exists()
    await transfer.upload(client.blobs, CONTENT)
    await transfer.download(client.blobs, blob.name, tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == CONTENT


async def test_names_and_sizes_that_do_not_fit_are_refused(client: AsyncClient, tmp_path: Path) -> None:
    blob = await transfer.upload(client.blobs, b"abc")
    with pytest.raises(InvalidArgument, match="has 3 bytes, not 4"):
        await transfer.download(client.blobs, blob.name, tmp_path / "target", size_bytes=4)
    with pytest.raises(InvalidArgument, match="not a blob"):
        await transfer.download(client.blobs, "sha256:abc", tmp_path / "target")
    with pytest.raises(NotFound):
        await transfer.download(client.blobs, f"blobs/sha256:{'0' * 64}", tmp_path / "target")
    assert listing(tmp_path) == {"data"}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path / "data") as server:
        yield server


async def test_an_upload_survives_a_registry_killed_on_the_way(server: ServerProcess, source: Path) -> None:
    was_killed = threading.Event()

    def kill_once(done_bytes: int, _total: int) -> None:
        if done_bytes > 2_000_000 and not was_killed.is_set():
            was_killed.set()
            server.restart()

    async with AsyncClient(Addresses(registry=server.address)) as client:
        blob = await transfer.upload(client.blobs, source, progress=kill_once)
        assert was_killed.is_set()
        assert await transfer.read(client.blobs, blob.name) == CONTENT


async def test_a_download_survives_a_registry_killed_on_the_way(
    server: ServerProcess, source: Path, tmp_path: Path
) -> None:
    was_killed = threading.Event()

    def kill_once(done_bytes: int, _total: int) -> None:
        if done_bytes > 2_000_000 and not was_killed.is_set():
            was_killed.set()
            server.restart()

    async with AsyncClient(Addresses(registry=server.address)) as client:
        blob = await transfer.upload(client.blobs, source)
        await transfer.download(client.blobs, blob.name, tmp_path / "target", progress=kill_once)
    assert was_killed.is_set()
    assert (tmp_path / "target").read_bytes() == CONTENT
