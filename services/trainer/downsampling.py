"""Fewer points of a curve, with everything in it that people look for: its ends, its extremes, what is not finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from octavo.v1 import trainer_pb2 as pb

FEWEST_POINTS: Final = 32

Read = Callable[[pb.TrainingMetric], float]

# The lowest and highest of these are kept within each stretch of the curve, of all others over the whole of it.
_DRAWN: Final[Sequence[Read]] = (lambda one: one.loss, lambda one: one.gradient_norm)
_SERIES: Final[Sequence[Read]] = (
    *_DRAWN,
    lambda one: one.learning_rate,
    lambda one: one.matrix_learning_rate,
    lambda one: one.step_duration.ToNanoseconds(),
    lambda one: one.tokens_per_second,
    lambda one: one.memory_bytes,
    lambda one: one.update_ratio,
    lambda one: one.flops_utilization,
)


def downsampled(metrics: Sequence[pb.TrainingMetric], max_points: int) -> list[pb.TrainingMetric]:
    """About `max_points` of them, at least FEWEST_POINTS, in their order.

    Kept are the first, the last, every point whose loss or gradient norm is not finite, the lowest and highest of every
    series, and the lowest and highest loss and gradient norm of each stretch. More than `max_points` come back only
    where there are more of the first four kinds.
    """
    budget = max(max_points, FEWEST_POINTS)
    if len(metrics) <= budget:
        return list(metrics)
    kept = {0, len(metrics) - 1}
    kept.update(index for index, one in enumerate(metrics) if not all(math.isfinite(read(one)) for read in _DRAWN))
    kept.update(_extremes(metrics, range(len(metrics)), _SERIES))
    stretches = (budget - len(kept)) // (2 * len(_DRAWN))
    for number in range(stretches):
        first, end = (at * len(metrics) // stretches for at in (number, number + 1))
        kept.update(_extremes(metrics, range(first, end), _DRAWN))
    return [metrics[index] for index in sorted(kept)]


def _extremes(metrics: Sequence[pb.TrainingMetric], among: range, series: Iterable[Read]) -> set[int]:
    """Where each series has its lowest and highest finite value."""
    found: set[int] = set()
    for read in series:
        finite = [(value, index) for index in among if math.isfinite(value := read(metrics[index]))]
        if finite:
            found |= {min(finite)[1], max(finite)[1]}
    return found
