"""Artifacts by name: a version's files or one blob, from the registry, each readable by ranges.

Knows nothing of what the files hold.
"""

from __future__ import annotations

import asyncio
import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Protocol

from octavo.client import AsyncClient
from octavo.errors import DeadlineExceeded, InvalidArgument, NotFound, OctavoError, Unavailable
from octavo.v1 import blobs_pb2, registry_pb2
from octavo.v1.errors_pb2 import Reason
from services.inspector.reader import Source

_BLOB: Final = re.compile(r"blobs/sha256:[0-9a-f]{64}")
_VERSION: Final = re.compile(r"models/[^/@\s]{1,128}(?:@[^/@\s]{1,128}|/versions/[1-9][0-9]{0,17})?")
# One range of at most some MiB from a registry that is up.
_FETCH_TIMEOUT_S: Final = 60.0
_PING_TIMEOUT_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class ArtifactFile:
    """One file: path within the version, empty for a blob; digest `sha256:…`; size in bytes."""

    path: str
    digest: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Artifact:
    """What a name stands for. `name` has aliases resolved; `tensor_digests` are those of model.safetensors."""

    name: str
    files: tuple[ArtifactFile, ...]
    tensor_digests: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_blob(self) -> bool:
        return len(self.files) == 1 and not self.files[0].path

    def find(self, path: str) -> ArtifactFile | None:
        """The file of this path; None where there is none."""
        return next((file for file in self.files if file.path == path), None)

    def file(self, path: str) -> ArtifactFile:
        """The file of this path; NotFound names the nearest ones."""
        found = self.find(path)
        if found is not None:
            return found
        near = difflib.get_close_matches(path, [file.path for file in self.files], n=3, cutoff=0.4)
        have = near or [file.path for file in self.files[:10]]
        raise NotFound(
            Reason.REASON_FILE_NOT_FOUND,
            f"{self.name} has no file {path[:200]!r}; it has {', '.join(have) or 'no files'}",
            artifact=self.name,
            path=path[:200],
        )


class Artifacts(Protocol):
    """Where artifacts come from."""

    async def resolve(self, name: str, field: str = "artifact") -> Artifact:
        """The artifact of this name; NotFound when there is none. `field` is where the caller named it."""

    async def is_reachable(self) -> bool:
        """Whether the place answers, within seconds."""

    def opener(self) -> Callable[[ArtifactFile], Source]:
        """Gives the bytes of a file, in threads other than the event loop's; called on the event loop."""


class RegistryArtifacts:
    """Artifacts of the registry. Lives on one event loop; its sources are read from other threads."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def resolve(self, name: str, field: str = "artifact") -> Artifact:
        """The artifact of this name; InvalidArgument when it is no such name, NotFound when it is not there."""
        if not (_BLOB.fullmatch(name) or _VERSION.fullmatch(name)):
            raise InvalidArgument.field(
                field,
                f"{name[:200]!r} names no artifact; models/poet/versions/3, models/poet@champion, models/poet or "
                "blobs/sha256:… with 64 hexadecimal digits would",
                reason=Reason.REASON_INVALID_NAME if name else Reason.REASON_MISSING_FIELD,
            )
        try:
            return await (self._blob(name) if name.startswith("blobs/") else self._version(name))
        except OctavoError as error:
            # The registry speaks of its own fields; the caller knows the name by ours.
            error.violations = dict.fromkeys((field for _ in error.violations), error.message)
            raise

    async def _blob(self, name: str) -> Artifact:
        blob = await self._client.blobs.StatBlob(blobs_pb2.StatBlobRequest(name=name))
        return Artifact(blob.name, (ArtifactFile("", blob.name.removeprefix("blobs/"), blob.size_bytes),))

    async def _version(self, name: str) -> Artifact:
        request = registry_pb2.ResolveVersionRequest(reference=name)
        version = await self._client.registry.ResolveVersion(request)
        files = tuple(
            ArtifactFile(file.path, file.blob.removeprefix("blobs/"), file.size_bytes) for file in version.files
        )
        return Artifact(version.name, files, {tensor.name: tensor.digest for tensor in version.tensors})

    async def is_reachable(self) -> bool:
        """Whether the registry answers within two seconds."""
        try:
            request = registry_pb2.ListModelsRequest(page_size=1)
            await self._client.registry.ListModels(request, timeout=_PING_TIMEOUT_S)
        except (Unavailable, DeadlineExceeded):
            return False
        return True

    def opener(self) -> Callable[[ArtifactFile], Source]:
        """Gives the bytes of a file, fetched by ranges through the event loop that this was called on."""
        return partial(_BlobSource, self._client, asyncio.get_running_loop())


class _BlobSource:
    """Ranges of one blob of the registry."""

    def __init__(self, client: AsyncClient, loop: asyncio.AbstractEventLoop, file: ArtifactFile) -> None:
        self._client = client
        self._loop = loop
        self._file = file

    @property
    def label(self) -> str:
        return self._file.path or self._file.digest

    @property
    def size_bytes(self) -> int:
        return self._file.size_bytes

    def fetch(self, offset: int, length: int) -> bytes:
        if not length:
            return b""  # a length of 0 would mean: to the end
        reading = asyncio.run_coroutine_threadsafe(self._read(offset, length), self._loop)
        try:
            return reading.result(_FETCH_TIMEOUT_S)
        finally:
            reading.cancel()

    async def _read(self, offset: int, length: int) -> bytes:
        name = f"blobs/{self._file.digest}"
        request = blobs_pb2.ReadBlobRequest(name=name, offset=offset, length=length)
        parts = [part.chunk async for part in self._client.blobs.ReadBlob(request, timeout=_FETCH_TIMEOUT_S)]
        return b"".join(parts)
