"""Decides what runs in the next step: who waits, whose prompt is read, which rows decode. Computes nothing itself.

Rows stay dense: the sequences that decode have the rows 0 to n, and the one whose prompt is being read has a row
behind them. How a prompt is cut into chunks depends on its length alone, so that a sequence meets the same kernels
whatever else is running.
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from time import perf_counter

from octavo.errors import ResourceExhausted
from octavo.v1.errors_pb2 import Reason
from services.inference.sequence import Sequence

SMOOTHING = 0.1
"""Weight of the newest sequence in the mean time that a slot is held."""


@dataclass(frozen=True, slots=True)
class PromptChunk:
    """The tokens `start` to `end` of a sequence's prompt."""

    sequence: Sequence
    start: int
    end: int

    @property
    def is_last(self) -> bool:
        return self.end == len(self.sequence.prompt)


@dataclass(frozen=True, slots=True)
class Move:
    """Row `source` takes the place of row `target`."""

    source: int
    target: int


class Scheduler:
    """First come, first served within a priority; a bounded queue; as many sequences at once as there are slots."""

    def __init__(self, *, slots: int, waiting_limit: int, chunk_tokens: int) -> None:
        self.slots = slots
        self.waiting_limit = waiting_limit
        self.running: list[Sequence] = []
        self.reading: Sequence | None = None
        self._chunk_tokens = chunk_tokens
        self._waiting: list[tuple[int, int, Sequence]] = []
        self._arrivals = count()
        self._mean_hold_s = 1.0

    @property
    def waiting_count(self) -> int:
        return len(self._waiting)

    @property
    def running_count(self) -> int:
        """Sequences that hold a slot."""
        return len(self.running) + (self.reading is not None)

    @property
    def has_work(self) -> bool:
        return bool(self.running or self.reading or self._waiting)

    def __iter__(self) -> Iterator[Sequence]:
        """All sequences, those that hold a slot first."""
        yield from self.running
        if self.reading:
            yield self.reading
        yield from (sequence for *_, sequence in self._waiting)

    def longest_wait_s(self) -> float | None:
        """How long the sequence that has waited longest has waited, in seconds; None where none waits. Any thread."""
        arrivals = [sequence.arrival_s for *_, sequence in list(self._waiting)]
        return perf_counter() - min(arrivals) if arrivals else None

    def add(self, sequence: Sequence) -> None:
        """Lets a sequence wait for its turn. Raises ResourceExhausted when too many wait already."""
        if len(self._waiting) >= self.waiting_limit:
            raise ResourceExhausted(
                Reason.REASON_QUEUE_FULL,
                f"{len(self._waiting)} requests are waiting already, as many as may; try again later",
                retry_after_s=self._wait_s(),
                waiting=len(self._waiting),
            )
        heapq.heappush(self._waiting, (-sequence.priority, next(self._arrivals), sequence))

    def chunks(self) -> Iterator[PromptChunk]:
        """What to read of prompts before the next decode step: one chunk's worth of tokens, first prompt first.

        Each chunk must have been read, and its sequence promoted or removed if it was the last, before the next.
        """
        tokens = 0
        while sequence := self._admit():
            end = min(sequence.read + self._chunk_tokens, len(sequence.prompt))
            size = end - sequence.read
            if tokens and tokens + size > self._chunk_tokens:
                return
            tokens += size
            yield PromptChunk(sequence, sequence.read, end)

    def promote(self, sequence: Sequence) -> Move | None:
        """Ends the reading of a prompt: the sequence decodes from now on, in the row behind the others."""
        self.reading = None
        source, sequence.row = sequence.row, len(self.running)
        self.running.append(sequence)
        return Move(source, sequence.row) if source != sequence.row else None

    def remove(self, sequence: Sequence, now_s: float) -> Move | None:
        """Takes a sequence out, wherever it is; the last row moves into the gap it leaves, if it leaves one."""
        if sequence.row < 0:
            self._waiting = [entry for entry in self._waiting if entry[2] is not sequence]
            heapq.heapify(self._waiting)
            return None
        self._mean_hold_s += SMOOTHING * (now_s - sequence.start_s - self._mean_hold_s)
        row, sequence.row = sequence.row, -1
        if sequence is self.reading:
            self.reading = None
            return None
        last = self.running.pop()
        if last is sequence:
            return None
        self.running[row] = last
        move = Move(last.row, row)
        last.row = row
        return move

    def _admit(self) -> Sequence | None:
        """The sequence whose prompt is being read: the next one that waits, if a slot is free."""
        if self.reading is None and self._waiting and len(self.running) < self.slots:
            self.reading = heapq.heappop(self._waiting)[2]
            self.reading.row = len(self.running)
        return self.reading

    def _wait_s(self) -> float:
        """When about half of those that wait will have had their turn."""
        return min(60.0, max(0.05, self._mean_hold_s * len(self._waiting) / self.slots / 2))
