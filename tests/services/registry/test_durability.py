"""Killed at any moment, the registry has lost nothing that it acknowledged and shows nothing half-made."""

import asyncio
import hashlib
import os
import random
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from octavo.addresses import Addresses
from octavo.client import AsyncClient, Client, transfer
from octavo.errors import OctavoError, ResourceExhausted, Unavailable
from octavo.v1 import errors_pb2
from octavo.v1.blobs_pb2 import QueryWriteRequest, ReadBlobRequest, StatBlobRequest, WriteBlobRequest
from octavo.v1.registry_pb2 import (
    CreateVersionRequest,
    File,
    GetModelRequest,
    GetVersionRequest,
    ListVersionsRequest,
    SetAliasRequest,
    VerifyAuditRequest,
    Version,
)
from tests.services.registry.conftest import Registry, messages
from tests.services.registry.server_process import ServerProcess

BIG = os.urandom(1 << 20) * 24


@asynccontextmanager
async def connected(server: ServerProcess) -> AsyncIterator[AsyncClient]:
    """A client, once it gets through: gRPC remembers for a while that nobody listened here."""
    async with AsyncClient(Addresses(registry=server.address)) as client:
        for _ in range(100):
            with suppress(Unavailable):
                await client.registry.VerifyAudit(VerifyAuditRequest())
                break
            await asyncio.sleep(0.05)
        yield client


async def check_everything(registry: Registry, directory: Path) -> None:
    """Every file is a whole blob, every version's blobs are there, the audit chain holds."""
    for path in (directory / "registry" / "blobs" / "sha256").rglob("*"):
        if path.is_file():
            assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
    listed = await registry.registry.ListVersions(ListVersionsRequest(parent="models/-", page_size=1000))
    for version in listed.versions:
        assert version.files
        for file in version.files:
            blob = await registry.blobs.StatBlob(StatBlobRequest(name=file.blob))
            assert blob.size_bytes == file.size_bytes
    verified = await registry.registry.VerifyAudit(VerifyAuditRequest())
    assert verified.valid


