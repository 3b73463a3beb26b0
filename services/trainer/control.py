"""The worker's ear: commands and signals, heard at step boundaries and between the parts of long phases.

A command that the job's events call applied is not applied again, except for what changes the numbers: those are
repeated at the step where they were applied, so that a resumed run computes the same weights.
"""

from __future__ import annotations

import signal
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

from octavo.v1 import trainer_pb2 as pb
from services.trainer.commands import CommandReader
from services.trainer.events import EventLog
from services.trainer.history import applied_commands


class Leaving(Exception):
    """The worker has to stop before the job's end. `state` is the job's next state; None when it shall go on later."""

    def __init__(self, state: pb.JobState.ValueType | None, message: str) -> None:
        super().__init__(message)
        self.state = state


class Control:
    """Commands to one worker. `past` are the job's events so far."""

    def __init__(self, directory: Path, log: EventLog, past: Iterable[pb.JobEvent]) -> None:
        self._commands = CommandReader(directory)
        self._log = log
        self._waiting: list[pb.JobCommand] = []
        self._terminated = threading.Event()
        self._repeats: dict[int, list[pb.JobCommand]] = defaultdict(list)
        applied = applied_commands(past)
        self._applied = set(applied)
        for one in applied.values():
            if one.command.HasField("learning_rate"):
                self._repeats[one.step].append(one.command)

    def hear_signals(self) -> None:
        """Take SIGTERM and SIGINT as a wish to leave at the next boundary, with a checkpoint."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._terminated.set())

    def learning_rate_scale(self, step: int) -> float:
        """The scale in force after `step` steps according to the commands applied before."""
        applied = sorted((at, command.sequence, command) for at, rest in self._repeats.items() for command in rest)
        scales = [command.learning_rate.scale for at, _, command in applied if at <= step]
        return scales[-1] if scales else 1.0

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
        if save is not None and kind in {"cancel", "pause", "checkpoint"}:
            save()
        self._note(command, step)
        if kind == "cancel":
            raise Leaving(pb.JOB_STATE_CANCELLED, "cancelled; the last checkpoint is kept")
        if kind == "pause":
            raise Leaving(pb.JOB_STATE_PAUSED, "paused")

    def _note(self, command: pb.JobCommand, step: int) -> None:
        self._applied.add(command.sequence)
        if command.HasField("learning_rate"):
            self._repeats[step].append(command)
        self._log.append(pb.JobEvent(command_applied=pb.CommandApplied(command=command, step=step)))
