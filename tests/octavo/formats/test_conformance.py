import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.errors import FailedPrecondition, InvalidArgument
from octavo.formats.conformance import (
    CONFORMANCE_FILE,
    Conformance,
    PrecisionVectors,
    Vector,
    log_probability,
)

F32 = st.floats(-50, 0, width=32)
VECTORS = st.lists(st.tuples(st.integers(0, 99), F32), min_size=1, max_size=5).map(
    lambda steps: Vector(prompt=(1, 2), greedy=tuple(s[0] for s in steps), log_probabilities=tuple(s[1] for s in steps))
)


def conformance(*vectors, tolerance=1e-3):
    entry = PrecisionVectors(graph="model.onnx", tolerance=tolerance, vectors=vectors)
    return Conformance({"fp32": entry})


@pytest.fixture
def vector():
    return Vector(prompt=(1, 2, 3), greedy=(4, 5), log_probabilities=(-0.5, -1.25))


@given(st.lists(VECTORS, min_size=1, max_size=3))
def test_what_is_written_is_what_is_read(tmp_path_factory, vectors):
    folder = tmp_path_factory.mktemp("conformance")
    conformance(*vectors).write(folder)
    assert Conformance.read(folder) == conformance(*vectors)


def test_vectors_hold_within_the_tolerance_and_bits_are_counted_apart(vector):
    asked = []

    def complete(prompt, count):
        asked.append((prompt, count))
        return (4, 5), (-0.5, -1.25) if len(asked) == 1 else (-0.5, -1.2501)

    verdict = conformance(vector, vector).verify("fp32", complete)
    assert (verdict.vectors, verdict.bit_exact) == (2, 1)
    assert asked == [((1, 2, 3), 2)] * 2


@pytest.mark.parametrize(
    ("greedy", "log_probabilities", "words"),
    [
        ((4, 6), (-0.5, -1.25), "token 1 is 6 instead of 5"),
        ((4,), (-0.5,), "1 tokens came instead of 2"),
        ((4, 5, 5), (-0.5, -1.25, -1.0), "3 tokens came instead of 2"),
        ((4, 5), (-0.5, -1.26), "log-probability 1 is off by 0.01"),
        ((4, 5), (-0.5, math.nan), "log-probability 1 is off by nan"),
    ],
)
def test_a_vector_that_does_not_hold_says_how(vector, greedy, log_probabilities, words):
    with pytest.raises(FailedPrecondition, match=words) as caught:
        conformance(vector).verify("fp32", lambda prompt, count: (greedy, log_probabilities))
    assert caught.value.metadata == {"precision": "fp32", "vector": "0"}


def test_a_precision_without_vectors_does_not_hold(vector):
    with pytest.raises(FailedPrecondition, match="there are for fp32"):
        conformance(vector).verify("int8", lambda prompt, count: ((), ()))


def test_precisions_are_added_beside_one_another(vector):
    int8 = PrecisionVectors(graph="model.int8.onnx", tolerance=0.05, vectors=(vector,))
    both = conformance(vector).with_precision("int8", int8)
    assert both.precisions.keys() == {"fp32", "int8"}


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": ()},
        {"greedy": ()},
        {"greedy": (4, -5)},
        {"greedy": (4, True)},
        {"log_probabilities": (-0.5,)},
        {"log_probabilities": (-0.5, 0.25)},
        {"log_probabilities": (-0.5, -math.inf)},
        {"log_probabilities": (-0.5, math.nan)},
        {"prompt": (1,) * (1 << 16)},
    ],
)
def test_what_is_no_vector_cannot_be_made(vector, fields):
    whole = {"prompt": vector.prompt, "greedy": vector.greedy, "log_probabilities": vector.log_probabilities}
    with pytest.raises(InvalidArgument):
        Vector(**(whole | fields))


@pytest.mark.parametrize(
    "damage",
    [
        lambda value: value.pop("format"),
        lambda value: value.pop("precisions"),
        lambda value: value.update(precisions=[1]),
        lambda value: value["precisions"]["fp32"].update(tolerance=2.0),
        lambda value: value["precisions"]["fp32"].update(graph=None),
        lambda value: value["precisions"]["fp32"].update(vectors=[]),
        lambda value: value["precisions"]["fp32"]["vectors"][0].update(greedy=[4, 6.0]),
        lambda value: value["precisions"]["fp32"]["vectors"][0].update(digest="sha256:"),
        lambda value: value["precisions"]["fp32"]["vectors"][0].update(log_probabilities=[-0.5, -1.3]),
        lambda value: value["precisions"]["fp32"]["vectors"][0].pop("prompt"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, vector, damage):
    conformance(vector).write(tmp_path)
    value = json.loads((tmp_path / CONFORMANCE_FILE).read_text())
    damage(value)
    (tmp_path / CONFORMANCE_FILE).write_text(json.dumps(value))
    with pytest.raises(InvalidArgument, match=CONFORMANCE_FILE):
        Conformance.read(tmp_path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InvalidArgument, match="missing"):
        Conformance.read(tmp_path)


@given(st.lists(st.floats(-80, 80, width=32), min_size=1, max_size=20), st.data())
def test_log_probabilities_are_those_of_softmax(logits, data):
    array = np.array(logits, np.float32)
    code = data.draw(st.integers(0, len(logits) - 1))
    exact = math.log(math.exp(logits[code]) / math.fsum(math.exp(value) for value in logits))
    assert log_probability(array, code) == pytest.approx(exact, abs=1e-5)
