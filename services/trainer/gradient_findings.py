"""What gradients and updates say about a run: parts that learn nothing, norms that grow without bound."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Final

from octavo.v1 import trainer_pb2 as pb
from services.trainer.finding import Finding

_WINDOW: Final = 50
_EXPLOSION: Final = 10.0
_DEAD_NORM: Final = 1e-7
# A part whose update is a third of its weights forgets what it was within a few steps.
_LARGE_UPDATE: Final = 0.3
_SMALL_UPDATE: Final = 1e-6
# Where the schedule has taken the rate down, small updates are what was asked for.
_MOSTLY: Final = 0.5


def find(job: pb.Job, metrics: Sequence[pb.TrainingMetric]) -> Iterator[Finding]:
    """Exploding and dead gradients, and updates out of proportion to the weights."""
    yield from _exploding(metrics)
    signs = [metric for metric in metrics if metric.parts]
    yield from _dead(metrics, signs)
    if signs:
        yield from _updates(job, signs[-1])


def _exploding(metrics: Sequence[pb.TrainingMetric]) -> Iterator[Finding]:
    norms = [metric.gradient_norm for metric in metrics]
    if len(norms) < 3 * _WINDOW:
        return
    usual, latest = statistics.median(norms[_WINDOW:-_WINDOW]), statistics.median(norms[-10:])
    if latest > _EXPLOSION * max(usual, _DEAD_NORM):
        yield Finding(
            pb.DIAGNOSIS_VERDICT_EXPLODING_GRADIENTS,
            f"the norm of the gradient is {latest:.3g} over the last 10 steps, {latest / max(usual, _DEAD_NORM):.0f} "
            f"times the {usual:.3g} that was usual",
            f"set optimizer.gradient_clip to {usual:.3g}, or halve the learning rates",
            metrics[-1].step,
            {"optimizer.gradient_clip": f"{usual:.3g}"},
        )


def _dead(metrics: Sequence[pb.TrainingMetric], signs: Sequence[pb.TrainingMetric]) -> Iterator[Finding]:
    norms = [metric.gradient_norm for metric in metrics[-_WINDOW:]]
    if len(norms) == _WINDOW and max(norms) < _DEAD_NORM:
        evidence = f"the norm of the gradient stayed below {_DEAD_NORM:g} for {_WINDOW} steps"
        yield _dead_finding(evidence, metrics[-1].step)
        return
    # Twice in a row: a rare token leaves its row without gradient for a batch, but no whole tensor for long.
    dead = [{name for part in metric.parts for name in part.dead_parameters} for metric in signs[-2:]]
    both = sorted(set.intersection(*dead)) if len(dead) == 2 else []
    if both:
        shown = ", ".join(both[:5]) + (f" and {len(both) - 5} more" if len(both) > 5 else "")
        steps = f"{signs[-2].step} and {signs[-1].step}"
        yield _dead_finding(f"no gradient at steps {steps} in {shown}", signs[-1].step)


def _dead_finding(evidence: str, step: int) -> Finding:
    return Finding(
        pb.DIAGNOSIS_VERDICT_DEAD_GRADIENTS,
        evidence,
        "these weights learn nothing: begin again with another seed and a tenth of the learning rates, or with "
        "precision fp32 where small gradients vanish in bf16",
        step,
        {"precision": "fp32"},
    )


def _updates(job: pb.Job, signs: pb.TrainingMetric) -> Iterator[Finding]:
    optimizer = job.plan.train.optimizer
    largest = max(signs.parts, key=lambda one: one.update_ratio)
    if largest.update_ratio > _LARGE_UPDATE:
        evidence = (
            f"the update of {largest.part} at step {signs.step} is {largest.update_ratio:.0%} of its weights; "
            "0.1 to 3 % is usual"
        )
        yield Finding.lower_rates(job, pb.DIAGNOSIS_VERDICT_UPDATES_OUT_OF_PROPORTION, evidence, step=signs.step)
    elif signs.update_ratio < _SMALL_UPDATE and signs.learning_rate > _MOSTLY * optimizer.learning_rate:
        rate, matrix = 10 * optimizer.learning_rate, 10 * optimizer.matrix_learning_rate
        yield Finding(
            pb.DIAGNOSIS_VERDICT_UPDATES_OUT_OF_PROPORTION,
            f"an update is {signs.update_ratio:.2g} of the weights at step {signs.step}; 0.001 to 0.03 is usual",
            f"raise optimizer.learning_rate to {rate:g} and optimizer.matrix_learning_rate to {matrix:g}",
            signs.step,
            {"optimizer.learning_rate": f"{rate:g}", "optimizer.matrix_learning_rate": f"{matrix:g}"},
        )
