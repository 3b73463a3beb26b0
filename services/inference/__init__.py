"""The inference server: what deployments ask for, held in memory and answering."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial

import grpc

from octavo.addresses import CONTRACTS, Addresses
from octavo.client import AsyncClient, transfer
from octavo.open_inference import open_inference_pb2_grpc
from octavo.serving import Service, Telemetry
from octavo.v1 import inference_pb2_grpc
from services.inference.bundle_cache import BundleCache
from services.inference.catalog import Catalog
from services.inference.deployments import Deployments, server_name
from services.inference.device import Choice, choose
from services.inference.loader import Loader
from services.inference.memory_budget import MemoryBudget
from services.inference.metrics import InferenceCollector
from services.inference.open_inference_servicer import OpenInferenceServicer
from services.inference.precisions import Preferences
from services.inference.repository import Repository
from services.inference.residency import Residency
from services.inference.roster import Roster
from services.inference.served_model import ServedModel
from services.inference.servicer import InferenceServicer
from services.inference.settings import InferenceSettings as Settings
from services.inference.tensor_metrics import TensorCollector

__all__ = ["Settings", "assemble"]


def assemble(settings: Settings, telemetry: Telemetry) -> Service:
    """The inference server as a service; nothing runs yet."""
    program = _Program(settings, telemetry)
    return Service(
        name="inference",
        contracts=CONTRACTS["inference"],
        settings=settings,
        telemetry=telemetry,
        register=program.register,
        lifespan=program.lifespan,
        is_ready=program.is_ready,
    )


class _Program:
    """What the parts share: the roster. Engines need the event loop, so the rest is made when it runs."""

    def __init__(self, settings: Settings, telemetry: Telemetry) -> None:
        self._settings = settings
        self._telemetry = telemetry
        self._preferences = Preferences(settings.precisions)
        self._roster = Roster(self._preferences)
        self._deployments: Deployments | None = None
        self._repository: Repository | None = None

    def register(self, server: grpc.aio.Server) -> None:
        servicer = InferenceServicer(self._roster, self._find)
        inference_pb2_grpc.add_InferenceServicer_to_server(servicer, server)
        open_servicer = OpenInferenceServicer(
            self._roster,
            servicer,
            self._find,
            repository=lambda: self._repository,
            is_ready=self.is_ready,
            logger=self._telemetry.logger,
        )
        open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(open_servicer, server)

    def is_ready(self) -> bool:
        return self._deployments is not None and self._deployments.is_settled

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        collectors = (InferenceCollector(self._roster), TensorCollector(self._roster))
        for collector in collectors:
            self._telemetry.collector.register(collector)
        async with AsyncClient(Addresses(registry=self._settings.registry), api_key=self._settings.api_key) as client:
            self._deployments, residency = self._assembled(client)
            if self._settings.repository_control:
                self._repository = Repository(client, server_name(self._settings.port), self._roster)
            following = asyncio.create_task(self._deployments.run(), name="deployments")
            try:
                yield
            finally:
                following.cancel()
                with suppress(asyncio.CancelledError):
                    await following
                await residency.close()
                for collector in collectors:
                    self._telemetry.collector.unregister(collector)

    def _assembled(self, client: AsyncClient) -> tuple[Deployments, Residency]:
        settings = self._settings
        catalog = Catalog(client)
        residency = Residency(
            roster=self._roster,
            catalog=catalog,
            bundles=BundleCache(settings.data_dir / "inference" / "bundles", partial(transfer.download, client.blobs)),
            loader=Loader(settings, asyncio.get_running_loop(), self._telemetry.logger, self._device()),
            budget=MemoryBudget(settings.memory_budget_bytes),
            logger=self._telemetry.logger,
            drain_s=settings.drain_s,
            keep_alive_s=settings.keep_alive_s,
            patience_s=settings.load_patience_s,
        )
        deployments = Deployments(
            client=client,
            roster=self._roster,
            catalog=catalog,
            residency=residency,
            preferences=self._preferences,
            telemetry=self._telemetry,
            server=server_name(settings.port),
        )
        return deployments, residency

    def _device(self) -> Choice:
        """Where versions in 16 bits compute; says why not on a device, louder where one was named."""
        choice = choose(self._settings.device)
        if choice.reason:
            level = logging.INFO if self._settings.device == "auto" else logging.WARNING
            self._telemetry.logger.log(level, "everything computes on the cpu, %s", choice.reason)
        return choice

    async def _find(self, reference: str, *, takes_turn: bool = True) -> ServedModel:
        if self._deployments is None:
            raise AssertionError("called before the service runs")
        return await self._deployments.find(reference, takes_turn=takes_turn)
