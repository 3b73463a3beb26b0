"""One request as a call of its own, inside a call that may carry many: with its own deadline and its own end."""

from collections.abc import Callable
from time import perf_counter
from typing import Protocol

from octavo.errors import DeadlineExceeded
from octavo.v1.errors_pb2 import Reason


class Call(Protocol):
    """What is asked of the call outside."""

    def time_remaining(self) -> float | None:
        """Seconds until its deadline; None without one."""


class SubCall:
    """Ends when it is told to, or when the call around it ends. Used on the event loop only."""

    def __init__(self, call: Call, timeout_s: float | None = None) -> None:
        remaining_s = call.time_remaining()
        limits = [limit for limit in (remaining_s, timeout_s) if limit is not None]
        self.deadline_s = perf_counter() + min(limits) if limits else None
        """A time of `perf_counter`."""
        self._callbacks: list[Callable[[object], None]] = []

    def time_remaining(self) -> float | None:
        """Seconds until its deadline; None without one."""
        return None if self.deadline_s is None else self.deadline_s - perf_counter()

    def check_time(self) -> None:
        """Raises DeadlineExceeded when none is left: what is late already need not begin."""
        if self.deadline_s is not None and self.deadline_s <= perf_counter():
            raise DeadlineExceeded(Reason.REASON_DEADLINE_EXCEEDED, "the deadline passed before the work began")

    def add_done_callback(self, callback: Callable[[object], None]) -> None:
        """Calls `callback` at the end."""
        self._callbacks.append(callback)

    def end(self) -> None:
        """Ends it, once."""
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback(self)
