"""The registry: models, versions, aliases, datasets, deployments and blobs, and the trail of every change."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import grpc

from octavo.addresses import CONTRACTS
from octavo.serving import Service, Telemetry
from octavo.v1 import blobs_pb2_grpc, datasets_pb2_grpc, deployments_pb2_grpc, registry_pb2_grpc
from services.registry import migrations, staging
from services.registry.blob_files import BlobFiles
from services.registry.database import Database
from services.registry.dataset_content import DatasetContent
from services.registry.servicer import (
    Access,
    BlobsServicer,
    DatasetsServicer,
    DeploymentsServicer,
    RegistryServicer,
)
from services.registry.settings import Settings
from services.registry.transactions import Transactions
from services.registry.uploads import Uploads
from services.registry.watches import Watches

__all__ = ["Settings", "assemble"]

# Enough to keep a few transfers going; each is bound by SHA-256 on one core.
_DISK_THREADS = 8
_SWEEP_INTERVAL_S = 3600.0


def assemble(settings: Settings, telemetry: Telemetry) -> Service:
    """Builds the registry; nothing is opened yet."""
    files = BlobFiles(settings.directory, settings.reserve_bytes)
    database = Database(settings.database_url or f"sqlite:///{settings.directory / 'registry.db'}")
    disk = ThreadPoolExecutor(_DISK_THREADS, "registry-disk")
    transactions = Transactions(database)
    access = Access(transactions, keys_are_checked=settings.api_keys is not None)
    watches = Watches(database, settings.poll_s)
    uploads = Uploads(files, transactions, disk, settings.max_blob_bytes)

    def register(server: grpc.aio.Server) -> None:
        registry_pb2_grpc.add_RegistryServicer_to_server(RegistryServicer(access, watches, files), server)
        datasets_pb2_grpc.add_DatasetsServicer_to_server(
            DatasetsServicer(access, DatasetContent(files, transactions, disk)), server
        )
        deployments_pb2_grpc.add_DeploymentsServicer_to_server(DeploymentsServicer(access, watches), server)
        blobs_pb2_grpc.add_BlobsServicer_to_server(BlobsServicer(access, uploads), server)

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        await asyncio.to_thread(files.prepare)
        await asyncio.to_thread(database.migrate, migrations.upgrade)
        sweeping = asyncio.create_task(_sweep(files, settings, telemetry), name="registry-sweep")
        try:
            yield
        finally:
            sweeping.cancel()
            await asyncio.to_thread(disk.shutdown)
            await asyncio.to_thread(database.close)

    return Service(
        name="registry",
        contracts=CONTRACTS["registry"],
        settings=settings,
        telemetry=telemetry,
        register=register,
        lifespan=lifespan,
    )


async def _sweep(files: BlobFiles, settings: Settings, telemetry: Telemetry) -> None:
    """Removes uploads that nobody goes on with, now and every hour."""
    while True:
        try:
            removed = await asyncio.to_thread(staging.sweep, files, settings.upload_expiry_s)
        except OSError:
            # One folder that cannot be read must not leave all later ones to pile up.
            telemetry.logger.exception("cannot remove expired uploads; trying again in an hour")
        else:
            if removed:
                telemetry.logger.info("removed expired uploads", extra={"uploads": removed})
        await asyncio.sleep(_SWEEP_INTERVAL_S)
