"""The suite as an object: one stub for each service, with the transfers and watches that span several calls."""

from collections.abc import AsyncIterator, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

import grpc
from google.protobuf.descriptor import FileDescriptor

from octavo.addresses import Addresses
from octavo.client import channel, transfer
from octavo.client.watch import follow, follow_blocking
from octavo.v1 import (
    blobs_pb2,
    blobs_pb2_grpc,
    datasets_pb2,
    datasets_pb2_grpc,
    deployments_pb2,
    deployments_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
    inspector_pb2,
    inspector_pb2_grpc,
    registry_pb2,
    registry_pb2_grpc,
    trainer_pb2,
    trainer_pb2_grpc,
)

if TYPE_CHECKING:
    from octavo.v1.blobs_pb2_grpc import BlobsAsyncStub
    from octavo.v1.datasets_pb2_grpc import DatasetsAsyncStub
    from octavo.v1.deployments_pb2_grpc import DeploymentsAsyncStub
    from octavo.v1.inference_pb2_grpc import InferenceAsyncStub
    from octavo.v1.inspector_pb2_grpc import InspectorAsyncStub
    from octavo.v1.registry_pb2_grpc import RegistryAsyncStub
    from octavo.v1.trainer_pb2_grpc import TrainerAsyncStub

FILES: Mapping[str, tuple[FileDescriptor, ...]] = {
    "registry": (
        registry_pb2.DESCRIPTOR,
        datasets_pb2.DESCRIPTOR,
        deployments_pb2.DESCRIPTOR,
        blobs_pb2.DESCRIPTOR,
    ),
    "trainer": (trainer_pb2.DESCRIPTOR,),
    "inference": (inference_pb2.DESCRIPTOR,),
    "inspector": (inspector_pb2.DESCRIPTOR,),
}


class AsyncClient:
    """The suite for an event loop. Calls raise the errors of octavo.errors. Close it, or use it as a context."""

    def __init__(self, addresses: Addresses | None = None, *, api_key: str = "") -> None:
        self._addresses = addresses or Addresses()
        self._metadata = _credentials(api_key)
        self._channels: dict[str, grpc.aio.Channel] = {}

    @cached_property
    def registry(self) -> "RegistryAsyncStub":
        """Models, versions, aliases, events."""
        return cast("RegistryAsyncStub", self._calls("registry", registry_pb2_grpc.RegistryStub))

    @cached_property
    def datasets(self) -> "DatasetsAsyncStub":
        """Text and rows."""
        return cast("DatasetsAsyncStub", self._calls("registry", datasets_pb2_grpc.DatasetsStub))

    @cached_property
    def deployments(self) -> "DeploymentsAsyncStub":
        """What should be served."""
        return cast("DeploymentsAsyncStub", self._calls("registry", deployments_pb2_grpc.DeploymentsStub))

    @cached_property
    def blobs(self) -> "BlobsAsyncStub":
        """Bytes by digest."""
        return cast("BlobsAsyncStub", self._calls("registry", blobs_pb2_grpc.BlobsStub))

    @cached_property
    def trainer(self) -> "TrainerAsyncStub":
        """Jobs."""
        return cast("TrainerAsyncStub", self._calls("trainer", trainer_pb2_grpc.TrainerStub))

    @cached_property
    def inference(self) -> "InferenceAsyncStub":
        """Generation."""
        return cast("InferenceAsyncStub", self._calls("inference", inference_pb2_grpc.InferenceStub))

    @cached_property
    def inspector(self) -> "InspectorAsyncStub":
        """What is inside a model, and inside this machine."""
        return cast("InspectorAsyncStub", self._calls("inspector", inspector_pb2_grpc.InspectorStub))

    async def upload(self, source: Path | bytes, *, progress: transfer.Progress | None = None) -> blobs_pb2.Blob:
        """Uploads a file or bytes; answers once the registry has them durably. What it has already is not sent."""
        return await transfer.upload(self.blobs, source, progress=progress)

    async def download(
        self, name: str, target: Path, *, size_bytes: int | None = None, progress: transfer.Progress | None = None
    ) -> Path:
        """Downloads a blob to the file `target`, which appears whole and verified or not at all."""
        return await transfer.download(self.blobs, name, target, size_bytes=size_bytes, progress=progress)

    async def read(self, name: str, offset: int = 0, length: int = 0) -> bytes:
        """Reads `length` bytes of a blob from `offset`, all to its end with 0. A whole blob is verified."""
        return await transfer.read(self.blobs, name, offset, length)

    def watch_job(self, name: str, after_sequence: int = 0) -> AsyncIterator[trainer_pb2.JobEvent]:
        """The events of a job, each once and in order, across broken connections, until the job has ended."""
        return follow(
            lambda sequence: self.trainer.WatchJob(trainer_pb2.WatchJobRequest(name=name, after_sequence=sequence)),
            after_sequence,
        )

    async def close(self) -> None:
        """Closes the connections; calls under way are cancelled."""
        for open_channel in self._channels.values():
            await open_channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _calls(self, program: str, stub: Any) -> channel.AsyncCalls:
        if program not in self._channels:
            target = getattr(self._addresses, program)
            self._channels[program] = channel.open_async(target, _services(program))
        return channel.AsyncCalls(stub(self._channels[program]), self._metadata)


