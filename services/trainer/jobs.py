"""The jobs that were accepted: an SQLite file in which an answered job is never lost.

A row is the truth of what was accepted and, for a job that has ended, of everything; while a job lives, its
events are, and the row follows them. Knows nothing of workers.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from octavo.errors import Aborted, AlreadyExists, NotFound
from octavo.v1 import trainer_pb2 as pb
from octavo.v1.errors_pb2 import Reason
from services.trainer.events import TERMINAL

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS jobs (
    ordinal INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    request_id TEXT UNIQUE,
    request_digest BLOB NOT NULL,
    state INTEGER NOT NULL,
    is_deleting INTEGER NOT NULL DEFAULT 0,
    job BLOB NOT NULL
);
"""


class JobStore:
    """The table of jobs. Thread-safe; every change is on disk when its method returns."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    def open(self) -> None:
        """Open the file, or make it."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._connection = sqlite3.connect(self._path, check_same_thread=False, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.executescript(_SCHEMA)

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()

    @contextlib.contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        """The connection for one caller; OSError, as of any other file, where the disk does not take or give it."""
        with self._lock:
            try:
                yield self._connection
            except sqlite3.OperationalError as error:
                number = errno.ENOSPC if "is full" in str(error) else errno.EIO
                raise OSError(number, str(error), str(self._path)) from error

    def find_request(self, request_id: str, digest: bytes) -> pb.Job | None:
        """The job that this request made; Aborted when the id belongs to another request."""
        with self._using() as connection:
            row = connection.execute(
                "SELECT job, request_digest FROM jobs WHERE request_id = ? AND NOT is_deleting", (request_id,)
            ).fetchone()
        if row is None:
            return None
        if row[1] != digest:
            raise Aborted(
                Reason.REASON_REQUEST_ID_REUSED,
                f"request id {request_id} belongs to another request; choose a new one",
                request_id=request_id,
            )
        return pb.Job.FromString(row[0])

    def require_free(self, name: str) -> None:
        """AlreadyExists when the name is taken."""
        with self._using() as connection:
            row = connection.execute("SELECT 1 FROM jobs WHERE name = ?", (name,)).fetchone()
        if row is not None:
            raise _taken(name)

    def insert(self, job: pb.Job, request_id: str, digest: bytes) -> None:
        """Accept a job; AlreadyExists when the name is taken."""
        try:
            with self._using() as connection:
                connection.execute(
                    "INSERT INTO jobs (name, request_id, request_digest, state, job) VALUES (?, ?, ?, ?, ?)",
                    (job.name, request_id or None, digest, job.state, job.SerializeToString()),
                )
        except sqlite3.IntegrityError as error:
            raise _taken(job.name) from error

    def update(self, job: pb.Job) -> None:
        """Bring the row of a job up to date."""
        with self._using() as connection:
            connection.execute(
                "UPDATE jobs SET state = ?, job = ? WHERE name = ?",
                (job.state, job.SerializeToString(), job.name),
            )

    def read(self, name: str) -> pb.Job:
        """A job by name; NotFound."""
        with self._using() as connection:
            row = connection.execute("SELECT job FROM jobs WHERE name = ? AND NOT is_deleting", (name,)).fetchone()
        if row is None:
            raise NotFound(
                Reason.REASON_JOB_NOT_FOUND, f"there is no job {name!r}; ListJobs has those there are", job=name
            )
        return pb.Job.FromString(row[0])

    def list_newest(self, before: int | None = None) -> list[tuple[int, pb.Job]]:
        """All jobs with their ordinals, newest first; those older than ordinal `before` when it is given."""
        with self._using() as connection:
            rows = connection.execute(
                "SELECT ordinal, job FROM jobs WHERE NOT is_deleting AND ordinal < ? ORDER BY ordinal DESC",
                (before if before is not None else 1 << 62,),
            ).fetchall()
        return [(ordinal, pb.Job.FromString(job)) for ordinal, job in rows]

    def list_living(self) -> list[pb.Job]:
        """The jobs that have not ended, oldest first."""
        marks = ", ".join(str(int(state)) for state in sorted(TERMINAL))
        with self._using() as connection:
            rows = connection.execute(
                f"SELECT job FROM jobs WHERE NOT is_deleting AND state NOT IN ({marks}) ORDER BY ordinal"  # noqa: S608
            ).fetchall()
        return [pb.Job.FromString(job) for (job,) in rows]

    def begin_delete(self, name: str) -> None:
        """Hide a job; what lies on disk may be removed from now on."""
        with self._using() as connection:
            connection.execute("UPDATE jobs SET is_deleting = 1 WHERE name = ?", (name,))

    def list_deleting(self) -> list[str]:
        """Names of jobs whose removal was begun."""
        with self._using() as connection:
            rows = connection.execute("SELECT name FROM jobs WHERE is_deleting").fetchall()
        return [name for (name,) in rows]

    def finish_delete(self, name: str) -> None:
        """Forget a job."""
        with self._using() as connection:
            connection.execute("DELETE FROM jobs WHERE name = ?", (name,))


def _taken(name: str) -> AlreadyExists:
    return AlreadyExists(Reason.REASON_JOB_EXISTS, f"there is a {name} already; choose another id", job=name)


def check_etag(job: pb.Job, expected: str) -> None:
    """Aborted unless `expected` is empty or the job's own."""
    if expected and expected != etag(job):
        raise Aborted(
            Reason.REASON_ETAG_MISMATCH, f"{job.name} has changed; read it again", job=job.name, etag=etag(job)
        )


def etag(job: pb.Job) -> str:
    """Changes with what people decide about a job, and with its state; quoted as in HTTP."""
    decided = pb.Job(
        name=job.name,
        display_name=job.display_name,
        labels=job.labels,
        priority=job.priority,
        state=job.state,
    )
    return f'"{hashlib.sha256(decided.SerializeToString(deterministic=True)).hexdigest()[:16]}"'
