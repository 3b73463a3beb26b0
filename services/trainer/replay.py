"""Does steps of a train job again and compares: the job that is replayed is only read.

A resumed run repeats steps, too: this is the same phase over the same events, so live settings come at the same
steps. It stops at the last step of the window and writes nothing of what it computes but metrics of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final

import numpy as np

from octavo.errors import DataLoss, FailedPrecondition, NotFound
from octavo.formats.checkpoint import Checkpoint, CheckpointFolder
from octavo.v1 import trainer_pb2 as pb
from octavo.v1.errors_pb2 import Reason
from services.trainer.control import Control
from services.trainer.digests import state_digest
from services.trainer.job_run import JobRun
from services.trainer.progress import ProgressReporter
from services.trainer.training_phase import TrainingPhase

_FIGURES: Final = ("loss", "gradient_norm", "learning_rate", "matrix_learning_rate")
_MOST_TENSORS: Final = 20


class ReachedEnd(Exception):
    """The last step of the window is done."""


class Recorded:
    """What the events of a job say of its steps; what was done anew after going back counts as done last."""

    def __init__(self, events: Sequence[pb.JobEvent]) -> None:
        self.metrics: dict[int, pb.TrainingMetric] = {}
        self.checkpoints: dict[int, pb.Checkpoint] = {}
        self._attempts: dict[int, int] = {}
        self._environments: dict[int, pb.EnvironmentFingerprint] = {}
        for event in events:
            match event.WhichOneof("event"):
                case "metric":
                    self.metrics[event.metric.step] = event.metric
                    self._attempts[event.metric.step] = event.attempt
                case "checkpoint":
                    self.checkpoints[event.checkpoint.step] = event.checkpoint
                case "attempt_start":
                    self._environments[event.attempt] = event.attempt_start.environment

    def environments(self, first: int, last: int) -> list[pb.EnvironmentFingerprint]:
        """Where the steps from `first` to `last` were computed, each place once."""
        attempts = {self._attempts[step] for step in range(first, last + 1) if step in self._attempts}
        found = [self._environments[attempt] for attempt in sorted(attempts) if attempt in self._environments]
        return list({one.digest: one for one in found}.values())


class RepeatedControl(Control):
    """The commands of a job as they were applied; new ones are those of the replay itself."""

    def __init__(self, *arguments: Any, run: JobRun, last: int) -> None:
        super().__init__(*arguments)
        self._run = run
        self._end = last

    def heed(self, step: int, save: object = None) -> None:
        """Obey the replay's own commands; raises ReachedEnd after the last step."""
        del save
        self._run.heed()
        if step >= self._end:
            raise ReachedEnd


class WindowProgress(ProgressReporter):
    """Progress through the steps after `first` up to `last`."""

    def __init__(self, run: JobRun, first: int, last: int) -> None:
        super().__init__(run.log, "replay")
        self._first, self._last = first, last

    def step(self, step: int, total_steps: int, tokens: int) -> None:
        """A step is done again."""
        super().step(step, self._last, tokens)

    def _part(self, step: int, total_steps: int) -> float:
        return (step - self._first) / max(1, self._last - self._first)


