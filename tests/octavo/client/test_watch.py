"""A watch goes on where it broke: every event once and in order."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.client import watch
from octavo.errors import NotFound, Unavailable
from octavo.v1 import errors_pb2


@dataclass(frozen=True)
class Event:
    """A numbered thing."""

    sequence: int


def broken():
    return Unavailable(errors_pb2.REASON_UPSTREAM_UNAVAILABLE, "connection lost")


class Server:
    """Holds ten events and breaks the connection after as many events as it is told, again and again."""

    def __init__(self, breaks):
        self.breaks = list(breaks)

    def stream(self, after):
        left = self.breaks.pop(0) if self.breaks else None
        for sequence in range(after + 1, 11):
            if left == 0:
                raise broken()
            left = None if left is None else left - 1
            yield Event(sequence)

    async def astream(self, after):
        for event in self.stream(after):
            yield event


@given(breaks=st.lists(st.integers(0, 10), max_size=4), after=st.integers(0, 10))
async def test_every_event_arrives_once_and_in_order_however_often_the_connection_breaks(breaks, after):
    expected = list(range(after + 1, 11))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watch, "BACKOFF_S", (0.0,))
        assert [event.sequence async for event in watch.follow(Server(breaks).astream, after)] == expected
        assert [event.sequence for event in watch.follow_blocking(Server(breaks).stream, after)] == expected


async def test_an_error_that_is_not_transient_ends_the_watch():
    def refused(after):
        raise NotFound(errors_pb2.REASON_MODEL_NOT_FOUND, "no such job")
        yield

    with pytest.raises(NotFound):
        list(watch.follow_blocking(refused))


def test_a_server_that_stays_away_ends_the_watch_with_its_error(monkeypatch):
    monkeypatch.setattr(watch, "PATIENCE_S", 0.05)
    monkeypatch.setattr(watch, "BACKOFF_S", (0.02,))

    def away(after):
        raise broken()
        yield

    with pytest.raises(Unavailable):
        list(watch.follow_blocking(away))
