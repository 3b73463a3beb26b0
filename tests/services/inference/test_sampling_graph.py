"""The sampling graph on the CPU provider chooses what the sampler chooses."""

from dataclasses import replace
from functools import cache

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.sampler import Sampler, Sampling
from services.inference.sampling_graph import CANDIDATES, FORMS, NOT_A_NUMBER, UNDECIDED, sampling_graph

SAMPLINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0, 1e-9, 0.5, 1.0, 3.0]),
    top_k=st.sampled_from([0, 1, 3, 200]),
    top_p=st.sampled_from([1e-6, 0.3, 0.9, 1.0]),
    min_p=st.sampled_from([0, 0.1, 1.0]),
    seed=st.integers(0, 2**64 - 1),
)
ROUNDING = 1e-6
"""How much a number that is drawn or a share may move before two ways to add up float32 weights must agree."""


@cache
def opened(form, vocab):
    return ort.InferenceSession(sampling_graph(form, vocab).SerializeToString(), providers=["CPUExecutionProvider"])


def logits_of(rows, vocab, seed):
    return np.random.default_rng(seed).normal(0, 3, (rows, vocab)).astype(np.float32)


def chosen_by_graph(form, logits, samplings, turn=0):
    vocab = logits.shape[1]
    column = lambda values, dtype: np.array(values, dtype)[:, None]  # noqa: E731
    feeds = {
        "logits": logits,
        "draw": np.array([sampling.draws(4) for sampling in samplings]),
        "is_greedy": column([sampling.is_greedy for sampling in samplings], bool),
        "sharpness": column([sampling.sharpness for sampling in samplings], np.float32),
        "min_p": column([sampling.min_p for sampling in samplings], np.float32),
        "top_k": column([sampling.top_k if sampling.top_k < vocab else 0 for sampling in samplings], np.float32),
        "top_p": column([sampling.top_p for sampling in samplings], np.float64),
        "lengths": np.arange(len(logits), dtype=np.int32),
        "strides": np.ones(len(logits), np.int32),
        "turn": np.array([turn]),
    }
    session = opened(form, vocab)
    return session.run(None, {entry.name: feeds[entry.name] for entry in session.get_inputs()})


def chosen_by_sampler(logits, sampling, shift=0.0):
    sampler = Sampler(slots=1, capacity=4)
    sampler.place(0, sampling, 4)
    sampler._draws += shift
    return int(sampler.sample(logits[None])[0])


def nearly_chosen(logits, sampling):
    """What the sampler chooses where the number drawn or the share is a little off."""
    shares = [replace(sampling, top_p=sampling.top_p * (1 + off)) for off in (-ROUNDING, ROUNDING)]
    return {chosen_by_sampler(logits, one, shift) for one in (sampling, *shares) for shift in (-ROUNDING, 0, ROUNDING)}


@given(st.lists(SAMPLINGS, min_size=1, max_size=9), st.sampled_from([5, 65, 256, 300, 1000]), st.integers(0, 2**32))
def test_it_chooses_what_the_sampler_chooses(samplings, vocab, seed):
    logits = logits_of(len(samplings), vocab, seed)
    tokens = chosen_by_graph("cut", logits, samplings)[0].tolist()
    for row, (token, sampling) in enumerate(zip(tokens, samplings, strict=True)):
        if token == UNDECIDED:
            assert sampling.top_p == 0.9
            assert vocab > CANDIDATES
        elif token != chosen_by_sampler(logits[row], sampling):
            assert token in nearly_chosen(logits[row], sampling)


@given(SAMPLINGS, st.integers(0, 2**32))
def test_its_simpler_forms_choose_the_same_where_they_suffice(sampling, seed):
    logits = logits_of(1, 1000, seed)
    plain = replace(sampling, top_k=0, top_p=1.0)
    assert chosen_by_graph("plain", logits, [plain])[0] == chosen_by_graph("cut", logits, [plain])[0]
    greedy = replace(plain, temperature=0)
    tokens = {int(chosen_by_graph(form, logits, [greedy])[0][0]) for form in FORMS}
    assert tokens == {int(logits.argmax())}


@pytest.mark.parametrize(("vocab", "count"), [(65, 4000), (1000, 4000), (50257, 200)])
def test_tokens_come_as_often_as_they_are_probable(vocab, count):
    """Over many numbers, in blocks near and far, and never one without weight."""
    logits = np.full((count // 10, vocab), -np.inf, np.float32)
    probable = np.array([0, vocab // 3, vocab // 2, vocab - 1])
    logits[:, probable] = np.log([0.5, 0.25, 0.15, 0.1])
    seen = []
    for start in range(0, count, count // 10):
        samplings = [Sampling(seed=seed) for seed in range(start, start + count // 10)]
        seen += chosen_by_graph("plain", logits, samplings)[0].tolist()
    shares = np.array([seen.count(token) for token in probable]) / count
    assert shares.sum() == 1
    # Five standard deviations of a share of one half.
    assert np.abs(shares - [0.5, 0.25, 0.15, 0.1]).max() < 5 * 0.5 / count**0.5


@pytest.mark.parametrize("form", FORMS)
def test_the_first_of_equally_probable_tokens_is_greedy(form):
    logits = np.zeros((1, 300), np.float32)
    logits[0, [7, 8, 290]] = 1
    assert chosen_by_graph(form, logits, [Sampling(temperature=0)])[0].tolist() == [7]


@pytest.mark.parametrize("form", FORMS)
def test_logits_that_are_not_numbers_are_told_and_harm_no_other_row(form):
    logits = logits_of(3, 65, 0)
    samplings = [Sampling(seed=row) for row in range(3)]
    expected = chosen_by_graph(form, logits, samplings)[0].tolist()
    logits[1, 7] = np.nan
    chosen, fed, *_ = chosen_by_graph(form, logits, samplings)
    assert chosen.tolist() == [expected[0], NOT_A_NUMBER, expected[2]]
    assert fed.tolist() == [[expected[0]], [0], [expected[2]]]


def test_a_share_beyond_the_candidates_is_left_to_the_sampler():
    logits = np.linspace(0.001, 0, 4 * CANDIDATES, dtype=np.float32)[None].repeat(2, axis=0)
    chosen = chosen_by_graph("cut", logits, [Sampling(top_p=0.5), Sampling(top_p=0.5, temperature=0)])[0]
    assert chosen.tolist() == [UNDECIDED, 0]


@pytest.mark.parametrize("form", FORMS)
def test_it_steps_what_the_model_reads_next(form):
    logits = logits_of(3, 65, 0)
    chosen, token_ids, positions, lengths, turn = chosen_by_graph(form, logits, [Sampling()] * 3, turn=2)
    assert token_ids[:, 0].tolist() == chosen.tolist()
    assert positions[:, 0].tolist() == lengths.tolist() == [1, 2, 3]
    assert turn.tolist() == [3]


def test_a_turn_takes_the_number_of_its_own():
    logits = logits_of(1, 1000, 3)
    sampler = Sampler(slots=1, capacity=4)
    sampler.place(0, Sampling(seed=4), 4)
    expected = [int(sampler.sample(logits)[0]) for _ in range(4)]
    assert [int(chosen_by_graph("plain", logits, [Sampling(seed=4)], turn)[0][0]) for turn in range(4)] == expected


def test_no_operator_is_one_that_a_capture_cannot_hold():
    """They copy from host memory of their own while they run, which a replay would read again."""
    for form in FORMS:
        used = {node.op_type for node in sampling_graph(form, 1000).graph.node}
        assert not used & {"GatherND", "GatherElements", "Split", "Concat", "ScatterND", "Shape", "Range"}