class Replay(TrainingPhase):
    """The training phase of another job, compared with what is recorded of it. `kept` are that job's checkpoints."""

    def __init__(self, *, recorded: Recorded, kept: CheckpointFolder, told: Collection[int], **phase: Any) -> None:
        """`told` are the steps that an earlier attempt of this replay has written metrics of."""
        super().__init__(**phase)
        self._recorded = recorded
        self._kept = kept
        self._told = told
        self.report = pb.ReplayReport(is_equal=True)

    def repeat(self, start: Checkpoint | None, progress: WindowProgress) -> None:
        """Do the steps of the window. Raises Leaving where the replay has to stop."""
        try:
            self.run(start, progress)
        except ReachedEnd:
            return

    def save(self, step: int) -> None:
        """Nothing is written: states are compared where the job's events have a digest of one."""

    def _tell(self, metric: pb.TrainingMetric) -> None:
        step = metric.step
        if step not in self._told:
            metric.memory_bytes = self._memory_bytes()
            self._log.append(pb.JobEvent(metric=metric))
        if step in self._recorded.metrics:
            self._compare_figures(self._recorded.metrics[step], metric)
        known = self._recorded.checkpoints.get(step)
        if known is not None and known.state_digest:
            self._compare_state(step, known.state_digest)

    def _compare_figures(self, recorded: pb.TrainingMetric, replayed: pb.TrainingMetric) -> None:
        self.report.compared_steps += 1
        for what in _FIGURES:
            before, now = getattr(recorded, what), getattr(replayed, what)
            if before.hex() != now.hex():
                self._differs(
                    pb.ReplayDifference(step=recorded.step, what=what, recorded=repr(before), replayed=repr(now))
                )

    def _compare_state(self, step: int, recorded: str) -> None:
        replayed = state_digest(self._training.state_dict())
        state = self.report.states.add(step=step, recorded_digest=recorded, replayed_digest=replayed)
        state.is_equal = recorded == replayed
        if state.is_equal:
            self._log.log(pb.LOG_SEVERITY_INFO, f"step {step}: the same state, {replayed}", step)
            return
        tensors = self._differing(step)
        self._differs(
            pb.ReplayDifference(step=step, what="state", recorded=recorded, replayed=replayed, tensors=tensors)
        )

    def _differing(self, step: int) -> list[str]:
        """The tensors that are not those of the kept checkpoint, if it is kept and whole."""
        try:
            kept = self._kept.read(step).tensors
        except (DataLoss, NotFound):
            return []
        now = {name: tensor.numpy() for name, tensor in self._training.state_dict().items()}
        names = [name for name in now if name not in kept or not _are_same(kept[name], now[name])]
        return names[:_MOST_TENSORS]

    def _differs(self, difference: pb.ReplayDifference) -> None:
        if not self.report.is_equal:
            return
        self.report.is_equal = False
        self.report.first_difference.CopyFrom(difference)
        self._log.log(pb.LOG_SEVERITY_WARNING, f"differs: {described(difference)}", difference.step)


def described(difference: pb.ReplayDifference) -> str:
    """A difference for people."""
    where = f", in {', '.join(difference.tensors)}" if difference.tensors else ""
    changed = f"was {difference.recorded} and is now {difference.replayed}"
    return f"{difference.what} of step {difference.step} {changed}{where}"


def starting_point(target: pb.Job, kept: CheckpointFolder, from_step: int) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint of at most `from_step`, None for the beginning; and those that are damaged.

    NotFound for a fork that keeps none so old: its beginning was a checkpoint of its parent.
    """
    damages: list[str] = []
    for step in reversed([step for step in kept.steps() if step <= from_step]):
        try:
            return kept.read(step), damages
        except DataLoss as error:
            damages.append(error.message)
    if target.parent_job:
        oldest = min(kept.steps(), default=None)
        advice = f"ask for from_step {oldest} or more" if oldest is not None else "replay its parent"
        raise NotFound(
            Reason.REASON_CHECKPOINT_NOT_FOUND,
            f"{target.name} keeps no whole checkpoint of step {from_step} or before, and began with one of "
            f"{target.parent_job}; {advice}",
            job=target.name,
        )
    return None, damages


def check_start(start: Checkpoint, recorded: Recorded) -> None:
    """DataLoss unless the checkpoint is the one that the job's events tell of."""
    known, entry = recorded.checkpoints.get(start.entry.step), start.entry
    if known is not None and known.digest != entry.digest:
        raise DataLoss(
            Reason.REASON_CHECKPOINT_CORRUPT,
            f"the kept checkpoint of step {entry.step} has the digest {entry.digest}, the job's events say "
            f"{known.digest}: it is not the one that was written",
            step=entry.step,
        )


def check_environment(before: Sequence[pb.EnvironmentFingerprint], now: pb.EnvironmentFingerprint) -> None:
    """FailedPrecondition, with what differs, unless all steps were computed in the present environment."""
    for one in before:
        if one.digest == now.digest:
            continue
        fields = [field.name for field in one.DESCRIPTOR.fields if field.name not in {"digest", "details"}]
        pairs = {name: (str(getattr(one, name)), str(getattr(now, name))) for name in fields}
        pairs |= {key: (one.details[key], now.details[key]) for key in sorted({*one.details, *now.details})}
        changes = [f"{name} was {was}, is {present}" for name, (was, present) in pairs.items() if was != present]
        raise FailedPrecondition(
            Reason.REASON_ENVIRONMENT_DIFFERS,
            f"the steps were computed in another environment ({'; '.join(changes)}), so their bits cannot be had "
            "again here; replay where the job ran",
            recorded=one.digest,
            present=now.digest,
        )


def _are_same(first: np.ndarray[Any, Any], second: np.ndarray[Any, Any]) -> bool:
    return first.dtype == second.dtype and first.shape == second.shape and first.tobytes() == second.tobytes()
