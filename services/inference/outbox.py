"""Where tokens cross from an engine's thread to the event loop: many sequences at once, one wake-up a step.

A reader that is busy writing is not disturbed: what comes meanwhile waits for it, and travels together.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from octavo.errors import OctavoError
from octavo.v1.inference_pb2 import FinishReason
from services.inference.scoring import TokenScore


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a sequence ended: with a reason, or with an error. Times in seconds, of one monotonic clock."""

    finish_reason: FinishReason.ValueType = FinishReason.FINISH_REASON_UNSPECIFIED
    stop: str = ""
    error: OctavoError | None = None
    arrival_s: float
    start_s: float
    first_token_s: float
    end_s: float
    token_count: int


@dataclass(slots=True)
class Delivery:
    """What a reader gets at a time: text, the tokens it came from, their scores if asked for, at last the ending."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    scores: list[TokenScore] = field(default_factory=list)
    ending: Ending | None = None


class Outbox:
    """One sequence's way to its reader. `take` and `deliver` run on the event loop only.

    `is_hungry` is the one thing both threads touch: the reader sets it when it waits for text, the engine clears it
    when it hands some over. A reader that wants the whole text at the end only is never hungry.
    """

    def __init__(self, *, is_streaming: bool) -> None:
        self._is_streaming = is_streaming
        self._delivery: Delivery | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.is_hungry = is_streaming

    async def take(self) -> Delivery:
        """Waits for what comes next. After a delivery with an ending, nothing does."""
        if self._delivery is None:
            self._waiter = asyncio.get_running_loop().create_future()
            self.is_hungry = self._is_streaming
            await self._waiter
            self.is_hungry = False
        delivery, self._delivery = self._delivery, None
        if delivery is None:
            raise AssertionError("woken without a delivery")
        return delivery

    def deliver(self, delivery: Delivery) -> None:
        """Adds to what the reader will take, and wakes it."""
        if self._delivery is None:
            self._delivery = delivery
        else:
            self._delivery.text += delivery.text
            self._delivery.token_ids += delivery.token_ids
            self._delivery.scores += delivery.scores
            self._delivery.ending = delivery.ending
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)


async def merged(outboxes: list[Outbox]) -> AsyncIterator[tuple[int, Delivery]]:
    """The deliveries of several outboxes as they come, each with its number, until all have ended.

    Raises the error of the first that ends with one.
    """
    if len(outboxes) == 1:  # the usual case, without a task for each delivery
        is_over = False
        while not is_over:
            delivery = await outboxes[0].take()
            yield 0, delivery
            is_over = _is_last(delivery)
        return
    takes = {asyncio.create_task(outbox.take()): index for index, outbox in enumerate(outboxes)}
    try:
        while takes:
            finished, _ = await asyncio.wait(takes, return_when=asyncio.FIRST_COMPLETED)
            for task in finished:
                index, delivery = takes.pop(task), task.result()
                yield index, delivery
                if not _is_last(delivery):
                    takes[asyncio.create_task(outboxes[index].take())] = index
    finally:
        for task in takes:
            task.cancel()


def _is_last(delivery: Delivery) -> bool:
    if delivery.ending and delivery.ending.error:
        raise delivery.ending.error
    return delivery.ending is not None


class Courier:
    """Carries the deliveries of one engine to one event loop; `hand` and `depart` are its thread's alone."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._load: list[tuple[Outbox, Delivery]] = []

    def hand(self, outbox: Outbox, delivery: Delivery) -> None:
        """Takes a delivery along at the next departure."""
        outbox.is_hungry = False
        self._load.append((outbox, delivery))

    def depart(self) -> None:
        """Sends everything handed over since the last departure across, with one wake-up of the loop."""
        if self._load:
            self._loop.call_soon_threadsafe(_unload, self._load)
            self._load = []


def _unload(load: list[tuple[Outbox, Delivery]]) -> None:
    for outbox, delivery in load:
        outbox.deliver(delivery)
