"""How far a job has come, said often enough to watch and seldom enough to cost nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from octavo.v1 import trainer_pb2 as pb
from services.trainer.events import EventLog

INTERVAL_S: Final = 1.0

# Where each phase begins and ends as a part of a train job. Training takes nearly all of it.
_TRAIN_SPANS: Final = {
    pb.JOB_PHASE_PREPARE: (0.0, 0.02),
    pb.JOB_PHASE_CALIBRATE: (0.02, 0.03),
    pb.JOB_PHASE_TRAIN: (0.03, 0.93),
    pb.JOB_PHASE_EVALUATE: (0.93, 0.94),
    pb.JOB_PHASE_EXPORT: (0.94, 0.96),
    pb.JOB_PHASE_PROVE: (0.96, 0.98),
    pb.JOB_PHASE_REGISTER: (0.98, 0.99),
    pb.JOB_PHASE_DEPLOY: (0.99, 1.0),
}
# An export job goes through calibration, export, evaluation and proof once for each precision.
_EXPORT_SPANS: Final = {
    pb.JOB_PHASE_PREPARE: (0.0, 0.1),
    pb.JOB_PHASE_CALIBRATE: (0.15, 0.2),
    pb.JOB_PHASE_EXPORT: (0.2, 0.95),
    pb.JOB_PHASE_EVALUATE: (0.1, 0.95),
    pb.JOB_PHASE_PROVE: (0.2, 0.95),
    pb.JOB_PHASE_REGISTER: (0.95, 0.99),
    pb.JOB_PHASE_DEPLOY: (0.99, 1.0),
}
_REPLAY_SPANS: Final = {pb.JOB_PHASE_PREPARE: (0.0, 0.1), pb.JOB_PHASE_TRAIN: (0.1, 1.0)}
_SPANS: Final = {"train": _TRAIN_SPANS, "export": _EXPORT_SPANS, "replay": _REPLAY_SPANS}


class ProgressReporter:
    """Writes progress events: one at each change of phase, then at most one a second. `kind` is the job's."""

    def __init__(self, log: EventLog, kind: str = "train", clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._spans = _SPANS[kind]
        self._clock = clock
        self._progress = pb.JobProgress()
        self._said_at = -INTERVAL_S
        self._began: tuple[float, int] | None = None

    def phase(self, phase: pb.JobPhase.ValueType, message: str) -> None:
        """A phase begins, or another part of it."""
        self._progress.phase = phase
        self._progress.message = message
        self._progress.fraction = max(self._progress.fraction, self._spans[phase][0])
        self._progress.ClearField("eta")
        self._say()

    def advance(self, fraction: float) -> None:
        """So much of the job is done; said with what is said next."""
        self._progress.fraction = max(self._progress.fraction, fraction)

    def begin_training(self, step: int, total_steps: int, tokens: int) -> None:
        """Training begins, or goes on after `step`."""
        self._began = (self._clock(), step)
        self._count(step, total_steps, tokens)
        self.phase(pb.JOB_PHASE_TRAIN, "training")

    def step(self, step: int, total_steps: int, tokens: int) -> None:
        """A training step is done."""
        if self._clock() - self._said_at < INTERVAL_S:
            return
        self._count(step, total_steps, tokens)
        if self._began is not None and step > self._began[1]:
            per_step_s = (self._clock() - self._began[0]) / (step - self._began[1])
            self._progress.eta.FromNanoseconds(int(per_step_s * (total_steps - step) * 1e9))
        self._say()

    def end_training(self, step: int, stop: pb.TrainingStop | None) -> None:
        """Training is over, at `step`; `stop` says why where it had not come to its last one."""
        tokens = self._progress.tokens
        self._count(step, step, tokens)
        if stop is not None:
            self._progress.stop.CopyFrom(stop)
            self._progress.message = f"training has ended: {stop.message}"
        self._progress.ClearField("eta")
        self._say()

    def _count(self, step: int, total_steps: int, tokens: int) -> None:
        begin, end = self._spans[pb.JOB_PHASE_TRAIN]
        self._progress.step, self._progress.total_steps, self._progress.tokens = step, total_steps, tokens
        self._progress.fraction = begin + (end - begin) * self._part(step, total_steps)

    def _part(self, step: int, total_steps: int) -> float:
        """How much of the training is done after `step`."""
        return step / total_steps

    def _say(self) -> None:
        self._said_at = self._clock()
        self._log.append(pb.JobEvent(progress=self._progress))
