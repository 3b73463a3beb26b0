"""Starts workers, watches over them and starts lost ones again. Supervises only: workers live without it.

One thread ticks; calls come from other threads and share its lock. What is known of a living job is folded from
its events, so a supervisor that was killed knows everything again as soon as it has read them.
"""

from __future__ import annotations

import logging
import math
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final, TextIO

from google.protobuf.message import DecodeError

from octavo.errors import OctavoError, Unavailable
from octavo.v1 import trainer_pb2 as pb
from services.trainer import disk_room
from services.trainer.events import LIVING, TERMINAL, now
from services.trainer.executor import Executor, LocalProcesses
from services.trainer.guard import Guard, Limits
from services.trainer.job_directory import JobDirectory, Launch, claim
from services.trainer.jobs import JobStore, check_etag
from services.trainer.places import in_turn, share_places
from services.trainer.supervision import (
    Supervision,
    changed_while_living,
    queue_full,
    require_state,
    require_training,
    stop_workers,
)

TICK_S: Final = 0.1
# How far the row of a running job may lag behind its events: they are the truth, the row is a shortcut.
SAVE_INTERVAL_S: Final = 2.0


class Supervisor:
    """All jobs of one data directory. `launch` says what workers are told at their start."""

    def __init__(
        self,
        directory: Path,
        store: JobStore,
        launch: Launch,
        logger: logging.Logger,
        *,
        limits: Limits,
        executor: Executor | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory = directory
        self._store = store
        self._launch = launch
        self._logger = logger
        self._limits = limits
        self._executor = executor or LocalProcesses()
        self._clock = clock
        self._lock = threading.RLock()
        self._living: dict[str, Supervision] = {}
        # Jobs that have ended while their worker still lets go of its memory: it holds its place until it is gone.
        self._leaving: list[Supervision] = []
        self._looked_for_room_at = -math.inf
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._instance: TextIO | None = None
        self._guard = Guard(limits, logger, clock, refresh=self._refresh, start=self._start)

    def open(self) -> None:
        """Take hold of the data directory, find the jobs and workers that are there, and begin to tick."""
        self._directory.mkdir(parents=True, exist_ok=True)
        self._instance = claim(self._directory)
        for name in self._store.list_deleting():
            self._remove(name)
        with self._lock:
            for job in self._store.list_living():
                try:
                    self._take_up(job)
                except (OSError, DecodeError):
                    # One unreadable directory must not keep all other jobs from going on.
                    self._logger.exception("cannot take up a job", extra={"job": job.name})
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop ticking. Workers go on, unless the limits say that they stop too."""
        self._closing.set()
        if self._thread:
            self._thread.join()
        with self._lock:
            if self._limits.stop_workers:
                stop_workers(list(self._living.values()), self._limits.stop_grace_s)
            for supervision in self._living.values():
                self._save(supervision)
            self._executor.close()
        if self._instance:
            self._instance.close()

    @property
    def is_ticking(self) -> bool:
        """Whether the thread that supervises is alive."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def loss_count(self) -> int:
        """How often a worker was lost since this process began."""
        return self._guard.loss_count

    @property
    def max_running_jobs(self) -> int:
        """Workers that may run at once."""
        return self._limits.max_running_jobs

    def directory(self, name: str) -> JobDirectory:
        """Where the job of this name has its files."""
        return JobDirectory(self._directory / "jobs" / name.removeprefix("jobs/"))

    def submit(
        self,
        job: pb.Job,
        request_id: str,
        digest: bytes,
        prepare: Callable[[JobDirectory], None] = lambda directory: None,
    ) -> pb.Job:
        """Accept a job and queue it; durable when this returns. A known request id returns its job.

        `prepare` puts into the job's new directory what it begins with; when it fails, nothing is accepted.
        """
        with self._lock:
            known = self._store.find_request(request_id, digest) if request_id else None
            if known is not None:
                return self.read(known.name)
            queued = sum(one.job.state == pb.JOB_STATE_QUEUED for one in self._living.values())
            if queued >= self._limits.max_queued_jobs:
                raise queue_full(queued)
            job.state = pb.JOB_STATE_CREATED
            job.create_time.CopyFrom(now())
            job.update_time.CopyFrom(job.create_time)
            self._make_directory(job, prepare)
            self._store.insert(job, request_id, digest)
            try:
                self._take_up(job)
            except BaseException:
                # Its creator hears that it failed: nothing of it may wait for the next start, or for its request id.
                self._living.pop(job.name, None)
                self._remove(job.name)
                raise
            self._start_queued()
            return self.read(job.name)

    def read(self, name: str) -> pb.Job:
        """A job as its events leave it now; NotFound."""
        with self._lock:
            supervision = self._living.get(name)
            if supervision is None:
                return self._store.read(name)
            self._refresh(supervision)
            job = pb.Job()
            job.CopyFrom(supervision.job)
            return job

    def counts(self) -> dict[pb.JobState.ValueType, int]:
        """How many jobs live, by state."""
        with self._lock:
            return dict(Counter(one.job.state for one in self._living.values()))

    def running(self) -> list[pb.Job]:
        """The jobs at which a worker is, as they were at the last tick; copies."""
        with self._lock:
            found = [one.job for one in self._living.values() if one.job.state == pb.JOB_STATE_RUNNING]
            return [pb.Job.FromString(job.SerializeToString()) for job in found]

    def queue(self) -> dict[str, str]:
        """Names of the queued jobs, the next to run first by priority, then age; and what each waits for."""
        with self._lock:
            _, waiting = self._share()
            return {job.name: waiting.get(job.name) or self._wait_for_room(job) for job in self._queued()}

    def is_at_work(self, name: str) -> bool:
        """Whether the process of a job's worker is there."""
        with self._lock:
            directory = self.directory(name)
            return directory.path.exists() and self._executor.is_alive(directory)

    def cancel(self, name: str) -> pb.Job:
        """End a job; a running one at its next step boundary."""
        with self._lock:
            job = self.read(name)
            if job.state == pb.JOB_STATE_CANCELLED:
                return job
            require_state(job, pb.JOB_STATE_QUEUED, pb.JOB_STATE_RUNNING, pb.JOB_STATE_PAUSED, verb="cancelled")
            supervision = self._living[name]
            if job.state == pb.JOB_STATE_RUNNING and supervision.directory.is_locked():
                supervision.add_command(pb.JobCommand(cancel=pb.CancelCommand()))
                # A worker that is still loading libraries has nothing to save and hears nothing yet.
                grace_s = self._limits.stop_grace_s if supervision.has_begun else 0.0
                supervision.stop_at = self._clock() + grace_s
            else:
                self._change_state(supervision, pb.JOB_STATE_CANCELLED, "cancelled before a worker was at it")
            return self.read(name)

    def pause(self, name: str) -> pb.Job:
        """Stop a job with a checkpoint and give its place away."""
        with self._lock:
            job = self.read(name)
            if job.state == pb.JOB_STATE_PAUSED and not disk_room.awaits_room(job):
                return job
            require_state(job, pb.JOB_STATE_QUEUED, pb.JOB_STATE_RUNNING, pb.JOB_STATE_PAUSED, verb="paused")
            supervision = self._living[name]
            if job.state == pb.JOB_STATE_RUNNING and supervision.directory.is_locked():
                supervision.add_command(pb.JobCommand(pause=pb.PauseCommand()))
            else:
                self._change_state(supervision, pb.JOB_STATE_PAUSED, "paused before a worker was at it")
            return self.read(name)

    def resume(self, name: str) -> pb.Job:
        """Put a paused job back into the queue."""
        with self._lock:
            job = self.read(name)
            require_state(job, pb.JOB_STATE_PAUSED, verb="resumed")
            self._change_state(self._living[name], pb.JOB_STATE_QUEUED, "resumed")
            self._start_queued()
            return self.read(name)

    def update(self, name: str, expected_etag: str, change: Callable[[pb.Job], None]) -> pb.Job:
        """Change what people decide about a job; Aborted when it is not as they saw it.

        FailedPrecondition when only a job that has not ended could still heed the change.
        """
        with self._lock:
            job = self.read(name)
            check_etag(job, expected_etag)
            changed = pb.Job()
            changed.CopyFrom(job)
            change(changed)
            if changed_while_living(job, changed):
                require_state(job, *LIVING, verb="given other settings")
            if changed.live != job.live:
                require_training(job, "it has no live settings")
                # Worker and restarted supervisor know it from here; the row is only what people are shown.
                self._living[name].add_command(pb.JobCommand(live=changed.live))
            target = self._living[name].job if name in self._living else job
            change(target)
            target.update_time.CopyFrom(now())
            self._store.update(target)
            return self.read(name)

    def request_checkpoint(self, name: str) -> int:
        """Ask a running worker for a checkpoint; returns the sequence number of the command."""
        with self._lock:
            job = require_training(self.read(name), "it has no checkpoints: when it is lost, it begins again")
            require_state(job, pb.JOB_STATE_RUNNING, verb="checkpointed")
            command = self._living[name].add_command(pb.JobCommand(checkpoint=pb.CheckpointCommand()))
            return command.sequence

    def delete(self, name: str, expected_etag: str) -> None:
        """Forget a job that has ended, with everything on disk; Aborted when it is not as its deleter saw it."""
        with self._lock:
            job = self.read(name)
            check_etag(job, expected_etag)
            require_state(job, *TERMINAL, verb="deleted")
            self._remove(name)

    def _make_directory(self, job: pb.Job, prepare: Callable[[JobDirectory], None]) -> None:
        """The directory of a job that is about to be accepted; one without a job is left from a lost attempt."""
        self._store.require_free(job.name)
        directory = self.directory(job.name)
        shutil.rmtree(directory.path, ignore_errors=True)
        try:
            directory.create(job)
            prepare(directory)
        except BaseException:
            shutil.rmtree(directory.path, ignore_errors=True)
            raise

    def _remove(self, name: str) -> None:
        self._store.begin_delete(name)
        path = self.directory(name).path
        if path.exists():
            shutil.rmtree(path)
        self._store.finish_delete(name)

    def _take_up(self, job: pb.Job) -> None:
        """Begin to supervise a job, whatever happened to it before."""
        directory = self.directory(job.name)
        directory.write_launch(self._launch)
        supervision = Supervision(job, directory, self._executor)
        self._living[job.name] = supervision
        self._refresh(supervision)
        if supervision.job.state == pb.JOB_STATE_CREATED:
            self._change_state(supervision, pb.JOB_STATE_QUEUED, "accepted")
        if any(command.WhichOneof("command") in {"cancel", "expire"} for command in supervision.pending()):
            supervision.stop_at = self._clock() + self._limits.stop_grace_s

    def _run(self) -> None:
        while not self._closing.wait(TICK_S):
            try:
                self._tick()
            except Exception:
                self._logger.exception("supervision failed")

    def _tick(self) -> None:
        with self._lock:
            for supervision in list(self._living.values()):
                try:
                    self._see_to(supervision)
                except (OSError, OctavoError) as error:
                    # The next tick tries again: one job's full disk must not leave all others without supervision.
                    if not disk_room.is_disk_full(error):
                        self._logger.exception("cannot see to a job", extra={"job": supervision.job.name})
            self._leaving = [one for one in self._leaving if self.is_at_work(one.job.name)]
            self._look_for_room()
            self._start_queued()

    def _see_to(self, supervision: Supervision) -> None:
        if supervision.job.state == pb.JOB_STATE_RUNNING:
            self._guard.watch_over(supervision)
        elif supervision.job.state in TERMINAL:
            self._refresh(supervision)  # its end could not be saved yet
        elif supervision.stop_at is not None and not supervision.is_alive():
            # It paused before it saw that it was cancelled.
            self._guard.end_by_command(supervision)

    def _look_for_room(self) -> None:
        """Put jobs that a full disk has paused back into the queue, as many as there is room for."""
        waiting = [one for one in self._living.values() if disk_room.awaits_room(one.job)]
        if not waiting or self._clock() - self._looked_for_room_at < disk_room.CHECK_INTERVAL_S:
            return
        self._looked_for_room_at = self._clock()
        free_bytes = shutil.disk_usage(self._directory).free
        for supervision in waiting:
            free_bytes -= disk_room.needed_bytes(supervision.job)
            if free_bytes >= 0:
                self._change_state(supervision, pb.JOB_STATE_QUEUED, "there is room on the disk again")

    def _queued(self) -> list[pb.Job]:
        """The next to run first."""
        return in_turn(one.job for one in self._living.values() if one.job.state == pb.JOB_STATE_QUEUED)

    def _share(self) -> tuple[list[str], dict[str, str]]:
        """Who of the queued runs now, and what the others wait for."""
        holders = [one.job for one in self._living.values() if one.job.state == pb.JOB_STATE_RUNNING]
        paused = [one for one in self._living.values() if one.job.state == pb.JOB_STATE_PAUSED and one.is_alive()]
        holders += [one.job for one in (*paused, *self._leaving)]
        return share_places(holders, self._queued(), self._limits.max_running_jobs)

    def _wait_for_room(self, job: pb.Job) -> str:
        """What a job that has a place still waits for; empty where it may run."""
        return disk_room.wait_for_room(job, [one.job for one in self._living.values()], self._directory)

    def _start_queued(self) -> None:
        starting, _ = self._share() if self._queued() else ([], {})
        for supervision in [self._living[name] for name in starting]:
            if self._wait_for_room(supervision.job):
                continue
            try:
                self._change_state(supervision, pb.JOB_STATE_RUNNING, "a worker is at it")
                self._start(supervision)
            except (OSError, Unavailable):
                # Its place is kept; the next tick tries again.
                self._logger.exception("cannot start a worker", extra={"job": supervision.job.name})

    def _start(self, supervision: Supervision) -> None:
        if supervision.start(self._launch):
            self._logger.info("started a worker", extra={"job": supervision.job.name})

    def _change_state(self, supervision: Supervision, state: pb.JobState.ValueType, message: str) -> None:
        with supervision.writing() as log:
            log.append(pb.JobEvent(state_change=pb.StateChange(state=state, message=message)))
        supervision.restart_at = None
        self._refresh(supervision)

    def _refresh(self, supervision: Supervision) -> None:
        """Fold what is new, and save it when the state changed or the row lags far behind."""
        before = supervision.job.state
        is_news = supervision.refresh()
        is_late = self._clock() - supervision.saved_at >= SAVE_INTERVAL_S
        if supervision.job.state != before or not supervision.is_saved or (is_news and is_late):
            self._save(supervision)
        if supervision.job.state in TERMINAL and supervision.is_saved:
            supervision.release()
            if self._living.pop(supervision.job.name, None) is not None:
                self._leaving.append(supervision)

    def _save(self, supervision: Supervision) -> None:
        """Bring the row of a living job up to date, now or, where the disk is full, later: its events are the truth."""
        supervision.saved_at = self._clock()
        try:
            self._store.update(supervision.job)
            supervision.is_saved = True
        except OSError:
            supervision.is_saved = False
            self._logger.warning("cannot save the state of a job", extra={"job": supervision.job.name})
