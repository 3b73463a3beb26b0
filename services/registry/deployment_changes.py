"""Deployments as a stream: all there are, then what changes, each with its number in one sequence."""

from sqlalchemy import Connection, select

from octavo.v1.deployments_pb2 import DeploymentEvent, SnapshotComplete
from services.registry import deployments, names
from services.registry.schema import COUNTERS, DEPLOYMENTS

_COUNTER = "deployments"


def snapshot(connection: Connection) -> list[DeploymentEvent]:
    """All deployments, and that these are all."""
    events = [event for event in changes_after(connection, 0) if event.WhichOneof("change") == "updated"]
    complete = DeploymentEvent(sequence=last_sequence(connection), snapshot_complete=SnapshotComplete())
    return [*events, complete]


def changes_after(connection: Connection, sequence: int) -> list[DeploymentEvent]:
    """What changed after `sequence`, in order; of several changes of one deployment the last."""
    chosen = select(DEPLOYMENTS).where(DEPLOYMENTS.c.sequence > sequence).order_by(DEPLOYMENTS.c.sequence)
    rows = connection.execute(chosen).all()
    wanted = [row for row in rows if not row.is_deleted]
    updated = dict(zip((row.deployment for row in wanted), deployments.assembled(connection, wanted), strict=True))
    return [
        DeploymentEvent(sequence=row.sequence, deleted=names.deployment_name(row.deployment))
        if row.is_deleted
        else DeploymentEvent(sequence=row.sequence, updated=updated[row.deployment])
        for row in rows
    ]


def last_sequence(connection: Connection) -> int:
    """The number of the latest change."""
    return int(connection.execute(select(COUNTERS.c.last).where(COUNTERS.c.name == _COUNTER)).scalar_one())
