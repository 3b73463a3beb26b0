from functools import partial
from threading import Event

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.formats.architecture import Architecture
from octavo.formats.bundle import read_json
from services.inference.score_session import PADDING, ScoreSession, TextReader
from services.inference.served_graph import ServedGraph
from tests.services.inference.conftest import write_random_bundle

CHUNK = 32


@pytest.fixture(scope="module", params=["gpt2", "qwen3"])
def session(request, bundles):
    directory = bundles(request.param)
    architecture = Architecture.from_config(read_json(directory / "config.json"))
    graph = ServedGraph(directory / "model.onnx", architecture, threads=1, spin_us=0)
    return ScoreSession(partial(TextReader, graph), capacity=96, chunk_tokens=CHUNK)


def read(session, texts, firsts=None, left=None):
    """All that is said of each text: logits and hidden states, from its first position on."""
    said = [([], []) for _ in texts]
    for reading in session.read(texts, firsts or [0] * len(texts), left or Event()):
        said[reading.text][0].append(reading.logits.copy())
        said[reading.text][1].append(reading.hidden.copy())
    return [(np.concatenate(logits), np.concatenate(hidden)) for logits, hidden in said]


@given(st.lists(st.integers(1, 96), max_size=40))
def test_every_text_is_in_one_group_of_texts_padded_alike_that_fit_into_one_run(lengths):
    session = ScoreSession.__new__(ScoreSession)
    session._chunk_tokens, session._capacity = CHUNK, 96
    groups = session.groups(lengths)
    assert sorted(number for group in groups for number in group) == list(range(len(lengths)))
    for group in groups:
        padded = {-(-lengths[number] // PADDING) for number in group}
        assert len(padded) == 1
        assert len(group) == 1 or len(group) * padded.pop() * PADDING <= CHUNK


def test_texts_read_together_get_the_bits_that_each_gets_alone(session):
    random = np.random.default_rng(0)
    texts = [random.integers(0, 66, length) for length in (5, 8, 1, 7)]
    together = read(session, texts)
    for text, (logits, hidden) in zip(texts, together, strict=True):
        ((alone, alone_hidden),) = read(session, [text])
        assert logits.shape == (len(text), 66)
        assert (logits == alone).all()
        assert (hidden == alone_hidden).all()


def test_answers_begin_where_they_are_wanted(session):
    text = np.arange(90) % 66
    ((all_logits, _),) = read(session, [text])
    for first in (0, 31, 32, 70, 89):
        ((logits, _),) = read(session, [text], [first])
        assert (logits == all_logits[first:]).all()


def test_what_was_read_before_leaves_no_trace(session):
    text = np.arange(40) % 66
    before = read(session, [text])
    read(session, [np.full(7, 3)] * 4)
    read(session, [np.full(96, 5)])
    after = read(session, [text])
    assert (after[0][0] == before[0][0]).all()


def test_nothing_more_is_read_for_one_who_left(session):
    left = Event()
    readings = session.read([np.arange(90) % 66], [0], left)
    assert next(readings).start == 0
    left.set()
    assert list(readings) == []


async def test_tasks_run_one_at_a_time_in_the_order_asked(session):
    order = []
    assert await session.work(lambda left: order.append(left.is_set()) or "answer") == "answer"
    assert order == [False]


@pytest.mark.parametrize("family", ["gpt2", "qwen3"])
def test_a_text_that_fills_a_context_of_any_length_gets_the_same_bits_however_it_is_cut(family, tmp_path):
    context = 89
    directory = write_random_bundle(tmp_path / family, family, context_length=context)
    architecture = Architecture.from_config(read_json(directory / "config.json"))
    graph = ServedGraph(directory / "model.onnx", architecture, threads=1, spin_us=0)
    text = np.arange(context) % 66
    whole, *cut = (
        read(ScoreSession(partial(TextReader, graph), capacity=context, chunk_tokens=chunk), [text])[0]
        for chunk in (96, 8, 28, 56)
    )
    for logits, hidden in cut:
        assert logits.tobytes() == whole[0].tobytes()
        assert hidden.tobytes() == whole[1].tobytes()
