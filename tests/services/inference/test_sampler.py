import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.lottery import NUCLEUS
from services.inference.sampler import Sampler, Sampling

SAMPLINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0, 1e-9, 0.5, 1.0, 3.0]),
    top_k=st.sampled_from([0, 1, 3, 1000, 3000]),
    top_p=st.sampled_from([1e-6, 0.3, 0.9, 1.0]),
    min_p=st.sampled_from([0, 0.1, 1.0]),
    seed=st.integers(0, 2**64 - 1),
)


def logits_of(rows, vocab, seed=0):
    return np.random.default_rng(seed).normal(0, 3, (rows, vocab)).astype(np.float32)


@given(st.lists(SAMPLINGS, min_size=1, max_size=9), st.sampled_from([5, 65, 1000, 2049, 5001]), st.data())
def test_a_row_draws_the_same_in_every_company(samplings, vocab, data):
    steps = [logits_of(len(samplings), vocab, step) for step in range(3)]
    alone = []
    for row, sampling in enumerate(samplings):
        sampler = Sampler(slots=1, capacity=3)
        sampler.place(0, sampling, 3)
        alone.append([int(sampler.sample(step[row : row + 1])[0]) for step in steps])

    order = data.draw(st.permutations(range(len(samplings))))
    sampler = Sampler(slots=len(samplings) + 1, capacity=3)
    for place, row in enumerate(order):
        sampler.place(len(samplings), samplings[row], 3)
        sampler.move(len(samplings), place)
    together = [sampler.sample(step[order]).tolist() for step in steps]

    for place, row in enumerate(order):
        assert [tokens[place] for tokens in together] == alone[row]


def test_a_stream_is_a_function_of_seed_and_position():
    assert (Sampling(seed=5).draws(8)[:3] == Sampling(seed=5).draws(3)).all()
    assert (Sampling(seed=5).draws(3) != Sampling(seed=6).draws(3)).all()
    assert (Sampling(seed=5).draws(3) != Sampling(seed=5, stream=1).draws(3)).all()
    assert (Sampling(seed=2**64 - 1).draws(3) != Sampling(seed=2**64 - 2).draws(3)).all()


def drawn(sampling, logits, count):
    sampler = Sampler(slots=1, capacity=count)
    sampler.place(0, sampling, count)
    return np.array([sampler.sample(logits)[0] for _ in range(count)])


def test_tokens_come_as_often_as_they_are_probable():
    logits = np.log(np.array([[0.5, 0.25, 0.15, 0.1]], np.float32))
    counts = np.bincount(drawn(Sampling(seed=1), logits, 20_000), minlength=4) / 20_000
    # Five standard deviations of a share of one half.
    assert np.abs(counts - [0.5, 0.25, 0.15, 0.1]).max() < 5 * 0.5 / 20_000**0.5


@pytest.mark.parametrize(
    ("sampling", "allowed"),
    [
        (Sampling(top_k=2), {0, 1}),
        (Sampling(top_p=0.74), {0, 1}),
        (Sampling(top_p=0.76), {0, 1, 2}),
        (Sampling(min_p=0.4), {0, 1}),
        (Sampling(top_k=3, top_p=0.5), {0}),
        (Sampling(temperature=1e-9), {0}),
        (Sampling(top_k=1), {0}),
        (Sampling(temperature=0), {0}),
    ],
)
def test_excluded_tokens_never_come(sampling, allowed):
    logits = np.log(np.array([[0.5, 0.25, 0.15, 0.1]], np.float32))
    assert set(drawn(sampling, logits, 2000).tolist()) == allowed


def test_top_p_looks_beyond_its_first_candidates_where_the_mass_is_flat():
    vocab = 4 * NUCLEUS
    logits = np.linspace(0.001, 0, vocab, dtype=np.float32)[None]
    seen = drawn(Sampling(top_p=0.5, seed=2), logits, 5000)
    assert NUCLEUS < seen.max() <= vocab // 2


def test_logits_that_are_not_numbers_are_told_and_harm_no_other_row():
    sampler = Sampler(slots=3, capacity=4)
    for row in range(3):
        sampler.place(row, Sampling(seed=row), 4)
    logits = logits_of(3, 65)
    expected = sampler.sample(logits)
    sampler = Sampler(slots=3, capacity=4)
    for row in range(3):
        sampler.place(row, Sampling(seed=row), 4)
    logits[1, 7] = np.nan
    with np.errstate(invalid="ignore"):
        tokens = sampler.sample(logits)
    assert tokens.tolist() == [expected[0], -1, expected[2]]


def test_infinite_logits_exclude_tokens():
    logits = np.full((1, 4), -np.inf, np.float32)
    logits[0, 2] = 1
    assert set(drawn(Sampling(), logits, 50).tolist()) == {2}
