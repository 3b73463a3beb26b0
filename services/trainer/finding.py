"""One finding about a job: what, on which figures, and what to change to which value."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from octavo.v1 import trainer_pb2 as pb


@dataclass(frozen=True)
class Finding:
    """`settings` are fields of a TrainSpec with the values that are advised, as `--set` takes them."""

    verdict: pb.DiagnosisVerdict.ValueType
    evidence: str
    advice: str
    step: int = 0
    settings: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def lower_rates(cls, job: pb.Job, verdict: pb.DiagnosisVerdict.ValueType, evidence: str, *, step: int = 0) -> Self:
        """One that half of both learning rates helps against, and a limit to the gradient."""
        optimizer = job.plan.train.optimizer
        factor = job.recoveries[-1].learning_rate_factor / 2 if job.recoveries else 0.5
        rate, matrix = (factor * one for one in (optimizer.learning_rate, optimizer.matrix_learning_rate))
        advice = (
            f"set optimizer.learning_rate to {rate:g} and optimizer.matrix_learning_rate to {matrix:g}, or "
            "optimizer.gradient_clip to 1"
        )
        settings = {"optimizer.learning_rate": f"{rate:g}", "optimizer.matrix_learning_rate": f"{matrix:g}"}
        return cls(verdict, evidence, advice, step or job.progress.step, settings)

    def to_message(self) -> pb.DiagnosisFinding:
        """As it is sent."""
        return pb.DiagnosisFinding(
            verdict=self.verdict, evidence=self.evidence, advice=self.advice, step=self.step, settings=self.settings
        )


def mean_loss(metrics: Sequence[pb.TrainingMetric]) -> float:
    """Mean training loss of some steps, nats per token."""
    return math.fsum(metric.loss for metric in metrics) / max(1, len(metrics))
