"""lineage.json: where a version comes from, in enough detail to make it again.

Knows nothing of jobs or datasets beyond their names and digests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import octavo
from octavo.errors import InvalidArgument
from octavo.formats.bundle import read_json, write_json
from octavo.formats.manifest import canonical_json, digest_bytes
from octavo.v1.errors_pb2 import Reason

LINEAGE_FILE: Final = "lineage.json"


@dataclass(frozen=True, kw_only=True)
class DatasetDigest:
    """`name` is `datasets/tiny/versions/1`, `digest` the `sha256:…` of its content."""

    name: str
    digest: str


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """`specification` is the job's spec with every default resolved; `environment` what exactness depends on."""

    specification: Mapping[str, Any]
    datasets: tuple[DatasetDigest, ...]
    seed: int
    step: int
    environment: Mapping[str, Any]
    job: str | None = None
    parent_version: str | None = None
    code_version: str = field(default=octavo.__version__)

    @property
    def specification_digest(self) -> str:
        return digest_bytes(canonical_json(self.specification))

    @property
    def environment_fingerprint(self) -> str:
        return digest_bytes(canonical_json(self.environment))

    def write(self, directory: Path) -> None:
        """Write lineage.json, both digests included."""
        value = asdict(self) | {
            "specification_digest": self.specification_digest,
            "environment_fingerprint": self.environment_fingerprint,
        }
        write_json(directory / LINEAGE_FILE, value)

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Read lineage.json; InvalidArgument if it is incomplete or its digests are not of its contents."""
        try:
            value = read_json(directory / LINEAGE_FILE)
            claimed = (value.pop("specification_digest"), value.pop("environment_fingerprint"))
            datasets = tuple(DatasetDigest(**row) for row in value.pop("datasets"))
            lineage = cls(datasets=datasets, **value)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _invalid(f"it is not a lineage: {error}") from error
        if claimed != (lineage.specification_digest, lineage.environment_fingerprint):
            raise _invalid("its digests are not those of its contents")
        return lineage


def _invalid(text: str) -> InvalidArgument:
    return InvalidArgument.field(LINEAGE_FILE, text, reason=Reason.REASON_INVALID_BUNDLE)
