"""Following a numbered stream across broken connections: every event once, in order, none lost.

A stream is resumed after the last event that arrived; the server keeps the numbers stable across its own restarts.
"""

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator
from typing import Protocol, TypeVar

from octavo.errors import Unavailable

PATIENCE_S = 30.0
"""How long a server may be away before a watch gives up, in seconds."""
BACKOFF_S = (0.05, 0.1, 0.2, 0.5, 1.0)


class Numbered(Protocol):
    """An event of a resumable stream."""

    @property
    def sequence(self) -> int: ...


Event = TypeVar("Event", bound=Numbered)


class _Patience:
    """How long to wait before the next attempt; raises the error once the server has been away too long."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._attempts = 0
        self._since_s = time.monotonic()

    def next_wait_s(self, error: Unavailable) -> float:
        if time.monotonic() - self._since_s > PATIENCE_S:
            raise error
        wait_s = BACKOFF_S[min(self._attempts, len(BACKOFF_S) - 1)]
        self._attempts += 1
        return wait_s


async def follow(open_stream: Callable[[int], AsyncIterable[Event]], after_sequence: int = 0) -> AsyncIterator[Event]:
    """Yields the events after `after_sequence` until the server ends the stream. Raises what the server raises."""
    patience = _Patience()
    while True:
        try:
            async for event in open_stream(after_sequence):
                patience.reset()
                after_sequence = event.sequence
                yield event
            return
        except Unavailable as error:
            await asyncio.sleep(patience.next_wait_s(error))


def follow_blocking(open_stream: Callable[[int], Iterator[Event]], after_sequence: int = 0) -> Iterator[Event]:
    """`follow`, for threads."""
    patience = _Patience()
    while True:
        try:
            for event in open_stream(after_sequence):
                patience.reset()
                after_sequence = event.sequence
                yield event
            return
        except Unavailable as error:
            time.sleep(patience.next_wait_s(error))
