"""The audit trail: complete, in order, followed live, and broken visibly when somebody changes the past."""

import asyncio
import itertools
import sqlite3

import pytest

from octavo.errors import InvalidArgument, OutOfRange
from octavo.v1.registry_pb2 import (
    AuditEvent,
    CreateModelRequest,
    DeleteModelRequest,
    ListAuditEventsRequest,
    Model,
    UpdateModelRequest,
    VerifyAuditRequest,
    VerifyAuditResponse,
    WatchEventsRequest,
)
from tests.services.registry.conftest import Registry


async def make(registry: Registry, model_id: str) -> Model:
    return await registry.registry.CreateModel(CreateModelRequest(model=Model(), model_id=model_id))


async def verify(registry: Registry) -> VerifyAuditResponse:
    return await registry.registry.VerifyAudit(VerifyAuditRequest())


async def follow(registry: Registry, request: WatchEventsRequest, count: int) -> list[AuditEvent]:
    events = []
    async with asyncio.timeout(20):
        async for event in registry.registry.WatchEvents(request):
            events.append(event)
            if len(events) == count:
                break
    return events


async def test_every_change_is_there_in_order_and_linked(registry: Registry) -> None:
    await make(registry, "a")
    await registry.registry.UpdateModel(UpdateModelRequest(model=Model(name="models/a", description="x")))
    await registry.registry.DeleteModel(DeleteModelRequest(name="models/a"))
    events = list((await registry.registry.ListAuditEvents(ListAuditEventsRequest())).events)[::-1]
    assert [event.action for event in events] == ["model.created", "model.updated", "model.deleted"]
    assert [event.sequence for event in events] == [1, 2, 3]
    assert {event.actor for event in events} == {"anonymous"}
    assert events[0].previous_digest == f"sha256:{'0' * 64}"
    for before, after in itertools.pairwise(events):
        assert after.previous_digest == before.digest
    assert await verify(registry) == VerifyAuditResponse(valid=True, checked_events=3)


async def test_a_refused_change_leaves_no_event(registry: Registry) -> None:
    await make(registry, "a")
    with pytest.raises(InvalidArgument):
        await make(registry, "A")
    trial = CreateModelRequest(model=Model(), model_id="b", validate_only=True)
    await registry.registry.CreateModel(trial)
    assert (await registry.registry.ListAuditEvents(ListAuditEventsRequest())).total_size == 1


@pytest.mark.parametrize(
    ("change", "first_invalid"),
    [
        ("update audit_events set actor = 'somebody' where sequence = 2", 2),
        ('update audit_events set details = \'{"versions":"7"}\' where sequence = 3', 3),
        ("update audit_events set time_ns = time_ns + 1 where sequence = 1", 1),
        ("delete from audit_events where sequence = 2", 2),
        ("delete from audit_events where sequence = 4", 4),
        ("update audit_events set digest = previous_digest where sequence = 2", 2),
    ],
)
async def test_a_change_of_the_past_is_found_where_it_is(registry: Registry, change: str, first_invalid: int) -> None:
    for name in "abcd":
        await make(registry, name)
    connection = sqlite3.connect(registry.directory / "registry.db")
    with connection:
        connection.execute(change)
    connection.close()
    found = await verify(registry)
    assert not found.valid
    assert found.first_invalid_sequence == first_invalid
    assert found.checked_events == first_invalid - 1


async def test_the_list_is_paged_newest_first_and_filtered_by_resource(registry: Registry) -> None:
    for name in ("a", "b", "c"):
        await make(registry, name)
    page = await registry.registry.ListAuditEvents(ListAuditEventsRequest(page_size=2))
    assert [event.sequence for event in page.events] == [3, 2]
    rest = ListAuditEventsRequest(page_size=2, page_token=page.next_page_token)
    assert [event.sequence for event in (await registry.registry.ListAuditEvents(rest)).events] == [1]
    of_b = await registry.registry.ListAuditEvents(ListAuditEventsRequest(resource_prefix="models/b"))
    assert [event.resource for event in of_b.events] == ["models/b"]
    none = await registry.registry.ListAuditEvents(ListAuditEventsRequest(resource_prefix="models/_"))
    assert not none.events


async def test_a_watch_tells_what_was_and_what_comes(registry: Registry) -> None:
    await make(registry, "a")
    watching = asyncio.ensure_future(follow(registry, WatchEventsRequest(), 3))
    await asyncio.sleep(0.1)
    await make(registry, "b")
    await make(registry, "c")
    assert [event.resource for event in await watching] == ["models/a", "models/b", "models/c"]
    resumed = await follow(registry, WatchEventsRequest(after_sequence=2), 1)
    assert [event.resource for event in resumed] == ["models/c"]
    of_b = await follow(registry, WatchEventsRequest(resource_prefix="models/b"), 1)
    assert of_b[0].sequence == 2


async def test_a_watch_hears_what_another_process_writes(registry: Registry) -> None:
    await make(registry, "a")
    watching = asyncio.ensure_future(follow(registry, WatchEventsRequest(after_sequence=1), 1))
    await asyncio.sleep(0.1)
    connection = sqlite3.connect(registry.directory / "registry.db")
    with connection:
        connection.execute(
            "insert into audit_events select 2, time_ns, action, 'models/z', actor, details, digest, digest "
            "from audit_events where sequence = 1"
        )
    connection.close()
    assert (await watching)[0].resource == "models/z"


async def test_a_watch_from_the_future_is_refused(registry: Registry) -> None:
    with pytest.raises(OutOfRange, match="newest event, 0"):
        await follow(registry, WatchEventsRequest(after_sequence=5), 1)
    with pytest.raises(InvalidArgument):
        await follow(registry, WatchEventsRequest(after_sequence=-1), 1)
