"""One write transaction: who makes it, when, and the audit events that go with it.

Every event is a link of a hash chain, written in the transaction of the change it tells of: neither is there
without the other.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, insert, select, update

from services.registry.schema import AUDIT_EVENTS, COUNTERS

AUDIT_COUNTER = "audit"
FIRST_PREVIOUS_DIGEST = "0" * 64


@dataclass(frozen=True, slots=True)
class Change:
    """A write transaction under way."""

    connection: Connection
    time_ns: int
    actor: str

    @classmethod
    def begin(cls, connection: Connection, time_ns: int, actor: str) -> "Change":
        """Takes the registry's write lock: the row of the audit counter.

        SQLite has locked the whole database already; other databases wait here, so that writers of several
        processes form one line and the chain has no forks.
        """
        lock = select(COUNTERS.c.last).where(COUNTERS.c.name == AUDIT_COUNTER).with_for_update()
        connection.execute(lock).one()
        return cls(connection, time_ns, actor)

    def next_number(self, counter: str) -> int:
        """Counts `counter` up, from 1. What was counted stays counted when the resource is deleted."""
        bumped = self.connection.execute(
            update(COUNTERS)
            .where(COUNTERS.c.name == counter)
            .values(last=COUNTERS.c.last + 1)
            .returning(COUNTERS.c.last)
        ).scalar_one_or_none()
        if bumped is None:
            self.connection.execute(insert(COUNTERS).values(name=counter, last=1))
            return 1
        return int(bumped)

    def record(self, action: str, resource: str, details: Mapping[str, str] | None = None) -> int:
        """Appends an event to the chain; returns its sequence number."""
        sequence = self.next_number(AUDIT_COUNTER)
        previous = self.connection.execute(
            select(AUDIT_EVENTS.c.digest).where(AUDIT_EVENTS.c.sequence == sequence - 1)
        ).scalar_one_or_none()
        event = {
            "sequence": sequence,
            "time_ns": self.time_ns,
            "action": action,
            "resource": resource,
            "actor": self.actor,
            "details": canonical_json(dict(details or {})),
            "previous_digest": previous or FIRST_PREVIOUS_DIGEST,
        }
        self.connection.execute(insert(AUDIT_EVENTS).values(event | {"digest": link_digest(event)}))
        return sequence


def link_digest(event: Mapping[str, object]) -> str:
    """SHA-256, in hexadecimal, of everything an event says and of the digest of the one before."""
    keys = ("sequence", "time_ns", "action", "resource", "actor", "details", "previous_digest")
    return hashlib.sha256(canonical_json({key: event[key] for key in keys}).encode()).hexdigest()


def canonical_json(value: object) -> str:
    """The one JSON text of a value: keys sorted, no spaces, characters unescaped."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
