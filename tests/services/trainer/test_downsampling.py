"""Whatever is left out of a curve, nothing that people look for is."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.v1 import trainer_pb2 as pb
from services.trainer.downsampling import FEWEST_POINTS, downsampled

SERIES = (
    "loss",
    "gradient_norm",
    "learning_rate",
    "matrix_learning_rate",
    "tokens_per_second",
    "memory_bytes",
    "update_ratio",
    "flops_utilization",
)
figures = st.floats(allow_nan=True, allow_infinity=True, width=32)
rows = st.lists(
    st.tuples(figures, figures, *[st.floats(0, 1e6)] * 3, st.integers(0, 1 << 40), *[st.floats(0, 1)] * 2),
    min_size=1,
    max_size=300,
)


def curve(values):
    return [
        pb.TrainingMetric(step=step, **dict(zip(SERIES, row, strict=True))) for step, row in enumerate(values, start=1)
    ]


@given(rows, st.integers(1, 200))
def test_the_ends_the_extremes_and_what_is_not_finite_survive(values, max_points):
    metrics = curve(values)
    kept = downsampled(metrics, max_points)
    steps = [metric.step for metric in kept]
    assert steps == sorted(set(steps))
    assert {1, len(metrics)} <= set(steps)
    for name in SERIES:
        before, after = ([getattr(one, name) for one in some] for some in (metrics, kept))
        finite = [value for value in before if math.isfinite(value)]
        if finite:
            assert {min(finite), max(finite)} <= set(after)
    broken = [one.step for one in metrics if not (math.isfinite(one.loss) and math.isfinite(one.gradient_norm))]
    assert set(broken) <= set(steps)
    assert len(kept) <= max(max_points, FEWEST_POINTS) + len(broken)


@pytest.mark.parametrize("max_points", [32, 100, 500])
def test_a_spike_in_each_stretch_stays_visible(max_points):
    losses = [3.0 + 0.001 * math.sin(step) for step in range(20_000)]
    spikes = range(500, 20_000, 2000)
    for at in spikes:
        losses[at] = 9.0 + at / 1e6
    kept = downsampled([pb.TrainingMetric(step=at, loss=loss) for at, loss in enumerate(losses)], max_points)
    assert len(kept) <= max_points
    seen = {metric.step for metric in kept}
    # One stretch holds a quarter of a point of the budget; where there are as many stretches as spikes, all stay.
    assert len(seen & set(spikes)) == len(spikes) if max_points >= 100 else max(spikes) in seen


def test_a_short_curve_stays_as_it_is():
    metrics = [pb.TrainingMetric(step=step, loss=1.0) for step in range(FEWEST_POINTS)]
    assert downsampled(metrics, 5) == metrics
