"""What a plan meets outside its spec: the disk, the memory, the neighbours, and what bears its names already."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """Numbers are 0 and names empty where they are unknown; a worker, whose job is accepted, knows nothing of them.

    `alias_versions` are the aliases that the model has, with the versions they name; `deployed_models` what the
    deployment of the spec serves now.
    """

    free_disk_bytes: int = 0
    free_memory_bytes: int = 0
    workers: int = 1
    price_per_hour: float = 0.0
    alias_versions: Mapping[str, str] = field(default_factory=dict)
    deployed_models: tuple[str, ...] = ()
