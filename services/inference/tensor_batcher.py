"""The loop that runs a tensor model: takes what is ripe from the queue, runs it together, gives each its own rows.

A thread of its own; answers cross to the event loop with one wake-up a run. Knows arrays and futures; nothing of
gRPC, of names or of versions.
"""

import asyncio
import logging
import threading
from collections.abc import Sequence
from time import perf_counter
from typing import Any

import numpy as np

from octavo.errors import DeadlineExceeded, Internal, InvalidArgument, OctavoError, Unavailable
from octavo.v1.errors_pb2 import Reason
from services.inference.batch_policy import BatchPolicy
from services.inference.batch_queue import BatchQueue, Spent, TensorRequest
from services.inference.tensor_meter import TensorMeter
from services.inference.tensor_session import Run, TensorSession
from services.inference.tensors import Array

Outcome = list[Array] | OctavoError


class TensorBatcher:
    """One tensor model at work. All methods may be called from any thread."""

    def __init__(
        self,
        *,
        session: TensorSession,
        policy: BatchPolicy,
        meter: TensorMeter,
        loop: asyncio.AbstractEventLoop,
        name: str,
        logger: logging.Logger,
    ) -> None:
        self._session = session
        self._queue = BatchQueue(policy)
        self._meter = meter
        self._loop = loop
        self._logger = logger
        self._gate = threading.Condition()
        self._is_closed = False
        self._batch: list[TensorRequest] = []
        self._current = Run()
        self._thread = threading.Thread(target=self._run, name=f"batcher-{name}", daemon=True)

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def waiting_count(self) -> int:
        """Requests that wait for their run."""
        return len(self._queue)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def submit(self, request: TensorRequest) -> None:
        """Lets a request run; its future gets the outcome. Raises ResourceExhausted, or Unavailable at the end."""
        with self._gate:
            if self._is_closed:
                raise Unavailable(Reason.REASON_SHUTTING_DOWN, _CLOSED, retry_after_s=1.0)
            self._queue.add(request)
            self._gate.notify()

    def cancel(self, request: TensorRequest) -> None:
        """Lets go of a request whose caller is gone: it waits no longer, and a run that all have left is ended."""
        with self._gate:
            self._queue.remove(request)
            if request in self._batch and all(member.is_over for member in self._batch):
                self._current.interrupt()

    def stop(self) -> None:
        """Ends what waits or runs with UNAVAILABLE, and waits for the thread."""
        with self._gate:
            self._is_closed = True
            self._gate.notify()
            self._current.interrupt()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        try:
            while batch := self._next():
                self._answer(batch)
        except Exception:
            self._logger.exception("the batcher has failed")
        with self._gate:  # nobody may wait forever for a thread that is gone
            self._is_closed = True
            left = [*self._batch, *self._queue]
        error = Unavailable(Reason.REASON_SHUTTING_DOWN, _CLOSED, retry_after_s=1.0)
        self._deliver([(request, error) for request in left])

    def _next(self) -> list[TensorRequest]:
        """Waits for what is to run; nothing at the end."""
        with self._gate:
            self._batch, self._current = [], Run()
            while not self._is_closed:
                self._batch, wait_s = self._queue.take(perf_counter())
                if self._batch:
                    return self._batch
                self._gate.wait(min(wait_s, threading.TIMEOUT_MAX))
            return []

    def _answer(self, batch: list[TensorRequest]) -> None:
        begin_s = perf_counter()
        if batch[0].deadline_s <= begin_s:
            late = DeadlineExceeded(Reason.REASON_DEADLINE_EXCEEDED, LATE)
            self._deliver([(batch[0], late)])
            return
        try:
            outputs = self._execute(batch)
        except Exception as error:  # the runtime raises its own classes
            self._deliver(self._failed(batch, error))
            return
        finally:
            with self._gate:
                self._queue.note_run(perf_counter() - begin_s)
        self._deliver(list(zip(batch, outputs, strict=True)))

    def _failed(self, batch: list[TensorRequest], error: Exception) -> list[tuple[TensorRequest, Outcome]]:
        """What becomes of a batch whose run failed: each request goes by itself, so that one harms no other."""
        if all(request.is_over for request in batch):
            return []
        if len(batch) == 1:
            return [(batch[0], self._defect(error))]
        self._logger.warning("a run of %d requests failed, going one by one: %s", len(batch), error)
        outcomes: list[tuple[TensorRequest, Outcome]] = []
        for request in batch:
            if request.is_over:
                continue
            try:
                outcomes.append((request, self._execute([request])[0]))
            except Exception as own:
                outcomes.append((request, self._defect(own)))
        return outcomes

    def _execute(self, batch: Sequence[TensorRequest]) -> list[list[Array]]:
        """The outputs of each request of a batch, from one run."""
        begin_s = perf_counter()
        first = batch[0]
        feeds = first.arrays
        if len(batch) > 1:
            feeds = {name: np.concatenate([request.arrays[name] for request in batch]) for name in first.arrays}
        ready_s = perf_counter()
        outputs = self._session.run(feeds, first.wanted, self._current)
        done_s = perf_counter()
        rows = sum(request.rows for request in batch)
        parts = _split(outputs, batch, rows) if len(batch) > 1 else [outputs]
        end_s = perf_counter()
        for request in batch:
            request.spent = Spent(begin_s - request.arrival_s, ready_s - begin_s, done_s - ready_s, end_s - done_s)
        self._meter.count_run(rows, Spent(0.0, ready_s - begin_s, done_s - ready_s, end_s - done_s))
        return parts

    def _deliver(self, outcomes: Sequence[tuple[TensorRequest, Outcome]]) -> None:
        if outcomes:
            self._loop.call_soon_threadsafe(_settle, outcomes)

    def _defect(self, error: Exception) -> OctavoError:
        """Why a request could not be run: the end of it all, its values, where the runtime says so, else the graph."""
        if self._is_closed:
            return Unavailable(Reason.REASON_SHUTTING_DOWN, _CLOSED, retry_after_s=1.0)
        if type(error).__name__ == "InvalidArgument":
            return InvalidArgument.field("inputs", f"the model cannot take these values: {error}")
        self._logger.error("a run of the graph failed", exc_info=error)
        return Internal(Reason.REASON_INTERNAL, f"the model could not be run: {error}")


def _split(outputs: list[Array], batch: Sequence[TensorRequest], rows: int) -> list[list[Array]]:
    """Each request's own rows. Raises ValueError where an output has not one row for each that went in."""
    if any(output.shape[:1] != (rows,) for output in outputs):
        raise ValueError(f"{rows} rows went in, outputs of shapes {[output.shape for output in outputs]} came out")
    borders = np.cumsum([request.rows for request in batch])[:-1]
    columns: list[list[Any]] = [np.split(output, borders) for output in outputs]
    return [list(parts) for parts in zip(*columns, strict=True)]


def _settle(outcomes: Sequence[tuple[TensorRequest, Outcome]]) -> None:
    for request, outcome in outcomes:
        if request.future is None or request.future.done():
            continue
        if isinstance(outcome, OctavoError):
            request.future.set_exception(outcome)
        else:
            request.future.set_result(outcome)


_CLOSED = "this model takes nothing more here; another attempt finds its successor"
LATE = "the deadline passed before the model could run; allow more time"
