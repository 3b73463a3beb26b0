"""The trainer: jobs that survive the loss of every process. This module puts its parts together."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
import psutil

from octavo.addresses import CONTRACTS, Addresses
from octavo.client import AsyncClient
from octavo.serving import Service, Telemetry
from octavo.v1.trainer_pb2_grpc import add_TrainerServicer_to_server
from services.trainer.executor import ROOT
from services.trainer.guard import Limits
from services.trainer.job_directory import Launch
from services.trainer.job_metrics import JobCollector
from services.trainer.jobs import JobStore
from services.trainer.neighbourhood import Neighbourhood
from services.trainer.planner import Planner
from services.trainer.preview import Previewer
from services.trainer.servicer import TrainerServicer
from services.trainer.settings import Settings
from services.trainer.supervisor import Supervisor

__all__ = ["Settings", "assemble"]


def assemble(settings: Settings, telemetry: Telemetry) -> Service:
    """The trainer as a service. Its data directory is opened in its lifespan, not before."""
    directory = settings.data_dir / "trainer"
    store = JobStore(directory / "jobs.sqlite")
    launch = Launch(
        registry=settings.registry,
        api_key=settings.api_key,
        corpora=str(directory / "corpora"),
        registry_patience_s=settings.registry_patience_s,
        corpora_limit_bytes=settings.corpora_limit_bytes,
    )
    limits = Limits(
        max_running_jobs=settings.max_running_jobs,
        max_queued_jobs=settings.max_queued_jobs,
        max_restarts=settings.max_restarts,
        restart_delay_s=settings.restart_delay_s,
        stop_grace_s=settings.stop_grace_s,
        stop_workers=settings.stop_workers,
    )
    supervisor = Supervisor(directory, store, launch, telemetry.logger, limits=limits)
    client = AsyncClient(Addresses(registry=settings.registry), api_key=settings.api_key)
    threads = max(1, (psutil.cpu_count(logical=False) or 1) // settings.max_running_jobs)
    neighbourhood = Neighbourhood(
        directory=directory, workers=settings.max_running_jobs, price_per_hour=settings.price_per_hour
    )
    planner = Planner(client, str(ROOT), threads, neighbourhood, Previewer(str(ROOT), launch))

    def register(server: grpc.aio.Server) -> None:
        servicer = TrainerServicer(supervisor, store, planner)
        add_TrainerServicer_to_server(servicer, server)

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        collector = JobCollector(supervisor)
        async with AsyncExitStack() as stack:
            stack.push_async_callback(client.close)
            await asyncio.to_thread(store.open)
            stack.callback(store.close)
            stack.callback(supervisor.close)
            await asyncio.to_thread(supervisor.open)
            await stack.enter_async_context(planner.looking())
            telemetry.collector.register(collector)
            stack.callback(telemetry.collector.unregister, collector)
            yield

    return Service(
        name="trainer",
        contracts=CONTRACTS["trainer"],
        settings=settings,
        telemetry=telemetry,
        register=register,
        lifespan=lifespan,
        is_ready=lambda: supervisor.is_ticking,
    )
