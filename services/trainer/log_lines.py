"""The log of a job as its events tell it: what was logged, and a line for each thing that happened.

Steps get one line with each report of progress, so about one a second.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Self

from octavo.formats import log_line
from octavo.v1 import trainer_pb2 as pb


class LogLines:
    """Makes lines of the events of one job, told in order. `plan` is the job's, as accepted."""

    def __init__(self, plan: pb.Plan) -> None:
        self._plan = plan
        self._metric: pb.TrainingMetric | None = None

    def tell(self, event: pb.JobEvent) -> pb.LogLine | None:
        """The line of an event; None where it is not worth one."""
        line = self._line(event)
        if line is not None:
            line.sequence = event.sequence
            line.create_time.CopyFrom(event.create_time)
        return line

    def _line(self, event: pb.JobEvent) -> pb.LogLine | None:
        match event.WhichOneof("event"):
            case "log":
                line = pb.LogLine(type="log")
                line.MergeFrom(event.log)
                return line
            case "state_change":
                return _state_line(event.state_change)
            case "evaluation":
                return self._evaluation_line(event.evaluation)
            case "checkpoint":
                return self._line_of_step("checkpoint", event.checkpoint.step, f"checkpoint {event.checkpoint.digest}")
            case "progress":
                return self._step_line(event.progress)
            case "metric":
                self._metric = event.metric
            case "plan":
                self._plan = event.plan
        return None

    def _step_line(self, progress: pb.JobProgress) -> pb.LogLine | None:
        """Of the newest step since the line before."""
        metric, self._metric = self._metric, None
        if metric is None or progress.phase != pb.JOB_PHASE_TRAIN:
            return None
        line = self._line_of_step("step", metric.step, f"step {metric.step}: loss {metric.loss:.4f}")
        line.severity = pb.LOG_SEVERITY_DEBUG
        line.step_duration.CopyFrom(metric.step_duration)
        line.learning_rate, line.loss, line.gradient_norm = metric.learning_rate, metric.loss, metric.gradient_norm
        return line

    def _evaluation_line(self, evaluation: pb.Evaluation) -> pb.LogLine:
        message = (
            f"step {evaluation.step}: validation {evaluation.validation_loss:.4f}, {evaluation.bits_per_byte:.4f} bits "
            f"per byte, perplexity {evaluation.perplexity:.3f}"
        )
        line = self._line_of_step("evaluation", evaluation.step, message)
        line.loss = evaluation.validation_loss
        return line

    def _line_of_step(self, type_: str, step: int, message: str) -> pb.LogLine:
        line = pb.LogLine(type=type_, severity=pb.LOG_SEVERITY_INFO, step=step, message=message)
        if self._plan.dataset_tokens:
            line.epoch = step * self._plan.tokens_per_step / self._plan.dataset_tokens
        return line


class LogFile:
    """The log of a job as a file of JSON lines beside its events, for whoever ships logs. Its events are the truth."""

    def __init__(self, path: Path, plan: pb.Plan) -> None:
        self._lines = LogLines(plan)
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        size = os.fstat(self._descriptor).st_size
        if size and os.pread(self._descriptor, 1, size - 1) != b"\n":
            os.write(self._descriptor, b"\n")  # the writer before was lost within a line

    def tell(self, event: pb.JobEvent) -> None:
        """Write the line of an event, if it is worth one."""
        line = self._lines.tell(event)
        if line is not None:
            # A full disk ends the job where its events are written; this copy may lack a line.
            with contextlib.suppress(OSError):
                os.write(self._descriptor, f"{log_line.to_json(line)}\n".encode())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._descriptor)


def _state_line(change: pb.StateChange) -> pb.LogLine:
    is_failed = change.state == pb.JOB_STATE_FAILED
    word = pb.JobState.Name(change.state).removeprefix("JOB_STATE_").lower()
    return pb.LogLine(
        type="state",
        severity=pb.LOG_SEVERITY_ERROR if is_failed else pb.LOG_SEVERITY_INFO,
        message=f"{word}: {change.message}" if change.message else word,
    )
