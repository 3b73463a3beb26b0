"""The audit trail, read: in pages, as a stream, and link by link to see whether it holds."""

import json
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, Row, Select, func, select

from octavo.v1.registry_pb2 import (
    AuditEvent,
    ListAuditEventsRequest,
    ListAuditEventsResponse,
    VerifyAuditResponse,
    WatchEventsRequest,
)
from services.registry import pages
from services.registry.blobs import timestamp
from services.registry.change import AUDIT_COUNTER, FIRST_PREVIOUS_DIGEST, link_digest
from services.registry.schema import AUDIT_EVENTS, COUNTERS

_BATCH = 1000


def list_events(connection: Connection, request: ListAuditEventsRequest) -> ListAuditEventsResponse:
    """One page of the events, newest first."""
    after = pages.key_after(request, request.page_token, (int,))
    size = pages.size(request.page_size)
    conditions = [AUDIT_EVENTS.c.resource.startswith(request.resource_prefix, autoescape=True)]
    chosen = select(AUDIT_EVENTS).where(*conditions).order_by(AUDIT_EVENTS.c.sequence.desc()).limit(size + 1)
    if after:
        chosen = chosen.where(AUDIT_EVENTS.c.sequence < after[0])
    rows = connection.execute(chosen).all()
    counted = select(func.count()).select_from(AUDIT_EVENTS).where(*conditions)
    shown = rows[:size]
    return ListAuditEventsResponse(
        events=[_event(row) for row in shown],
        next_page_token=pages.token(request, [shown[-1].sequence]) if len(rows) > size else "",
        total_size=connection.execute(counted).scalar_one(),
    )


def events_after(connection: Connection, request: WatchEventsRequest, sequence: int) -> list[AuditEvent]:
    """Up to 1,000 of the events after `sequence` that the watch asks for, oldest first."""
    chosen = _after(sequence).where(AUDIT_EVENTS.c.resource.startswith(request.resource_prefix, autoescape=True))
    return [_event(row) for row in connection.execute(chosen)]


def last_sequence(connection: Connection) -> int:
    """The number of the newest event; 0 before the first."""
    counted = select(COUNTERS.c.last).where(COUNTERS.c.name == AUDIT_COUNTER)
    return int(connection.execute(counted).scalar_one())


def verify(connection: Connection) -> VerifyAuditResponse:
    """Recomputes every link: numbers without gaps, digests over what is said, and none missing at the end."""
    previous, checked = FIRST_PREVIOUS_DIGEST, 0
    for row in _all(connection):
        event = row._asdict()
        is_next = row.sequence == checked + 1 and row.previous_digest == previous
        if not is_next or link_digest(event) != row.digest:
            return VerifyAuditResponse(checked_events=checked, first_invalid_sequence=checked + 1)
        previous, checked = row.digest, checked + 1
    if last_sequence(connection) != checked:
        return VerifyAuditResponse(checked_events=checked, first_invalid_sequence=checked + 1)
    return VerifyAuditResponse(valid=True, checked_events=checked)


def _all(connection: Connection) -> Iterator[Row[Any]]:
    """Every event, oldest first, read in batches."""
    sequence = -(2**62)  # also what somebody put before the first
    while rows := connection.execute(_after(sequence)).all():
        yield from rows
        sequence = rows[-1].sequence


def _after(sequence: int) -> Select[Any]:
    ordered = select(AUDIT_EVENTS).order_by(AUDIT_EVENTS.c.sequence).limit(_BATCH)
    return ordered.where(AUDIT_EVENTS.c.sequence > sequence)


def _event(row: Row[Any]) -> AuditEvent:
    return AuditEvent(
        sequence=row.sequence,
        event_time=timestamp(row.time_ns),
        action=row.action,
        resource=row.resource,
        actor=row.actor,
        details=json.loads(row.details),
        digest=f"sha256:{row.digest}",
        previous_digest=f"sha256:{row.previous_digest}",
    )
