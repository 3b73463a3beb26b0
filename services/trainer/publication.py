"""A proven bundle becomes a version: blobs, version, aliases, deployment, in this order, each step repeatable.

Request ids follow from the job, so a worker that was lost in the middle registers nothing twice.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct

from octavo.formats.lineage import Lineage
from octavo.formats.manifest import Manifest
from octavo.v1 import deployments_pb2, registry_pb2
from octavo.v1 import trainer_pb2 as pb
from octavo.v1.deployments_pb2 import Precision
from services.trainer.job_directory import JobDirectory
from services.trainer.registry_link import RegistryLink

_RECORD: Final = "release.json"


@dataclass(frozen=True, kw_only=True)
class Release:
    """A bundle that is whole and proven, with what the registry is told of it; all plain JSON values.

    `parity` is the record of the proof, `lineage` a registry Lineage.
    """

    job: str
    bundle: str
    family: str
    parameter_count: int
    metrics: dict[str, float]
    parity: dict[str, Any]
    lineage: dict[str, Any]

    @classmethod
    def read(cls, directory: JobDirectory) -> Self | None:
        """What an earlier attempt made, if it came so far."""
        path = directory.path / _RECORD
        return cls(**json.loads(path.read_text())) if path.is_file() else None

    def write(self, directory: JobDirectory) -> None:
        """Everything of the bundle first, then the record: its presence says that the bundle is whole."""
        for file in Path(self.bundle).rglob("*"):
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        path = directory.path / _RECORD
        partial = path.with_name(f".{path.name}.partial")
        with partial.open("w") as stream:
            json.dump(asdict(self), stream, indent=1)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)


def register(
    link: RegistryLink, model: str, release: Release, request_id: str, heed: Callable[[], None]
) -> registry_pb2.Version:
    """Upload every file and register the version; again with the same `request_id` returns the same version."""
    version = registry_pb2.Version(
        family=release.family,
        parameter_count=release.parameter_count,
        metrics=release.metrics,
        lineage=ParseDict(release.lineage, registry_pb2.Lineage()),
        parity=ParseDict(release.parity, Struct()),
    )
    bundle = Path(release.bundle)
    manifest = Manifest.of_directory(bundle)
    for file in manifest.files:
        heed()
        _upload(link, bundle / file.path)
        version.files.add(path=file.path, blob=f"blobs/{file.digest}", size_bytes=file.size_bytes)
    for name, digest in manifest.tensors.items():
        version.tensors.add(name=name, digest=digest)
    request = registry_pb2.CreateVersionRequest(parent=model, version=version, request_id=request_id)
    return link.call(lambda client: client.registry.CreateVersion(request))


def set_alias(link: RegistryLink, version: registry_pb2.Version, alias: str) -> str:
    """Move an alias of the version's model to it; returns the reference, such as `models/poet@champion`."""
    model = version.name.partition("/versions/")[0]
    request = registry_pb2.SetAliasRequest(name=f"{model}/aliases/{alias}", version=version.name)
    link.call(lambda client: client.registry.SetAlias(request))
    return f"{model}@{alias}"


def deploy(link: RegistryLink, version: registry_pb2.Version, deployment: str, precision: Precision.ValueType) -> str:
    """Have the version served alone under this deployment, which is made when there is none; returns its name."""
    request = deployments_pb2.UpdateDeploymentRequest(
        deployment=deployments_pb2.Deployment(
            name=deployment,
            targets=[deployments_pb2.DeploymentTarget(version=version.name, weight=1, precision=precision)],
        ),
        update_mask=FieldMask(paths=["targets"]),
        allow_missing=True,
    )
    return link.call(lambda client: client.deployments.UpdateDeployment(request)).name


def registered_lineage(lineage: Lineage) -> dict[str, Any]:
    """What the registry is told of a lineage, as the JSON of its Lineage."""
    return {
        "job": lineage.job or "",
        "datasets": [{"dataset": one.name, "blob": f"blobs/{one.digest}"} for one in lineage.datasets],
        "parent_version": lineage.parent_version or "",
        "step": str(lineage.step),
        "seed": str(lineage.seed),
        "specification_digest": lineage.specification_digest,
        "code_version": lineage.code_version,
        "environment_fingerprint": lineage.environment_fingerprint,
    }


def request_id_of(job: pb.Job, act: str) -> str:
    """A UUID that is the same each time the same job does the same thing."""
    # The name alone may come back: of a job that was deleted, while the registry still remembers what it asked for.
    identity = f"{job.name} {job.create_time.ToNanoseconds()} {act}"
    return str(uuid.UUID(bytes=hashlib.sha256(identity.encode()).digest()[:16], version=4))


def _upload(link: RegistryLink, path: Path) -> None:
    link.call(lambda client: client.upload(path))
