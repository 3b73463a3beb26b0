"""What surrounds a job when it is planned: this machine as it is now, and what the registry holds under its names."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import psutil

from octavo.client import AsyncClient
from octavo.errors import InvalidArgument, NotFound
from octavo.v1 import deployments_pb2, registry_pb2
from octavo.v1 import trainer_pb2 as pb
from services.trainer.surroundings import Surroundings


@dataclass(frozen=True, kw_only=True)
class Neighbourhood:
    """Where jobs have their files, how many workers run at once, what an hour costs; 0 is an unknown price."""

    directory: Path
    workers: int
    price_per_hour: float


async def surroundings(client: AsyncClient, spec: pb.TrainSpec, neighbourhood: Neighbourhood) -> Surroundings:
    """What the job of this spec will meet; names that are not there yet, or are no names, meet nothing."""
    return Surroundings(
        free_disk_bytes=shutil.disk_usage(neighbourhood.directory).free,
        free_memory_bytes=psutil.virtual_memory().available,
        workers=neighbourhood.workers,
        price_per_hour=neighbourhood.price_per_hour,
        alias_versions=await _alias_versions(client, spec) if spec.aliases else {},
        deployed_models=await _deployed_models(client, spec) if spec.deployment else (),
    )


async def _alias_versions(client: AsyncClient, spec: pb.TrainSpec) -> dict[str, str]:
    try:
        model = await client.registry.GetModel(registry_pb2.GetModelRequest(name=spec.model))
    except (NotFound, InvalidArgument):
        return {}
    return {alias.name.rpartition("/")[2]: alias.version for alias in model.aliases}


async def _deployed_models(client: AsyncClient, spec: pb.TrainSpec) -> tuple[str, ...]:
    try:
        found = await client.deployments.GetDeployment(deployments_pb2.GetDeploymentRequest(name=spec.deployment))
    except (NotFound, InvalidArgument):
        return ()
    versions = [target.resolved_version or target.version for target in found.targets]
    return tuple(dict.fromkeys(version.partition("/versions/")[0].partition("@")[0] for version in versions))
