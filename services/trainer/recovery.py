"""What a run changes by itself so that it can go on: lower rates after a step that is not finite, a smaller microbatch
where memory is short.

Every change is an event. What is in force at a step follows from the events alone, so a resumed run repeats it there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import median
from typing import Final

from octavo.formats.checkpoint import CheckpointEntry
from octavo.v1 import trainer_pb2 as pb

# So many losses say where a run stands; a single one is noise.
_WINDOW: Final = 5
# Above the lowest level reached, in parts of it and in nats: beyond both, a run is about to be lost.
_SOUND_RATIO: Final = 1.5
_SOUND_RISE: Final = 0.5


class Recoveries:
    """The recoveries of one run so far. `spec` is resolved."""

    def __init__(self, spec: pb.TrainSpec, past: Iterable[pb.Recovery]) -> None:
        self._spec = spec
        self._all: list[pb.Recovery] = []
        self._in_force: list[pb.Recovery] = []
        for recovery in past:
            self.add(recovery)

    def add(self, recovery: pb.Recovery) -> None:
        """One more: it takes the place of those that changed later steps than it does."""
        self._all.append(recovery)
        self._in_force = [one for one in self._in_force if one.step < recovery.step] + [recovery]

    def learning_rate_factor(self, step: int) -> float:
        """What the rates of `step` are multiplied by."""
        recovery = self._at(step)
        return recovery.learning_rate_factor if recovery is not None else 1.0

    def microbatch_size(self, step: int) -> int:
        """Sequences in one forward pass at `step`."""
        recovery = self._at(step)
        return recovery.microbatch_size if recovery is not None else self._spec.microbatch_size

    @property
    def rollback_count(self) -> int:
        """How often the run went back because a step was not finite."""
        return sum(one.cause == pb.RECOVERY_CAUSE_NOT_FINITE for one in self._all)

    def is_hopeless(self, step: int) -> bool:
        """Whether the very next step after the checkpoint of `step` has failed before: lower rates do not change it."""
        return any(
            one.cause == pb.RECOVERY_CAUSE_NOT_FINITE and one.step == step and one.failed_step == step + 1
            for one in self._all
        )

    def rollback(
        self, failed_step: int, *, loss: float, gradient_norm: float, checkpoint: CheckpointEntry | None
    ) -> pb.Recovery:
        """Go back to `checkpoint`, or to the beginning, and on with lower rates."""
        step = checkpoint.step if checkpoint is not None else 0
        factor = self._latest_factor() * self._spec.recovery.learning_rate_factor
        recovery = pb.Recovery(
            cause=pb.RECOVERY_CAUSE_NOT_FINITE,
            failed_step=failed_step,
            step=step,
            learning_rate_factor=factor,
            microbatch_size=self._latest_microbatch(),
            loss=loss,
            gradient_norm=gradient_norm,
            message=f"step {failed_step} has the loss {loss:g} and a gradient of norm {gradient_norm:g}, which is not "
            f"finite; going back to step {step} with {factor:g} of the planned learning rates "
            f"(rollback {self.rollback_count + 1} of {self._spec.recovery.max_rollbacks})",
        )
        if checkpoint is not None:
            recovery.checkpoint.CopyFrom(_described(checkpoint))
        return recovery

    @property
    def can_split(self) -> bool:
        """Whether the microbatch can be made smaller, and may be."""
        size = _halved(self._latest_microbatch(), self._spec.batch_size)
        return bool(size) and self._spec.recovery.split_microbatch

    def split(
        self,
        failed_step: int,
        *,
        step: int,
        checkpoint: CheckpointEntry | None = None,
        cause: pb.RecoveryCause.ValueType = pb.RECOVERY_CAUSE_OUT_OF_MEMORY,
    ) -> pb.Recovery:
        """Go on with half the microbatch from `checkpoint`, or from `step` where there is none; see `can_split`."""
        before = self._latest_microbatch()
        size = _halved(before, self._spec.batch_size)
        is_killed = cause == pb.RECOVERY_CAUSE_KILLED_FOR_MEMORY
        what = "the kernel killed the worker for want of memory at" if is_killed else "there is not enough memory for"
        recovery = pb.Recovery(
            cause=cause,
            failed_step=failed_step,
            step=checkpoint.step if checkpoint is not None else step,
            learning_rate_factor=self._latest_factor(),
            microbatch_size=size,
        )
        recovery.message = (
            f"{what} step {failed_step} with {before} sequences in a pass; going on from step {recovery.step} with "
            f"{size}, the same batch of {self._spec.batch_size}"
        )
        if checkpoint is not None:
            recovery.checkpoint.CopyFrom(_described(checkpoint))
        return recovery

    def _at(self, step: int) -> pb.Recovery | None:
        before = [one for one in self._in_force if one.step < step]
        return before[-1] if before else None

    def _latest_factor(self) -> float:
        return self._all[-1].learning_rate_factor if self._all else 1.0

    def _latest_microbatch(self) -> int:
        return self._all[-1].microbatch_size if self._all else self._spec.microbatch_size


def is_sound(losses: Mapping[int, float], step: int) -> bool:
    """Whether the losses up to `step` stand near the lowest level they reached: a state to go on from.

    `losses` are by step, nats per token; without any, nothing speaks against it.
    """
    known = [losses[one] for one in sorted(losses) if one <= step]
    if not known:
        return True
    lowest = min(median(known[at : at + _WINDOW]) for at in range(0, len(known), _WINDOW))
    return bool(median(known[-_WINDOW:]) <= max(_SOUND_RATIO * lowest, lowest + _SOUND_RISE))


def _halved(microbatch: int, batch: int) -> int:
    """The largest divisor of the batch that is at most half the microbatch; 0 where there is none."""
    return max((size for size in range(1, microbatch // 2 + 1) if batch % size == 0), default=0)


def _described(entry: CheckpointEntry) -> pb.Checkpoint:
    history = str(entry.facts.get("history", ""))
    return pb.Checkpoint(
        step=entry.step,
        digest=entry.digest,
        size_bytes=entry.size_bytes,
        state_digest=entry.state_digest,
        history_digest=history,
    )
