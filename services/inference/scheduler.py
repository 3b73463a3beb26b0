"""Decides what runs in the next step: who waits, whose prompts are read, which rows decode. Computes nothing itself.

Rows stay dense: the sequences that decode have the rows 0 to n, and those whose prompts are being read have the rows
behind them. The session gives the same bits however a prompt is cut and whoever is read with it, so that both may
depend on what else there is to do.
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from time import perf_counter

from octavo.errors import ResourceExhausted
from octavo.v1.errors_pb2 import Reason
from services.inference.prefixes import LEAST, Prefixes, common_length
from services.inference.sequence import Sequence

SMOOTHING = 0.1
"""Weight of the newest sequence in the mean time that a slot is held."""
CHUNKS_AT_ONCE = 4
"""Most chunks that are read between two decode steps."""
AGEING_S = 1.0
"""So many seconds of waiting are worth one step of priority: nobody waits forever for the more important."""


@dataclass(frozen=True, slots=True)
class Copy:
    """The first `length` positions of row `source` are to be copied over row `target`."""

    source: int
    target: int
    length: int


@dataclass(frozen=True, slots=True)
class Move:
    """Row `source` takes the place of row `target`, whose first `keeps` positions go the other way."""

    source: int
    target: int
    keeps: int = 0


@dataclass(frozen=True, slots=True)
class PromptRun:
    """What is read in one run of the graph: a piece of one prompt, or several whole prompts in rows side by side.

    The piece are the tokens `start` to `end`. `copies` come first, in order.
    """

    sequences: tuple[Sequence, ...]
    start: int
    end: int
    copies: tuple[Copy, ...] = ()

    @property
    def tokens(self) -> int:
        """What the run costs: tokens, those included that fill shorter prompts up."""
        return len(self.sequences) * (self.end - self.start)

    @property
    def is_last(self) -> bool:
        """Whether the prompts have been read with it."""
        return self.end >= max(len(sequence.prompt) for sequence in self.sequences)


class Scheduler:
    """First come, first served, priorities counted as time; a bounded queue; at most as many at once as slots."""

    def __init__(self, *, slots: int, waiting_limit: int, wait_limit_s: float, chunk_tokens: int) -> None:
        self.slots = slots
        self.waiting_limit = waiting_limit
        self._wait_limit_s = wait_limit_s
        self.running: list[Sequence] = []
        self.reading: list[Sequence] = []
        self.prefixes = Prefixes(slots)
        self._chunk_tokens = chunk_tokens
        self._waiting: list[tuple[float, int, Sequence]] = []
        self._arrivals = count()
        self._mean_hold_s = 0.0
        self._idle_steps = 0

    @property
    def waiting_count(self) -> int:
        return len(self._waiting)

    @property
    def running_count(self) -> int:
        """Sequences that hold a slot."""
        return len(self.running) + len(self.reading)

    @property
    def has_work(self) -> bool:
        return bool(self.running or self.reading or self._waiting)

    def longest_wait_s(self) -> float | None:
        """How long the first to come of those that wait has waited, in seconds; None where nobody waits."""
        # A copy: the engine's thread may change the queue meanwhile.
        arrivals_s = [sequence.arrival_s for *_, sequence in list(self._waiting)]
        return perf_counter() - min(arrivals_s) if arrivals_s else None

    def __iter__(self) -> Iterator[Sequence]:
        """All sequences, those that hold a slot first."""
        yield from self.running
        yield from self.reading
        yield from (sequence for *_, sequence in self._waiting)

    def require_room(self) -> None:
        """Raises ResourceExhausted when as many wait as may. From another thread than the engine's, as of a step ago.

        A queue that is longer than anybody wants to wait makes nothing faster. But as many as there are slots may wait
        always, so that these stay full.
        """
        limit = self.waiting_limit
        if self._mean_hold_s:
            limit = min(limit, max(self.slots, int(self._wait_limit_s * self.slots / self._mean_hold_s)))
        if (waiting := len(self._waiting)) >= limit:
            raise ResourceExhausted(
                Reason.REASON_QUEUE_FULL,
                f"{waiting} requests are waiting already, as many as may; try again later",
                retry_after_s=self._wait_s(),
                waiting=waiting,
            )

    def add(self, sequence: Sequence) -> None:
        """Lets a sequence wait for its turn. Raises ResourceExhausted when too many wait already."""
        self.require_room()
        # All grow older alike, so that the order of two never changes and a heap will do.
        turn_s = sequence.arrival_s - sequence.priority * AGEING_S
        heapq.heappush(self._waiting, (turn_s, next(self._arrivals), sequence))

    def runs(self) -> Iterator[PromptRun]:
        """What to read of prompts before the next decode step.

        A chunk's worth of tokens; more, the more prompts wait for each sequence that would have to wait for them: a
        batch that fills at once decodes in fewer steps. Each run must have been read, and its sequences promoted or
        removed if it was the last, before the next.
        """
        if self._is_gathering():
            return
        chunks = len(self._waiting) // max(1, len(self.running))
        left = self._chunk_tokens * min(max(1, chunks), CHUNKS_AT_ONCE)
        is_first = True
        while run := self._next_run(left, is_first=is_first):
            left -= run.tokens
            is_first = False
            yield run

    def promote(self, sequence: Sequence) -> Move | None:
        """Ends the reading of a prompt: the sequence decodes from now on, in the row behind the others."""
        self.reading.remove(sequence)
        source, sequence.row = sequence.row, len(self.running)
        self.running.append(sequence)
        self.prefixes.hold(sequence.row, sequence.prompt)
        if source == sequence.row:
            return None
        self.prefixes.forget(source)
        return Move(source, sequence.row)

    def remove(self, sequence: Sequence, now_s: float) -> Move | None:
        """Takes a sequence out, wherever it is; the last row moves into the gap it leaves, if it leaves one."""
        if sequence.row < 0:
            self._waiting = [entry for entry in self._waiting if entry[2] is not sequence]
            heapq.heapify(self._waiting)
            return None
        self._note_hold(now_s - sequence.start_s)
        row, sequence.row = sequence.row, -1
        if sequence in self.reading:
            self.reading.remove(sequence)
            return None
        last = self.running.pop()
        if last is sequence:
            return None
        self.running[row] = last
        source, last.row = last.row, row
        # While others are being read, the row that becomes free is not the next to be filled: simply leave it.
        keeps = 0 if self.prefixes.is_held_elsewhere(row) else self.prefixes.length(row)
        self.prefixes.swap(source, row)
        if not keeps:
            self.prefixes.forget(source)
        return Move(source, row, keeps)

    def _is_gathering(self) -> bool:
        """Whether free slots are left free for this step, so that more prompts can be read together.

        Only while more wait than there are free slots: then it is not the first of them that decides how long the last
        waits, but how much is done in all. A run costs about one reading of the weights, whoever is in it, and so does
        a decode step, of which a free slot wastes its share. Slots are filled once those that are free have wasted as
        much as a run of their own costs, or once what could be read fills a chunk.
        """
        free = self.slots - len(self.running)
        if self.reading or not self.running or not 0 < free < len(self._waiting):
            self._idle_steps = 0
            return False
        self._idle_steps += free
        is_enough = self._idle_steps >= self.slots or len(self._waiting[0][2].prompt) * (free + 1) > self._chunk_tokens
        if is_enough:
            self._idle_steps = 0
        return not is_enough

    def _next_run(self, left: int, *, is_first: bool) -> PromptRun | None:
        """The rest of a long prompt, or those whose turn it is; None where nothing fits into what is left."""
        if not self.reading:
            if not self._waiting or len(self.running) == self.slots:
                return None
            cost = min(len(self._waiting[0][2].prompt), self._chunk_tokens)
            return self._admit(min(left, self._chunk_tokens)) if is_first or cost <= left else None
        (sequence,) = self.reading
        run = PromptRun((sequence,), sequence.read, self._end_of_piece(sequence))
        return run if is_first or run.tokens <= left else None

    def _admit(self, left: int) -> PromptRun:
        """Gives slots to the first that waits, and to those behind it whose prompts can be read with its own."""
        sequence = self._take()
        copies = self._reuse(sequence)
        if sequence.read or len(sequence.prompt) > self._chunk_tokens:
            return PromptRun((sequence,), sequence.read, self._end_of_piece(sequence), copies)
        while self._waiting and self.running_count < self.slots and self._fits(self._waiting[0][2], left):
            copies += self._reuse(self._take())
        return PromptRun(tuple(self.reading), 0, max(len(one.prompt) for one in self.reading), copies)

    def _take(self) -> Sequence:
        sequence = heapq.heappop(self._waiting)[2]
        sequence.row = self.running_count
        self.reading.append(sequence)
        return sequence

    def _fits(self, sequence: Sequence, left: int) -> bool:
        """Whether a prompt can be read with those that are about to be.

        Filled up to one length they must fit the chunk, at most half of that filling; and what another of them or a
        row of the cache begins with is better copied than read.
        """
        lengths = [len(one.prompt) for one in (*self.reading, sequence)]
        area = len(lengths) * max(lengths)
        if area > left or area > 2 * sum(lengths) or self.prefixes.longest_match(sequence.prompt):
            return False
        return all(common_length(one.prompt, sequence.prompt) < LEAST for one in self.reading)

    def _reuse(self, sequence: Sequence) -> tuple[Copy, ...]:
        """Finds what the cache already has of a prompt, and saves what its row holds of others where there is room.

        There is none where the free rows are about to be filled too.
        """
        copies: tuple[Copy, ...] = ()
        match = self.prefixes.longest_match(sequence.prompt)
        row = sequence.row
        if match:
            sequence.read = sequence.reused = match.length
        if match is None or match.row != row:
            oldest = self.prefixes.oldest(row)
            has_room = len(self._waiting) < self.slots - self.running_count
            if has_room and oldest != row and self.prefixes.length(row) and not self.prefixes.is_held_elsewhere(row):
                copies += (Copy(row, oldest, self.prefixes.length(row)),)
                self.prefixes.copy(row, oldest)
            if match:
                copies += (Copy(match.row, row, match.length),)
        self.prefixes.forget(row)
        return copies

    def _end_of_piece(self, sequence: Sequence) -> int:
        return min(sequence.read + self._chunk_tokens, len(sequence.prompt))

    def _note_hold(self, hold_s: float) -> None:
        self._mean_hold_s += (SMOOTHING if self._mean_hold_s else 1) * (hold_s - self._mean_hold_s)

    def _wait_s(self) -> float:
        """When about half of those that wait will have had their turn."""
        return min(60.0, max(0.05, self._mean_hold_s * len(self._waiting) / self.slots / 2))
