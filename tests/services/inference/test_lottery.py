import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.inference.lottery import FEW, GROUPS, NUCLEUS, Terms, candidates, draw


def plainly(logits, temperature, top_k, min_p, top_p, number):
    """The token that a number falls on, by the definitions of the terms alone."""
    scaled = (logits - logits.max()) * np.float32(1 / temperature)
    order = np.sort(scaled)[::-1]
    if 0 < top_k < len(scaled):
        scaled = np.where(scaled >= order[top_k - 1], scaled, -np.inf)
    weights = np.exp(scaled)
    weights[weights < np.float32(min_p)] = 0
    if top_p < 1:
        descending = np.sort(weights)[::-1].astype(np.float64)
        least = descending[(descending.cumsum() >= top_p * descending.sum()).argmax()]
        weights[weights < least] = 0
    mass = weights.astype(np.float64).cumsum()
    return int((mass > number * mass[-1]).argmax())


CASES = st.tuples(
    st.sampled_from([0.25, 1.0, 2.0]),
    st.sampled_from([0, 1, 2, 40, FEW, FEW + 1, 100_000]),
    st.sampled_from([0, 0.03125]),
    st.sampled_from([0.5, 0.96875, 1.0]),
    st.floats(0, 1, exclude_max=True),
)


@settings(max_examples=150)
@given(st.lists(CASES, min_size=1, max_size=6), st.sampled_from([3, 65, GROUPS, GROUPS + 1, 5000]), st.integers(0, 99))
def test_a_number_falls_on_the_token_that_the_terms_define(cases, vocab, seed):
    # Multiples of 1/8: equal logits are frequent, and so are ties with the k-th.
    logits = (np.random.default_rng(seed).normal(0, 2, (len(cases), vocab)) * 8).round().astype(np.float32) / 8
    temperature, top_k, min_p, top_p, numbers = (np.array(column) for column in zip(*cases, strict=True))
    terms = Terms(
        sharpness=(1 / temperature).astype(np.float32)[:, None],
        top_k=top_k.astype(np.int64),
        min_p=min_p.astype(np.float32)[:, None],
        top_p=top_p.astype(np.float64),
    )
    tokens = draw(logits, logits.max(axis=1, keepdims=True), terms, numbers)
    for row, (case, token) in enumerate(zip(cases, tokens.tolist(), strict=True)):
        *rest, number = case
        # A sum in another order may move a border by its last bits: a hair to either side the token must be the same.
        around = {plainly(logits[row], *rest, min(max(number + hair, 0), 1 - 2**-50)) for hair in (-1e-6, 0, 1e-6)}
        assert token in around


@pytest.mark.parametrize("vocab", [GROUPS + 1, 3 * GROUPS, 50257])
def test_candidates_hold_the_largest_in_the_order_of_ids(vocab):
    logits = np.random.default_rng(0).normal(0, 1, (5, vocab)).astype(np.float32)
    most = np.array([1, 7, 40, NUCLEUS, FEW])
    ids, values = candidates(logits, most)
    for row, count in enumerate(most):
        found = ids[row][np.isfinite(values[row])]
        assert (np.diff(found) > 0).all()
        assert set(np.argsort(logits[row])[-count:]) <= set(found.tolist())
        assert (values[row][: len(found)] == logits[row][found]).all()


def test_what_is_excluded_altogether_is_no_candidate():
    logits = np.full((2, 3 * GROUPS), -np.inf, np.float32)
    logits[0, [5, 4000]] = 1
    logits[1, 17] = 0
    ids, values = candidates(logits, np.array([40, 1]))
    assert ids.tolist() == [[5, 4000], [17, 0]]
    assert values.tolist() == [[1, 1], [0, -np.inf]]


def test_a_token_that_weighs_nothing_is_never_drawn():
    logits = np.full((1, 2 * GROUPS), -np.inf, np.float32)
    logits[0, [3, 700, 4095]] = 0
    terms = Terms(np.ones((1, 1), np.float32), np.zeros(1, np.int64), None, None)
    best = np.zeros((1, 1), np.float32)
    numbers = np.linspace(0, 1 - 2**-50, 200)
    assert {int(draw(logits, best, terms, np.array([n]))[0]) for n in numbers} == {3, 700, 4095}
