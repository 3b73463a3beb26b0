"""The targets of a deployment: what may be one, which version each means now, and who stands on what."""

from collections.abc import Sequence

from sqlalchemy import Connection, delete, insert

from octavo.errors import InvalidArgument
from octavo.v1 import errors_pb2
from octavo.v1.deployments_pb2 import DeploymentTarget, Precision
from services.registry import names, references
from services.registry.schema import DEPLOYMENT_TARGETS

_FIELD = "deployment.targets"
_MAXIMUM = 8
_MAXIMUM_WEIGHT = 1_000_000


def resolved(
    connection: Connection, targets: Sequence[DeploymentTarget], field: str = _FIELD
) -> list[DeploymentTarget]:
    """The targets with the versions that they mean now.

    Raises InvalidArgument for targets that cannot be, NotFound for versions that are not there.
    """
    if not 1 <= len(targets) <= _MAXIMUM:
        raise InvalidArgument.field(field, f"{len(targets)} targets; 1 to {_MAXIMUM}")
    found = follow(connection, targets, field)
    if len({(target.resolved_version, target.precision) for target in found}) < len(found):
        shown = described(found)
        raise InvalidArgument.field(
            field, f"{shown}: the same version is there twice; one target with the sum of the weights"
        )
    if len(found) > 1 and not any(target.weight for target in found):
        raise InvalidArgument.field(field, "no target has a weight; at least one is above 0")
    return found


def follow(connection: Connection, targets: Sequence[DeploymentTarget], field: str = _FIELD) -> list[DeploymentTarget]:
    """The targets with the versions that they mean now; two may mean the same one, and their shares add up.

    That is what a canary that becomes the champion looks like: its alias moves to the version beside it.
    """
    return [_resolved(connection, target, f"{field}[{index}]") for index, target in enumerate(targets)]


def replace(connection: Connection, deployment: str, targets: Sequence[DeploymentTarget]) -> None:
    """Notes what the deployment stands on now."""
    connection.execute(delete(DEPLOYMENT_TARGETS).where(DEPLOYMENT_TARGETS.c.deployment == deployment))
    rows = []
    for position, target in enumerate(targets):
        reference = names.reference_in(target.version)
        _, number = names.version_in(target.resolved_version)
        rows.append(
            {
                "deployment": deployment,
                "position": position,
                "model": reference.model,
                "alias": reference.alias,
                "number": number,
            }
        )
    connection.execute(insert(DEPLOYMENT_TARGETS), rows)


def described(targets: Sequence[DeploymentTarget]) -> str:
    """The targets in one line, for the audit trail: `models/poet/versions/3 int8 90, …`."""
    return ", ".join(
        f"{target.resolved_version} {Precision.Name(target.precision).removeprefix('PRECISION_').lower()}"
        f" {target.weight}"
        for target in targets
    )


def _resolved(connection: Connection, target: DeploymentTarget, field: str) -> DeploymentTarget:
    reference = names.reference_in(target.version, f"{field}.version")
    number = references.number_of(connection, reference, f"{field}.version")
    version = names.version_name(reference.model, number)
    if not reference.alias and not reference.number:
        raise InvalidArgument.field(
            f"{field}.version",
            f"{target.version} says no version, and the newest changes unasked; {version} is the newest now, "
            f"{target.version}@champion would follow an alias",
            reason=errors_pb2.REASON_INVALID_NAME,
        )
    if not 0 <= target.weight <= _MAXIMUM_WEIGHT:
        raise InvalidArgument.field(f"{field}.weight", f"{target.weight}; 0 to {_MAXIMUM_WEIGHT}")
    if target.precision not in Precision.values():
        raise InvalidArgument.field(f"{field}.precision", f"{target.precision} is not a precision")
    return DeploymentTarget(
        version=target.version,
        weight=target.weight,
        precision=target.precision,
        on_demand=target.on_demand,
        resolved_version=version,
    )
