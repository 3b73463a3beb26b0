"""What servers report of deployments. Reports are neither audited nor sent to watches: they are not what is wanted."""

from collections.abc import Iterable

from sqlalchemy import Connection, delete, insert, select

from octavo.errors import InvalidArgument
from octavo.v1 import errors_pb2
from octavo.v1.deployments_pb2 import DeploymentState, DeploymentStatus
from services.registry import limits, names
from services.registry.blobs import timestamp
from services.registry.change import Change
from services.registry.schema import DEPLOYMENT_STATUSES

_SERVER_CHARACTERS = 255
_MESSAGE_CHARACTERS = 2000
_MAXIMUM_SERVING = 64
# Servers that died never say so: the reports of the longest silent give way.
_MAXIMUM_SERVERS = 64

# From what hurts most to what hurts least.
_BY_BADNESS = (
    DeploymentState.DEPLOYMENT_STATE_FAILED,
    DeploymentState.DEPLOYMENT_STATE_PENDING,
    DeploymentState.DEPLOYMENT_STATE_LOADING,
    DeploymentState.DEPLOYMENT_STATE_READY,
)


def report(change: Change, deployment: str, current_revision: int, status: DeploymentStatus) -> None:
    """Keeps what a server says, in place of what it said before."""
    _check(status, current_revision)
    said = DeploymentStatus()
    said.CopyFrom(status)
    said.report_time.CopyFrom(timestamp(change.time_ns))
    mine = (DEPLOYMENT_STATUSES.c.deployment == deployment) & (DEPLOYMENT_STATUSES.c.server == status.server)
    change.connection.execute(delete(DEPLOYMENT_STATUSES).where(mine))
    change.connection.execute(
        insert(DEPLOYMENT_STATUSES).values(
            deployment=deployment,
            server=status.server,
            revision=status.revision,
            report_time_ns=change.time_ns,
            record=said.SerializeToString(),
        )
    )
    _forget_the_silent(change.connection, deployment)


def read(connection: Connection, deployments: Iterable[str]) -> dict[str, list[DeploymentStatus]]:
    """What each server last reported of each of these deployments."""
    found: dict[str, list[DeploymentStatus]] = {}
    chosen = select(DEPLOYMENT_STATUSES).where(DEPLOYMENT_STATUSES.c.deployment.in_(list(deployments)))
    for row in connection.execute(chosen.order_by(DEPLOYMENT_STATUSES.c.server)):
        found.setdefault(row.deployment, []).append(DeploymentStatus.FromString(row.record))
    return found


def worst(statuses: Iterable[DeploymentStatus], revision: int) -> DeploymentState.ValueType:
    """The worst of what is reported of this revision; PENDING if nothing is."""
    reported = [status.state for status in statuses if status.revision == revision]
    return min(reported, key=_BY_BADNESS.index, default=DeploymentState.DEPLOYMENT_STATE_PENDING)


def _check(status: DeploymentStatus, current_revision: int) -> None:
    if not status.server:
        raise InvalidArgument.field(
            "status.server",
            "is missing; a name that the server keeps, such as host and port",
            reason=errors_pb2.REASON_MISSING_FIELD,
        )
    limits.check_word(status.server, "status.server", _SERVER_CHARACTERS)
    if not 1 <= status.revision <= current_revision:
        raise InvalidArgument.field(
            "status.revision", f"{status.revision} is not a revision yet; 1 to {current_revision}"
        )
    if status.state not in _BY_BADNESS:
        raise InvalidArgument.field(
            "status.state", "says nothing; PENDING, LOADING, READY or FAILED", reason=errors_pb2.REASON_MISSING_FIELD
        )
    if len(status.message) > _MESSAGE_CHARACTERS:
        raise InvalidArgument.field(
            "status.message", f"{len(status.message)} characters; {_MESSAGE_CHARACTERS} at most"
        )
    limits.check_count(len(status.serving_versions), "status.serving_versions", _MAXIMUM_SERVING)
    for index, version in enumerate(status.serving_versions):
        names.version_in(version, f"status.serving_versions[{index}]")


def _forget_the_silent(connection: Connection, deployment: str) -> None:
    of_deployment = DEPLOYMENT_STATUSES.c.deployment == deployment
    newest_first = DEPLOYMENT_STATUSES.c.report_time_ns.desc()
    silent = (
        connection.execute(
            select(DEPLOYMENT_STATUSES.c.server).where(of_deployment).order_by(newest_first).offset(_MAXIMUM_SERVERS)
        )
        .scalars()
        .all()
    )
    if silent:
        connection.execute(delete(DEPLOYMENT_STATUSES).where(of_deployment, DEPLOYMENT_STATUSES.c.server.in_(silent)))
