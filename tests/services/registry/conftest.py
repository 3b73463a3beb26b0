"""A registry of its own for each test, on a free port, and ways to fill it."""

import asyncio
import hashlib
import uuid
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path

import pytest

from octavo import serving
from octavo.addresses import Addresses
from octavo.client import AsyncClient
from octavo.v1.blobs_pb2 import Blob, WriteBlobRequest
from octavo.v1.registry_pb2 import CreateVersionRequest, File, Version
from services.registry import Settings, assemble


def blob_name(content: bytes) -> str:
    return f"blobs/sha256:{hashlib.sha256(content).hexdigest()}"


class Registry:
    """A client of a running registry, with shorthands."""

    def __init__(self, client: AsyncClient, directory: Path) -> None:
        self.registry = client.registry
        self.datasets = client.datasets
        self.deployments = client.deployments
        self.blobs = client.blobs
        self.directory = directory

    def stream(
        self,
        content: bytes,
        *,
        upload: str = "",
        offset: int = 0,
        chunk_bytes: int = 1 << 18,
        claimed: bytes | None = None,
    ) -> Iterable[WriteBlobRequest]:
        """The messages of one upload of `content` from `offset`; announced as `claimed` where that is given."""
        claimed = content if claimed is None else claimed
        header = WriteBlobRequest.Header(
            upload=f"uploads/{upload or uuid.uuid4()}",
            blob=blob_name(claimed),
            size_bytes=len(claimed),
            offset=offset,
        )
        yield WriteBlobRequest(header=header)
        for begin in range(offset, len(content), chunk_bytes):
            yield WriteBlobRequest(chunk=content[begin : begin + chunk_bytes])

    async def put(self, content: bytes) -> Blob:
        return await self.blobs.WriteBlob(messages(self.stream(content)))

    async def version(self, model: str = "poet", **files: bytes) -> Version:
        """Registers a version; `config_json=b"…"` is the file `config.json`."""
        given = files or {"config_json": b"{}"}
        listed = []
        for path, content in given.items():
            blob = await self.put(content)
            listed.append(File(path=path.replace("_", "."), blob=blob.name, size_bytes=blob.size_bytes))
        return await self.registry.CreateVersion(
            CreateVersionRequest(parent=f"models/{model}", version=Version(files=listed))
        )


async def messages(stream: Iterable[WriteBlobRequest]) -> AsyncIterator[WriteBlobRequest]:
    """Listens after each message, as the client does: a refusal that meets a write is lost in grpc.aio."""
    for message in stream:
        yield message
        await asyncio.sleep(0.05)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(port=0, data_dir=tmp_path, poll_s=0.05, drain_s=0.1)


@pytest.fixture
def telemetry() -> serving.Telemetry:
    return serving.Telemetry.create("registry", serving.ProcessMetrics())


@pytest.fixture
async def registry(settings: Settings, telemetry: serving.Telemetry) -> AsyncIterator[Registry]:
    async with (
        serving.running(assemble(settings, telemetry)) as addresses,
        AsyncClient(Addresses(registry=addresses["registry"])) as client,
    ):
        yield Registry(client, settings.directory)


@pytest.fixture
def request_id() -> Callable[[], str]:
    return lambda: str(uuid.uuid4())