class Worker:
    """Uploads, registers and points an alias, without end; remembers what was acknowledged."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.acknowledged: list[Version] = []
        self.alias = ""

    async def run(self, registry: Registry) -> None:
        for _ in range(1_000_000):
            content = os.urandom(random.randrange(1, 200_000))
            blob = await registry.put(content)
            request = CreateVersionRequest(
                parent=f"models/{self.model}",
                version=Version(files=[File(path="weights", blob=blob.name, size_bytes=blob.size_bytes)]),
                request_id=str(uuid.uuid4()),
            )
            self.acknowledged.append(await registry.registry.CreateVersion(request))
            version = self.acknowledged[-1].name
            alias = SetAliasRequest(name=f"models/{self.model}/aliases/champion", version=version)
            self.alias = (await registry.registry.SetAlias(alias)).version

    async def check(self, registry: Registry) -> None:
        """What was acknowledged is there, unchanged; numbers go on without one given twice."""
        if not self.acknowledged:
            return
        for version in self.acknowledged:
            kept = await registry.registry.GetVersion(GetVersionRequest(name=version.name))
            assert kept.manifest_digest == version.manifest_digest
            content = b"".join(
                [chunk.chunk async for chunk in registry.blobs.ReadBlob(ReadBlobRequest(name=kept.files[0].blob))]
            )
            assert len(content) == kept.files[0].size_bytes
        assert len({version.name for version in self.acknowledged}) == len(self.acknowledged)
        model = await registry.registry.GetModel(GetModelRequest(name=f"models/{self.model}"))
        # The kill may have come between a commit and its acknowledgement: the alias is there, or one further.
        named = model.aliases[0].version if model.aliases else ""
        assert named in (self.alias, self.acknowledged[-1].name)
        self.alias = named


@pytest.mark.slow
async def test_nothing_acknowledged_is_lost_when_it_is_killed_while_it_writes(tmp_path: Path) -> None:
    workers = [Worker("poet"), Worker("critic")]
    with ServerProcess(tmp_path) as server:
        for _ in range(4):
            async with connected(server) as client:
                registry = Registry(client, tmp_path)
                running = [asyncio.ensure_future(worker.run(registry)) for worker in workers]
                await asyncio.sleep(random.uniform(0.3, 0.9))
                server.kill()
                ended = await asyncio.gather(*running, return_exceptions=True)
                assert all(isinstance(error, OctavoError) for error in ended)
            server.start()
            async with connected(server) as client:
                registry = Registry(client, tmp_path)
                await check_everything(registry, tmp_path)
                for worker in workers:
                    await worker.check(registry)
    assert all(worker.acknowledged for worker in workers)


async def test_an_upload_goes_on_where_it_was_when_the_registry_was_killed(tmp_path: Path) -> None:
    upload = str(uuid.uuid4())
    with ServerProcess(tmp_path) as server:
        async with connected(server) as client:
            registry = Registry(client, tmp_path)
            sent = asyncio.Event()

            async def half() -> AsyncIterator[WriteBlobRequest]:
                for index, message in enumerate(registry.stream(BIG, upload=upload)):
                    yield message
                    if index == 48:
                        sent.set()
                        await asyncio.sleep(60)

            writing = asyncio.ensure_future(registry.blobs.WriteBlob(half()))
            await sent.wait()
            staged = tmp_path / "registry" / "staging" / upload
            while not (staged.is_dir() and sum(path.stat().st_size for path in staged.iterdir()) >= 8 << 20):
                await asyncio.sleep(0.01)
            server.kill()
            with pytest.raises(OctavoError):
                await writing
        server.start()
        async with connected(server) as client:
            registry = Registry(client, tmp_path)
            asked = QueryWriteRequest(upload=f"uploads/{upload}")
            committed = (await registry.blobs.QueryWrite(asked)).committed_size_bytes
            assert 8 << 20 <= committed <= 12 << 20
            rest = registry.stream(BIG, upload=upload, offset=committed)
            blob = await registry.blobs.WriteBlob(messages(rest))
            assert blob.size_bytes == len(BIG)
            await check_everything(registry, tmp_path)


async def test_a_request_repeated_after_a_kill_is_answered_once(tmp_path: Path) -> None:
    with ServerProcess(tmp_path) as server:
        async with connected(server) as client:
            registry = Registry(client, tmp_path)
            blob = await registry.put(b"{}")
            request = CreateVersionRequest(
                parent="models/poet",
                version=Version(files=[File(path="config.json", blob=blob.name, size_bytes=2)]),
                request_id=str(uuid.uuid4()),
            )
            first = await registry.registry.CreateVersion(request)
        server.restart()
        async with connected(server) as client:
            again = await client.registry.CreateVersion(request)
            listed = await client.registry.ListVersions(ListVersionsRequest(parent="models/poet"))
    assert again == first
    assert listed.total_size == 1


async def test_a_disk_that_fills_up_refuses_the_upload_and_drops_it(tmp_path: Path) -> None:
    """The kernel refuses to let a file grow beyond 8 MiB, as it would on a full disk."""
    with ServerProcess(tmp_path, {"OCTAVO_REGISTRY_RESERVE_BYTES": "0"}, max_file_bytes=8 << 20) as server:
        async with connected(server) as client:
            registry = Registry(client, tmp_path)
            with Client(Addresses(registry=server.address)) as blocking, pytest.raises(ResourceExhausted) as refused:
                await asyncio.to_thread(transfer.upload_blocking, blocking.blobs, BIG)
            assert refused.value.reason == errors_pb2.REASON_STORAGE_FULL
            assert not list((tmp_path / "registry" / "staging").iterdir())
            assert (await registry.put(BIG[: 1 << 20])).size_bytes == 1 << 20
            assert (await registry.version()).name == "models/poet/versions/1"
            await check_everything(registry, tmp_path)
