"""Who answers where: the programs' names, their default ports and the services each one hosts. Said once."""

from collections.abc import Mapping
from dataclasses import dataclass

PORTS: Mapping[str, int] = {
    "gateway": 8080,
    "registry": 50051,
    "trainer": 50052,
    "inference": 50053,
    "inspector": 50054,
}

METRICS_PORTS: Mapping[str, int] = {program: 9000 + port % 1000 for program, port in PORTS.items()}
"""One `/metrics` port for each program; a process that hosts several uses its first one's."""

CONTRACTS: Mapping[str, tuple[str, ...]] = {
    "registry": ("octavo.v1.Registry", "octavo.v1.Datasets", "octavo.v1.Deployments", "octavo.v1.Blobs"),
    "trainer": ("octavo.v1.Trainer",),
    "inference": ("octavo.v1.Inference", "inference.GRPCInferenceService"),
    "inspector": ("octavo.v1.Inspector",),
}
"""The full names of the gRPC services that each program hosts."""


def local(program: str) -> str:
    """Where a program listens on this machine unless it is told otherwise: `127.0.0.1:50051`."""
    return f"127.0.0.1:{PORTS[program]}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Addresses:
    """Where the gRPC programs are: `host:port`, or any target that gRPC resolves (`dns:///registry:50051`)."""

    registry: str = local("registry")
    trainer: str = local("trainer")
    inference: str = local("inference")
    inspector: str = local("inspector")
