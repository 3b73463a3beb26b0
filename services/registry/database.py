"""The connection to the database: one writer at a time, many readers, all off the event loop.

SQLite (WAL, synchronous=FULL: a commit is on the disk) or whatever else SQLAlchemy speaks; what differs between
them is said in this file alone. Knows nothing of models, versions and the rest.
"""

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import sqlalchemy
from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import OperationalError

from octavo.errors import ResourceExhausted, Unavailable
from octavo.v1 import errors_pb2

_Answer = TypeVar("_Answer")

_BUSY_TIMEOUT_MS = 10_000
_RETRY_AFTER_S = 1.0


class Database:
    """Runs work inside transactions: writes in one thread of their own, reads in `reader_count` others.

    One writer thread, because SQLite admits one writer anyway: queueing in memory is fair and cheaper than
    waiting for its lock. Readers see one consistent state for the length of their work.
    """

    def __init__(self, url: str, *, reader_count: int = 4) -> None:
        is_sqlite = sqlalchemy.make_url(url).get_backend_name() == "sqlite"
        self._engine = _engine(url, reader_count, is_sqlite=is_sqlite)
        # Writers form one line behind a row lock: READ COMMITTED lets each see what the one before it wrote.
        self._writing: dict[str, Any] = {"is_writer": True} if is_sqlite else {"isolation_level": "READ COMMITTED"}
        self._writer = ThreadPoolExecutor(1, "registry-writer")
        self._readers = ThreadPoolExecutor(reader_count, "registry-reader")
        self._changed = asyncio.Event()
        self._generation = 0

    @property
    def generation(self) -> int:
        """Counts the commits of this process: what `changed_since` compares with."""
        return self._generation

    async def read(self, work: Callable[[Connection], _Answer]) -> _Answer:
        """Runs `work` in a reader thread, in one read transaction."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._read, work)

    async def write(self, work: Callable[[Connection], _Answer], *, keep: bool = True) -> _Answer:
        """Runs `work` in the writer thread and commits, durably, before it answers; undoes it unless `keep`.

        The commit happens even when the waiting caller is cancelled: a caller that goes away learns by asking.
        """
        loop = asyncio.get_running_loop()

        def run() -> _Answer:
            answer = self._write(work, keep)
            if keep:
                loop.call_soon_threadsafe(self._announce)
            return answer

        return await loop.run_in_executor(self._writer, run)

    async def changed_since(self, generation: int, timeout_s: float) -> None:
        """Waits for a commit after `generation`, `timeout_s` at most: other processes commit unheard."""
        if self._generation == generation:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._changed.wait()

    def migrate(self, upgrade: Callable[[Connection], None]) -> None:
        """Brings the tables up to date, in one transaction, before anything else is run. Blocks."""
        self._write(upgrade, keep=True)

    def close(self) -> None:
        """Lets work that has begun end, then closes every connection. Blocks."""
        self._writer.shutdown()
        self._readers.shutdown()
        self._engine.dispose()

    def _read(self, work: Callable[[Connection], _Answer]) -> _Answer:
        with _failures_explained(), self._engine.connect() as connection:
            return work(connection)

    def _write(self, work: Callable[[Connection], _Answer], keep: bool) -> _Answer:
        with _failures_explained(), self._engine.connect() as connection:
            connection.execution_options(**self._writing)
            answer = work(connection)
            if keep:
                connection.commit()
            else:
                connection.rollback()
            return answer

    def _announce(self) -> None:
        self._generation += 1
        self._changed.set()
        self._changed = asyncio.Event()


def _engine(url: str, reader_count: int, *, is_sqlite: bool) -> Engine:
    # Elsewhere, one state for the length of a read has to be asked for.
    options: dict[str, Any] = {} if is_sqlite else {"isolation_level": "REPEATABLE READ"}
    engine = sqlalchemy.create_engine(url, pool_size=reader_count + 1, max_overflow=0, **options)
    if is_sqlite:
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    # Python's sqlite3 begins transactions by guessing; `_begin_sqlite` does it by knowing.
    connection.isolation_level = None
    for pragma in (
        f"busy_timeout = {_BUSY_TIMEOUT_MS}",
        "journal_mode = WAL",
        "synchronous = FULL",
        "foreign_keys = ON",
    ):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin_sqlite(connection: Connection) -> None:
    # A write that begins as a read cannot become one when somebody else wrote meanwhile (SQLITE_BUSY_SNAPSHOT).
    is_writer = connection.get_execution_options().get("is_writer", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_writer else "BEGIN")


@contextlib.contextmanager
def _failures_explained() -> Iterator[None]:
    try:
        yield
    except OperationalError as failure:
        code = getattr(failure.orig, "sqlite_errorcode", None)
        if code == sqlite3.SQLITE_FULL:
            raise ResourceExhausted(
                errors_pb2.REASON_STORAGE_FULL, "the registry's disk is full: nothing was changed; make room"
            ) from failure
        if code is not None and code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise Unavailable(
                errors_pb2.REASON_UPSTREAM_UNAVAILABLE,
                "the database is held by another process: nothing was changed",
                retry_after_s=_RETRY_AFTER_S,
            ) from failure
        raise