class Client:
    """The suite for threads, scripts and notebooks. Calls raise the errors of octavo.errors."""

    def __init__(self, addresses: Addresses | None = None, *, api_key: str = "") -> None:
        self._addresses = addresses or Addresses()
        self._metadata = _credentials(api_key)
        self._channels: dict[str, grpc.Channel] = {}

    @cached_property
    def registry(self) -> registry_pb2_grpc.RegistryStub:
        """Models, versions, aliases, events."""
        return cast("registry_pb2_grpc.RegistryStub", self._calls("registry", registry_pb2_grpc.RegistryStub))

    @cached_property
    def datasets(self) -> datasets_pb2_grpc.DatasetsStub:
        """Text and rows."""
        return cast("datasets_pb2_grpc.DatasetsStub", self._calls("registry", datasets_pb2_grpc.DatasetsStub))

    @cached_property
    def deployments(self) -> deployments_pb2_grpc.DeploymentsStub:
        """What should be served."""
        stub = self._calls("registry", deployments_pb2_grpc.DeploymentsStub)
        return cast("deployments_pb2_grpc.DeploymentsStub", stub)

    @cached_property
    def blobs(self) -> blobs_pb2_grpc.BlobsStub:
        """Bytes by digest."""
        return cast("blobs_pb2_grpc.BlobsStub", self._calls("registry", blobs_pb2_grpc.BlobsStub))

    @cached_property
    def trainer(self) -> trainer_pb2_grpc.TrainerStub:
        """Jobs."""
        return cast("trainer_pb2_grpc.TrainerStub", self._calls("trainer", trainer_pb2_grpc.TrainerStub))

    @cached_property
    def inference(self) -> inference_pb2_grpc.InferenceStub:
        """Generation."""
        return cast("inference_pb2_grpc.InferenceStub", self._calls("inference", inference_pb2_grpc.InferenceStub))

    @cached_property
    def inspector(self) -> inspector_pb2_grpc.InspectorStub:
        """What is inside a model, and inside this machine."""
        return cast("inspector_pb2_grpc.InspectorStub", self._calls("inspector", inspector_pb2_grpc.InspectorStub))

    def upload(self, source: Path | bytes, *, progress: transfer.Progress | None = None) -> blobs_pb2.Blob:
        """Uploads a file or bytes; answers once the registry has them durably. What it has already is not sent."""
        return transfer.upload_blocking(self.blobs, source, progress=progress)

    def download(
        self, name: str, target: Path, *, size_bytes: int | None = None, progress: transfer.Progress | None = None
    ) -> Path:
        """Downloads a blob to the file `target`, which appears whole and verified or not at all."""
        return transfer.download_blocking(self.blobs, name, target, size_bytes=size_bytes, progress=progress)

    def read(self, name: str, offset: int = 0, length: int = 0) -> bytes:
        """Reads `length` bytes of a blob from `offset`, all to its end with 0. A whole blob is verified."""
        return transfer.read_blocking(self.blobs, name, offset, length)

    def watch_job(self, name: str, after_sequence: int = 0) -> Iterator[trainer_pb2.JobEvent]:
        """The events of a job, each once and in order, across broken connections, until the job has ended."""
        return follow_blocking(
            lambda sequence: self.trainer.WatchJob(trainer_pb2.WatchJobRequest(name=name, after_sequence=sequence)),
            after_sequence,
        )

    def close(self) -> None:
        """Closes the connections; calls under way are cancelled."""
        for open_channel in self._channels.values():
            open_channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _calls(self, program: str, stub: Any) -> channel.BlockingCalls:
        if program not in self._channels:
            target = getattr(self._addresses, program)
            self._channels[program] = channel.open_blocking(target, _services(program))
        return channel.BlockingCalls(stub(self._channels[program]), self._metadata)


def _services(program: str) -> list[Any]:
    return [service for file in FILES[program] for service in file.services_by_name.values()]


def _credentials(api_key: str) -> channel.Metadata:
    return (("authorization", f"Bearer {api_key}"),) if api_key else ()
