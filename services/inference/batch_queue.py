"""Requests for one tensor model that wait: which run next, together, and when. Computes nothing and has no clock.

The most urgent request leads; behind it come those of the same shape, in order, while there is room.
"""

from asyncio import Future
from bisect import insort
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from math import inf
from typing import NamedTuple

from octavo.errors import ResourceExhausted
from octavo.v1.errors_pb2 import Reason
from services.inference.batch_policy import BatchPolicy
from services.inference.tensors import Array

SMOOTHING = 0.1
"""Weight of the newest run in the mean time that one takes."""
_ARRIVALS = count()


class Spent(NamedTuple):
    """Where the time of a request went, in seconds: waiting, then its batch being put together, run, and split."""

    queue_s: float
    input_s: float
    infer_s: float
    output_s: float


@dataclass(slots=True, kw_only=True, eq=False)
class TensorRequest:
    """Arrays for a graph, checked, and who waits for what becomes of them.

    `rows` counts the elements of the batch dimension; 1 where there is none. Times are of `perf_counter`.
    """

    arrays: Mapping[str, Array]
    wanted: tuple[str, ...]
    rows: int
    is_batched: bool
    arrival_s: float
    priority: int = 0
    deadline_s: float = inf
    future: "Future[list[Array]] | None" = None
    """Where its outputs go; made on the event loop that waits for them."""
    spent: Spent | None = None
    order: tuple[int, int] = field(init=False)
    likeness: tuple[object, ...] = field(init=False)
    """Equal for requests that can share a run: the same outputs, the same shapes but for the rows."""

    @property
    def is_over(self) -> bool:
        """Whether nobody waits for its outputs: answered, refused, or left."""
        return self.future is None or self.future.done()

    def __post_init__(self) -> None:
        """Derives what the queue sorts and compares by."""
        self.order = (-self.priority, next(_ARRIVALS))
        start = 1 if self.is_batched else 0
        shapes = ((name, array.shape[start:]) for name, array in sorted(self.arrays.items()))
        self.likeness = (self.wanted, *shapes)


class BatchQueue:
    """First come, first served within a priority; bounded."""

    def __init__(self, policy: BatchPolicy) -> None:
        self._policy = policy
        self._waiting: list[TensorRequest] = []
        self._mean_run_s = 0.01

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[TensorRequest]:
        return iter(self._waiting)

    def add(self, request: TensorRequest) -> None:
        """Lets a request wait. Raises ResourceExhausted when too many wait already."""
        if len(self._waiting) >= self._policy.waiting_limit:
            raise ResourceExhausted(
                Reason.REASON_QUEUE_FULL,
                f"{len(self._waiting)} requests are waiting already, as many as may; try again later",
                retry_after_s=self._wait_s(),
                waiting=len(self._waiting),
            )
        insort(self._waiting, request, key=lambda waiting: waiting.order)

    def remove(self, request: TensorRequest) -> None:
        """Takes a request out, if it still waits."""
        if request in self._waiting:
            self._waiting.remove(request)

    def take(self, now_s: float) -> tuple[list[TensorRequest], float]:
        """Takes out what is to run now; if nothing is, says after how many seconds to ask again (inf: when one comes).

        What passed its deadline is not taken out for running: it comes alone, for its caller to be told.
        """
        late = [request for request in self._waiting if request.deadline_s <= now_s]
        if late:
            return self._taken(late[:1])
        if not self._waiting:
            return [], inf
        batch, is_ripe = self._gathered()
        ripe_s = min(request.arrival_s for request in batch) + self._policy.delay_s
        if is_ripe or ripe_s <= now_s:
            return self._taken(batch)
        return [], min(ripe_s, *(request.deadline_s for request in self._waiting)) - now_s

    def note_run(self, duration_s: float) -> None:
        """Learns how long a run takes, for what refused callers are told."""
        self._mean_run_s += SMOOTHING * (duration_s - self._mean_run_s)

    def _gathered(self) -> tuple[list[TensorRequest], bool]:
        """Who would run together now, and whether waiting on could not make it better."""
        leader = self._waiting[0]
        if not self._policy.rows:
            return [leader], True
        batch: list[TensorRequest] = []
        rows, preferred = 0, 0
        for request in self._waiting:
            if request.likeness != leader.likeness:
                continue
            if rows + request.rows > self._policy.rows:
                return batch, True
            batch.append(request)
            rows += request.rows
            if rows in self._policy.preferred:
                preferred = len(batch)
        if preferred:
            return batch[:preferred], True
        return batch, rows == self._policy.rows

    def _taken(self, batch: list[TensorRequest]) -> tuple[list[TensorRequest], float]:
        chosen = set(map(id, batch))
        self._waiting = [request for request in self._waiting if id(request) not in chosen]
        return batch, 0.0

    def _wait_s(self) -> float:
        """When about half of those that wait will have had their turn."""
        rows = sum(request.rows for request in self._waiting) / max(1, self._policy.rows)
        return min(60.0, max(0.01, self._mean_run_s * rows / 2))
