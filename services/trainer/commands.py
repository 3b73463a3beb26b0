"""Commands to the worker of a job: written durably by the supervisor, applied by the worker at a step boundary.

A command counts as applied when the job's events say so; until then a worker that starts again finds it here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from octavo.v1 import trainer_pb2 as pb
from services.trainer.events import now
from services.trainer.records import RecordReader, RecordWriter

FILE: Final = "commands.log"


def append(directory: Path, command: pb.JobCommand) -> pb.JobCommand:
    """Number, stamp and write a command; durable when this returns. Only the supervisor calls it."""
    writer = RecordWriter(directory / FILE)
    try:
        command.sequence = writer.number + 1
        command.create_time.CopyFrom(now())
        writer.append(command.SerializeToString())
    finally:
        writer.close()
    return command


class CommandReader:
    """Reads a job's commands in order, as far as they are written."""

    def __init__(self, directory: Path) -> None:
        self._records = RecordReader(directory / FILE)

    def read(self) -> list[pb.JobCommand]:
        """The commands since the last call. Costs one `stat` when there are none: called at every step."""
        if not self._records.has_news():
            return []
        return [pb.JobCommand.FromString(record) for record in self._records.read()]
