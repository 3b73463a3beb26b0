"""The events of a job: written once by whoever holds the job's lock, read by anybody, numbered without gaps.

Every event is visible to readers as soon as it is appended, so it survives the death of its process; a
background thread makes it durable within `SYNC_INTERVAL_S`, so it survives the death of the machine.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from octavo.v1 import trainer_pb2 as pb
from services.trainer.records import RecordReader, RecordWriter

FILE: Final = "events.log"
SYNC_INTERVAL_S: Final = 0.2

TERMINAL: Final = frozenset({pb.JOB_STATE_SUCCEEDED, pb.JOB_STATE_FAILED, pb.JOB_STATE_CANCELLED})
"""The states that a job never leaves."""
LIVING: Final = (pb.JOB_STATE_CREATED, pb.JOB_STATE_QUEUED, pb.JOB_STATE_RUNNING, pb.JOB_STATE_PAUSED)
"""The others."""


def now() -> Timestamp:
    """The present time, to the microsecond."""
    stamp = Timestamp()
    stamp.GetCurrentTime()
    return stamp


class EventReader:
    """Reads a job's events in order, from after a sequence number, as far as they are written."""

    def __init__(self, directory: Path, after_sequence: int = 0) -> None:
        self._records = RecordReader(directory / FILE)
        self._after_sequence = after_sequence

    @property
    def sequence(self) -> int:
        """The sequence number of the last event that was read or skipped."""
        return self._records.number

    def has_news(self) -> bool:
        """Whether a `read` may find something: one `stat`."""
        return self._records.has_news()

    def read(self, limit: int = 4096) -> list[pb.JobEvent]:
        """The next events, `limit` at most; empty when nothing new is written."""
        self._records.skip(self._after_sequence)
        if self._records.number < self._after_sequence:
            return []
        return [pb.JobEvent.FromString(record) for record in self._records.read(limit)]

    def read_all(self) -> list[pb.JobEvent]:
        """All events from here to the present end."""
        events: list[pb.JobEvent] = []
        while batch := self.read():
            events.extend(batch)
        return events


class EventLog:
    """Appends to a job's events. At most one of it may exist for a job: its maker holds the job's lock.

    `attempt` is which start of the worker writes, 0 for the supervisor; `listener` hears each event that is written.
    """

    def __init__(
        self,
        directory: Path,
        attempt: int,
        clock: Callable[[], Timestamp] = now,
        listener: Callable[[pb.JobEvent], None] = lambda event: None,
    ) -> None:
        self._records = RecordWriter(directory / FILE)
        self._attempt = attempt
        self._clock = clock
        self._listener = listener
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._syncer = threading.Thread(target=self._sync_regularly, name="event-sync", daemon=True)
        self._syncer.start()

    @property
    def sequence(self) -> int:
        """The sequence number of the newest event."""
        return self._records.number

    def append(self, event: pb.JobEvent) -> pb.JobEvent:
        """Number, stamp and write an event whose content is set; returns it. Any thread may call it."""
        with self._lock:
            event.sequence = self._records.number + 1
            event.attempt = self._attempt
            event.create_time.CopyFrom(self._clock())
            self._records.append(event.SerializeToString())
            self._listener(event)
        return event

    def log(self, severity: pb.LogSeverity.ValueType, message: str, step: int = 0) -> None:
        """Write a log line."""
        self.append(pb.JobEvent(log=pb.LogLine(severity=severity, message=message, step=step)))

    def sync(self) -> None:
        """Make all events durable: before anything that relies on them is."""
        self._records.sync()

    def close(self) -> None:
        """Sync and stop writing."""
        self._closing.set()
        self._syncer.join()
        self._records.close()

    def __enter__(self) -> EventLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _sync_regularly(self) -> None:
        while not self._closing.wait(SYNC_INTERVAL_S):
            # A disk that is full says so again to whoever appends or saves next.
            with contextlib.suppress(OSError):
                self._records.sync()
