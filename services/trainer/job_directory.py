"""The directory of a job: where its files lie, and the lock that says whether a process is at work in it.

The lock is an flock on `worker.lock`. The supervisor takes it and hands the open descriptor to the worker it
starts, so there is no moment at which the job looks abandoned; the kernel frees it when the worker dies, however
it dies, so neither a stale file nor a reused process id can be mistaken for a worker.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final, TextIO

from octavo.errors import Unavailable
from octavo.v1 import datasets_pb2
from octavo.v1 import trainer_pb2 as pb
from octavo.v1.errors_pb2 import Reason

_JOB: Final = "job.binpb"
_LAUNCH: Final = "launch.json"
_DATASET: Final = "dataset.binpb"
_LOCK: Final = "worker.lock"
_ROOM: Final = "room"
_ROOM_BYTES: Final = 64 << 10
_LEADER: Final = "leader.lock"


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What a worker has to know of the service that started it."""

    registry: str
    api_key: str = field(repr=False)
    corpora: str
    registry_patience_s: float
    corpora_limit_bytes: int = 1 << 62


class JobDirectory:
    """The files of one job."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def checkpoints(self) -> Path:
        """Where the job's checkpoints are."""
        return self.path / "checkpoints"

    @property
    def bundle(self) -> Path:
        """Where the version's files are made."""
        return self.path / "bundle"

    @property
    def worker_log(self) -> Path:
        """What the worker printed, tracebacks included."""
        return self.path / "worker.log"

    @property
    def log_file(self) -> Path:
        """The log as JSON lines."""
        return self.path / "log.jsonl"

    def create(self, job: pb.Job) -> None:
        """Make the directory with the job as accepted; again is harmless."""
        self.path.mkdir(parents=True, exist_ok=True)
        if not (self.path / _JOB).exists():
            self._write(_JOB, job.SerializeToString())

    def read_job(self) -> pb.Job:
        """The job as it was accepted."""
        return pb.Job.FromString((self.path / _JOB).read_bytes())

    def read_dataset(self) -> datasets_pb2.Dataset | None:
        """The dataset that the job has begun with, as the registry knew it then."""
        path = self.path / _DATASET
        return datasets_pb2.Dataset.FromString(path.read_bytes()) if path.exists() else None

    def write_dataset(self, dataset: datasets_pb2.Dataset) -> None:
        """Note the dataset that the job begins with."""
        self._write(_DATASET, dataset.SerializeToString())

    def write_launch(self, launch: Launch) -> None:
        """Say where things are; a running worker reads it again before it needs the registry."""
        self._write(_LAUNCH, json.dumps(asdict(launch)).encode())

    def read_launch(self) -> Launch:
        """Where things are now."""
        return Launch(**json.loads((self.path / _LAUNCH).read_bytes()))

    def try_lock(self) -> int | None:
        """The lock as an open descriptor, held until closed everywhere; None when a process is at work."""
        descriptor = self._try_lock(_LOCK)
        if descriptor is None:
            return None
        # One that leads others outlives their agent by a moment, in which it may still write.
        leader = self._try_lock(_LEADER)
        if leader is None:
            os.close(descriptor)
            return None
        os.close(leader)
        return descriptor

    def _try_lock(self, name: str) -> int | None:
        descriptor = os.open(self.path / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return descriptor

    def is_locked(self) -> bool:
        """Whether a process is at work in it."""
        descriptor = self.try_lock()
        if descriptor is None:
            return True
        os.close(descriptor)
        return False

    def keep_room(self) -> None:
        """Take some room while there is some, so that on a full disk it can still be said that the disk is full."""
        if not (self.path / _ROOM).exists():
            # Random: a file system that compresses would keep nothing.
            self._write(_ROOM, os.urandom(_ROOM_BYTES))

    def give_room(self) -> None:
        """Free what `keep_room` took."""
        (self.path / _ROOM).unlink(missing_ok=True)

    @contextlib.contextmanager
    def leading(self) -> Iterator[None]:
        """Be the process that leads the others of a job, under an agent that holds its lock."""
        with (self.path / _LEADER).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def note_pid(self, lock: int, pid: int | None) -> None:
        """Say which process holds the lock; None while that is not decided."""
        os.ftruncate(lock, 0)
        if pid is not None:
            os.pwrite(lock, str(pid).encode(), 0)

    def worker_pid(self) -> int | None:
        """The process that holds the lock, as far as it has said so; only valid while the lock is held."""
        text = (self.path / _LOCK).read_text()
        return int(text) if text.isdigit() else None

    def _write(self, name: str, content: bytes) -> None:
        partial = self.path / f".{name}.partial"
        try:
            with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            partial.unlink(missing_ok=True)
            raise
        partial.replace(self.path / name)
        directory = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def claim(directory: Path) -> TextIO:
    """Take hold of a trainer's directory for as long as the file is open; Unavailable when another trainer has it.

    Two supervisors over one directory would start every worker twice.
    """
    instance = (directory / "supervisor.lock").open("a")
    try:
        fcntl.flock(instance, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        instance.close()
        raise Unavailable(
            Reason.REASON_UPSTREAM_UNAVAILABLE,
            f"another trainer uses {directory}; stop it, or choose another OCTAVO_DATA_DIR",
        ) from error
    return instance
