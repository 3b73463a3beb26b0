import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.errors import DataLoss
from services.inference.scoring import TokenScore, mean_log_probability, token_scores


def logits_of(rows, vocab, seed=0):
    return np.random.default_rng(seed).normal(0, 5, (rows, vocab)).astype(np.float32)


@given(st.integers(1, 9), st.sampled_from([2, 65, 300]), st.integers(0, 5), st.integers(0, 2**32))
def test_a_tokens_score_depends_on_its_own_row_alone(rows, vocab, top, seed):
    logits = logits_of(rows, vocab, seed)
    targets = np.random.default_rng(seed).integers(0, vocab, rows)
    together = token_scores(logits, targets, top)
    assert together == [token_scores(logits[row : row + 1], targets[row : row + 1], top)[0] for row in range(rows)]


def test_scores_are_exact_to_the_last_digits():
    logits = logits_of(4, 50)
    wide = logits.astype(np.longdouble)
    expected = wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))
    for row, score in enumerate(token_scores(logits, np.array([3, 7, 0, 49]), 50)):
        assert score.log_probability == pytest.approx(float(expected[row, score.token_id]), rel=1e-14)
        assert math.fsum(math.exp(value) for _, value in score.best) == pytest.approx(1, rel=1e-14)
        assert dict(score.best)[score.token_id] == score.log_probability


def test_ties_go_by_token_id():
    (score,) = token_scores(np.zeros((1, 6), np.float32), np.array([5]), 3)
    assert len({value for _, value in score.best}) == 1
    assert [token_id for token_id, _ in score.best] == sorted(token_id for token_id, _ in score.best)


def test_logits_that_are_not_numbers_are_no_score():
    logits = logits_of(2, 5)
    logits[1, 3] = np.nan
    with pytest.raises(DataLoss, match="not numbers"):
        token_scores(logits, np.array([0, 1]), 0)


def test_completions_of_different_lengths_compare_by_their_mean():
    def completion(*values):
        return [TokenScore(token_id=0, log_probability=value) for value in values]

    assert mean_log_probability(completion(-1.0, -3.0)) == -2
    assert mean_log_probability(completion(None, -3.0)) == -3
    assert mean_log_probability(completion(None)) == 0
