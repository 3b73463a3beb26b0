"""Batches are a pure function of seed and step, and every epoch sees every window once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.errors import FailedPrecondition
from services.trainer.batches import Batches


def batches(tokens: int = 1000, length: int = 16, batch: int = 4, seed: int = 7) -> Batches:
    return Batches(np.arange(tokens, dtype=np.uint16), context_length=length, batch_size=batch, seed=seed)


def test_targets_are_the_tokens_after_the_inputs() -> None:
    batch = batches().batch(5)
    inputs, targets = batch.tokens, batch.targets
    assert inputs.shape == targets.shape == (4, 16)
    assert (targets == inputs + 1).all()


@given(step=st.integers(1, 10**9), seed=st.integers(-(2**63), 2**63 - 1))
def test_a_batch_depends_on_seed_and_step_alone(step: int, seed: int) -> None:
    one, other = batches(seed=seed), batches(seed=seed)
    other.starts(1)
    assert (one.starts(step) == other.starts(step)).all()


@given(tokens=st.integers(17, 400), length=st.integers(1, 16), batch=st.integers(1, 9), step=st.integers(1, 500))
def test_windows_lie_inside_the_text(tokens: int, length: int, batch: int, step: int) -> None:
    found = batches(tokens, length, batch).batch(step)
    inputs, targets = found.tokens, found.targets
    assert inputs.min() >= 0
    assert targets.max() < tokens


def test_an_epoch_visits_each_window_once_and_the_next_in_another_order() -> None:
    source = batches(tokens=16 * 21 + 5, length=16, batch=1)
    epochs = [
        np.concatenate([source.starts(e * source.windows_per_epoch + i + 1) for i in range(source.windows_per_epoch)])
        for e in range(2)
    ]
    for starts in epochs:
        assert (np.diff(np.sort(starts)) == 16).all()
    assert not (epochs[0] == epochs[1]).all()


def test_another_seed_gives_other_batches() -> None:
    assert not (batches(seed=1).starts(1) == batches(seed=2).starts(1)).all()


def test_a_text_shorter_than_a_window_is_refused_with_what_would_fit() -> None:
    with pytest.raises(FailedPrecondition, match="at most 9"):
        batches(tokens=10, length=16)
