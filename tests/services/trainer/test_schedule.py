"""The learning rate is a function of the step alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.trainer.schedule import learning_rate_scale, momentum


def scale(step: int, **changes: float) -> float:
    options = {"total_steps": 100, "warmup_steps": 10, "cooldown_fraction": 0.5, "final_fraction": 0.0}
    return learning_rate_scale(step, **(options | changes))


def test_it_rises_holds_and_falls() -> None:
    assert scale(1) == pytest.approx(0.1)
    assert scale(10) == scale(30) == scale(51) == 1.0
    assert scale(76) == pytest.approx(0.5)
    assert scale(100) == pytest.approx(0.02)


def test_it_stays_at_the_final_fraction_after_the_end() -> None:
    assert scale(101, final_fraction=0.1) == pytest.approx(0.1)
    assert scale(500, final_fraction=0.1) == pytest.approx(0.1)


def test_without_warmup_and_cooldown_it_is_constant() -> None:
    assert {scale(n, warmup_steps=0, cooldown_fraction=0.0) for n in range(1, 101)} == {1.0}


@given(
    total=st.integers(1, 10_000),
    warmup=st.integers(0, 10_000),
    cooldown=st.floats(0, 1),
    final=st.floats(0, 1),
    data=st.data(),
)
def test_it_never_leaves_zero_to_one(
    total: int, warmup: int, cooldown: float, final: float, data: st.DataObject
) -> None:
    step = data.draw(st.integers(1, 2 * total))
    value = learning_rate_scale(
        step, total_steps=total, warmup_steps=warmup, cooldown_fraction=cooldown, final_fraction=final
    )
    assert 0 <= value <= 1
    assert value > 0 or step > total or final == 0


def test_momentum_rises_to_its_peak_and_never_above() -> None:
    values = [momentum(step, peak=0.95) for step in range(1, 400)]
    assert values == sorted(values)
    assert (values[0], values[-1]) == (pytest.approx(0.85), pytest.approx(0.95))
    assert momentum(1, peak=0.5) == 0.5
