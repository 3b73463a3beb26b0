"""What the registry holds, counted."""

from sqlalchemy import Connection, Table, func, select

from octavo.v1.registry_pb2 import RegistryStatistics
from services.registry.schema import AUDIT_EVENTS, BLOBS, DATASETS, DEPLOYMENTS, MODELS, VERSIONS


def count(connection: Connection) -> RegistryStatistics:
    """Counts everything, in one state."""

    def number_of(table: Table) -> int:
        return int(connection.execute(select(func.count()).select_from(table)).scalar_one())

    deployed = select(func.count()).select_from(DEPLOYMENTS).where(~DEPLOYMENTS.c.is_deleted)
    stored = select(func.coalesce(func.sum(BLOBS.c.size_bytes), 0))
    return RegistryStatistics(
        models=number_of(MODELS),
        versions=number_of(VERSIONS),
        datasets=number_of(DATASETS),
        deployments=connection.execute(deployed).scalar_one(),
        blobs=number_of(BLOBS),
        blob_bytes=int(connection.execute(stored).scalar_one()),
        audit_events=number_of(AUDIT_EVENTS),
    )
