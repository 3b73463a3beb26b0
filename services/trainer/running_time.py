"""How long workers have been at a job, from its events: from the first to the last of each attempt."""

from __future__ import annotations

from octavo.v1 import trainer_pb2 as pb


class RunningTime:
    """Adds up, event by event; the same whoever reads the events, and however often the service began anew."""

    def __init__(self) -> None:
        self._total_ns = 0
        self._last_ns = 0
        self._attempt = 0

    def note(self, event: pb.JobEvent) -> None:
        """The next event of the job."""
        at_ns = event.create_time.ToNanoseconds()
        if event.attempt and event.attempt == self._attempt:
            # A clock that was set back took nothing away.
            self._total_ns += max(0, at_ns - self._last_ns)
        self._attempt, self._last_ns = event.attempt, at_ns

    @property
    def total_ns(self) -> int:
        """Up to the last event, nanoseconds."""
        return self._total_ns

    def total_s(self, now_s: float) -> float:
        """Up to now, seconds, for a job with a living worker, which may be silent; `now_s` is since 1970."""
        silent_s = now_s - self._last_ns / 1e9 if self._attempt else 0.0
        return self._total_ns / 1e9 + max(0.0, silent_s)
