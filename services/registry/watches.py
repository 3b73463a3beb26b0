"""Streams of changes: what happened after a number, then what happens, as long as the caller listens."""

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol, TypeVar

from sqlalchemy import Connection

from octavo.errors import InvalidArgument, OutOfRange
from octavo.v1 import errors_pb2
from octavo.v1.deployments_pb2 import DeploymentEvent, WatchDeploymentsRequest
from octavo.v1.registry_pb2 import AuditEvent, WatchEventsRequest
from services.registry import audit, deployment_changes
from services.registry.database import Database


class _Numbered(Protocol):
    @property
    def sequence(self) -> int: ...


_Event = TypeVar("_Event", bound=_Numbered)


class Watches:
    """Follows the commits of `database`; looks every `poll_s` for those of other processes."""

    def __init__(self, database: Database, poll_s: float) -> None:
        self._database = database
        self._poll_s = poll_s

    async def events(self, request: WatchEventsRequest) -> AsyncIterator[AuditEvent]:
        """The audit events after a number. Raises OutOfRange for a number that no event has had yet."""
        _check_sequence(request.after_sequence)
        newest = await self._database.read(audit.last_sequence)
        if request.after_sequence > newest:
            raise OutOfRange(
                errors_pb2.REASON_INVALID_FIELD,
                f"after_sequence {request.after_sequence} is beyond the newest event, {newest}: is this the same "
                "registry? 0 begins with the first",
                violations={"after_sequence": f"{request.after_sequence} is beyond {newest}"},
                newest_sequence=newest,
            )
        changes = self._follow(
            lambda connection, sequence: audit.events_after(connection, request, sequence), request.after_sequence
        )
        async for event in changes:
            yield event

    async def deployments(self, request: WatchDeploymentsRequest) -> AsyncIterator[DeploymentEvent]:
        """All deployments, or what changed after a number; then what changes."""
        _check_sequence(request.after_sequence)
        sequence = request.after_sequence
        newest = await self._database.read(deployment_changes.last_sequence)
        if not 0 < sequence <= newest:
            for event in await self._database.read(deployment_changes.snapshot):
                sequence = event.sequence
                yield event
        async for event in self._follow(deployment_changes.changes_after, sequence):
            yield event

    async def _follow(
        self, read: Callable[[Connection, int], Sequence[_Event]], sequence: int
    ) -> AsyncIterator[_Event]:
        while True:
            generation = self._database.generation
            events = await self._database.read(lambda connection: read(connection, sequence))  # noqa: B023 - awaited at once
            for event in events:
                sequence = event.sequence
                yield event
            if not events:
                await self._database.changed_since(generation, self._poll_s)


def _check_sequence(sequence: int) -> None:
    if sequence < 0:
        raise InvalidArgument.field("after_sequence", f"{sequence} is negative; 0 begins with the first")
