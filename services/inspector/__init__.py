"""The inspector: takes models apart without executing them, and says what the machine can bear."""

from __future__ import annotations

from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import grpc

from octavo.addresses import CONTRACTS, Addresses
from octavo.client import AsyncClient
from octavo.serving import Service, Telemetry
from octavo.v1.inspector_pb2_grpc import add_InspectorServicer_to_server
from services.inspector.accelerators import AcceleratorProbe
from services.inspector.artifacts import RegistryArtifacts
from services.inspector.processor import ProcessorProbe
from services.inspector.servicer import InspectorServicer
from services.inspector.settings import InspectorSettings
from services.inspector.system import SystemProbe

Settings = InspectorSettings


def assemble(settings: InspectorSettings, telemetry: Telemetry) -> Service:
    """The inspector as a service; it opens nothing before its lifespan."""
    accelerators = AcceleratorProbe()
    client = AsyncClient(Addresses(registry=settings.registry), api_key=settings.api_key)
    executor = ThreadPoolExecutor(settings.threads, thread_name_prefix="inspector")
    system = SystemProbe(settings.data_dir, ProcessorProbe(), accelerators)
    # The calls of the contract that are left out answer UNIMPLEMENTED by themselves.
    servicer = InspectorServicer(RegistryArtifacts(client), system, executor, settings)  # type: ignore[abstract]

    def register(server: grpc.aio.Server) -> None:
        add_InspectorServicer_to_server(servicer, server)

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        try:
            yield
        finally:
            executor.shutdown(wait=False, cancel_futures=True)
            await client.close()
            accelerators.close()

    return Service(
        name="inspector",
        contracts=CONTRACTS["inspector"],
        settings=settings,
        telemetry=telemetry,
        register=register,
        lifespan=lifespan,
    )
