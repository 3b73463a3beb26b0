"""The worker's ear: commands and signals, heard at step boundaries and between the parts of long phases.

A command that the job's events call applied is not applied again, except for what changes the numbers: those are
repeated at the step where they were applied, so that a resumed run computes the same weights.
"""

from __future__ import annotations

import signal
import threading
from bisect import insort
from collections.abc import Callable, Sequence
from pathlib import Path

from octavo.errors import DeadlineExceeded, OctavoError
from octavo.v1 import trainer_pb2 as pb
from octavo.v1.errors_pb2 import Reason
from services.trainer import live_settings
from services.trainer.commands import CommandReader
from services.trainer.events import EventLog
from services.trainer.history import ENDING, applied_commands, valid


class Leaving(Exception):
    """The worker has to stop before the job's end. `state` is the job's next state; None when it shall go on later."""

    def __init__(self, state: pb.JobState.ValueType | None, message: str, error: OctavoError | None = None) -> None:
        super().__init__(message)
        self.state = state
        self.error = error


class Control:
    """Commands to one worker. `past` are the job's events so far, `live` the settings it was accepted with."""

    def __init__(
        self, directory: Path, log: EventLog, past: Sequence[pb.JobEvent], live: pb.LiveSettings | None = None
    ) -> None:
        self._commands = CommandReader(directory)
        self._log = log
        self._terminated = threading.Event()
        applied = applied_commands(past)
        self._applied = set(applied)
        # By the step after which they are in force and the order in which they were asked for.
        self._live = [(0, 0, live or pb.LiveSettings())]
        for one in applied.values():
            if one.command.HasField("live"):
                insort(self._live, (one.step, one.command.sequence, one.command.live), key=_place)
        # Steps that were done without a command are never repeated with it.
        self._done = max((event.metric.step for event in valid(past) if event.HasField("metric")), default=0)

    def hear_signals(self) -> None:
        """Take SIGTERM and SIGINT as a wish to leave at the next boundary, with a checkpoint."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._terminated.set())

    def live(self, step: int) -> pb.LiveSettings:
        """The settings in force after `step` steps according to the commands applied before."""
        return next(live for at, _, live in reversed(self._live) if at <= step)

    def go_back(self, step: int) -> None:
        """The steps after `step` are done anew: with whatever is commanded from here on."""
        self._done = min(self._done, step)

    def heed(self, step: int, save: Callable[[], None] | None = None) -> None:
        """Apply what came in; `save` writes a checkpoint, None where there is nothing to save.

        Raises Leaving when the worker has to stop.
        """
        for command in self._commands.read():
            if command.sequence not in self._applied:
                self._apply(command, step, save)
        if self._terminated.is_set():
            if save is not None:
                save()
            raise Leaving(None, "the worker was told to stop; it goes on later")

    def _apply(self, command: pb.JobCommand, step: int, save: Callable[[], None] | None) -> None:
        kind = command.WhichOneof("command")
        if save is not None and kind in ENDING | {"checkpoint"}:
            save()
        self._note(command, step)
        if kind == "cancel":
            raise Leaving(pb.JOB_STATE_CANCELLED, "cancelled; the last checkpoint is kept")
        if kind == "expire":
            error = time_over(step)
            raise Leaving(pb.JOB_STATE_FAILED, error.message, error)
        if kind == "pause":
            raise Leaving(pb.JOB_STATE_PAUSED, "paused; ResumeJob goes on")

    def _note(self, command: pb.JobCommand, step: int) -> None:
        self._applied.add(command.sequence)
        if not command.HasField("live"):
            self._log.append(pb.JobEvent(command_applied=pb.CommandApplied(command=command, step=step)))
            return
        at = max(step, self._done)
        before = self._live[-1][2]
        insort(self._live, (at, command.sequence, command.live), key=_place)
        self._log.append(pb.JobEvent(command_applied=pb.CommandApplied(command=command, step=at)))
        changes = live_settings.difference(before, command.live)
        self._log.log(pb.LOG_SEVERITY_INFO, f"from step {at + 1} on: {changes}", at)


def time_over(step: int) -> DeadlineExceeded:
    """The error of a job that ran for longer than it may; `step` is that of its last checkpoint."""
    return DeadlineExceeded(
        Reason.REASON_DEADLINE_EXCEEDED,
        f"the job's timeout is over; its last checkpoint, of step {step}, is kept: ForkJob goes on from it",
        step=step,
    )


def _place(entry: tuple[int, int, pb.LiveSettings]) -> tuple[int, int]:
    return entry[:2]
