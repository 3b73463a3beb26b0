"""A safetensors header is taken whole or refused: rule by rule, by mutation, and against the reference reader."""

import json
from contextlib import suppress

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError

from octavo.errors import InvalidArgument
from octavo.v1 import errors_pb2
from octavo.v1 import inspector_pb2 as pb
from services.inspector.safetensors_header import HEADER_LIMIT_BYTES, read_header

relaxed = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def file_of(table, data=b"", length=None):
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def row(dtype="F32", shape=(2,), offsets=(0, 8), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


def test_tensors_come_in_the_order_of_their_bytes_with_absolute_offsets(read):
    data = file_of({"b": row(offsets=(8, 16)), "a": row(), "__metadata__": {"format": "pt"}}, bytes(16))
    header = read_header(read(data))
    assert [tensor.name for tensor in header.tensors] == ["a", "b"]
    assert header.tensors[0].offset == len(data) - 16
    assert header.tensors[1].type.kind == pb.TENSOR_TYPE_FLOAT32
    assert header.metadata == {"format": "pt"}


def test_only_the_header_is_fetched(read, bundle):
    reader = read(bundle["model.safetensors"])
    read_header(reader)
    fetched = sum(length for _, length in reader._source.fetches)
    assert fetched < len(bundle["model.safetensors"]) / 10


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"1234567", "too few"),
        (file_of({}, length=HEADER_LIMIT_BYTES + 1), "header length"),
        (file_of({"a": row()}, length=1 << 40), "header length"),
        (file_of(b" {}"), "opening brace"),
        (file_of(b"{nonsense}"), "not plain JSON"),
        (file_of(b'{"a": NaN}'), "not plain JSON"),
        (file_of(b"{" + b'"a":{' * 20000), "not plain JSON"),
        (file_of(b'{"a":1,"a":2}'), "occurs twice"),
        (file_of(b'{"\xff":1}'), "not plain JSON"),
        (file_of({"__metadata__": {"a": 1}}), "__metadata__"),
        (file_of({"__metadata__": []}), "__metadata__"),
        (file_of({"a": []}), "and nothing else"),
        (file_of({"a": row(more=1)}, bytes(8)), "and nothing else"),
        (file_of({"a": row(dtype="F31")}, bytes(8)), "dtype 'F31'"),
        (file_of({"a": row(dtype=7)}, bytes(8)), "dtype '7'"),
        (file_of({"a": row(shape=(-2,))}, bytes(8)), "shape"),
        (file_of({"a": row(shape=(True, 2))}, bytes(8)), "shape"),
        (file_of({"a": row(shape=(1,) * 65, offsets=(0, 4))}, bytes(4)), "shape"),
        (file_of({"a": row(offsets=(8, 0))}, bytes(8)), "data_offsets"),
        (file_of({"a": row(offsets=(0, 1.5))}, bytes(8)), "data_offsets"),
        (file_of({"a": row(shape=(3,))}, bytes(8)), "need 12"),
        (file_of({"a": row(dtype="F4", shape=(3,), offsets=(0, 1))}, bytes(1)), "need 1.5"),
        (file_of({"a": row(shape=(1 << 62, 1 << 62), offsets=(0, 8))}, bytes(8)), "need"),
        (file_of({"a": row(), "b": row(offsets=(12, 20))}, bytes(20)), "a hole"),
        (file_of({"a": row(), "b": row(offsets=(4, 12))}, bytes(12)), "an overlap"),
        (file_of({"a": row()}, bytes(9)), "end at byte"),
        (file_of({"a": row()}, bytes(7)), "end at byte"),
        (file_of({}, bytes(1)), "end at byte"),
    ],
)
def test_a_file_that_breaks_a_rule_is_refused_with_that_rule(read, data, complaint):
    with pytest.raises(InvalidArgument, match=complaint) as caught:
        read_header(read(data, "weights"))
    assert caught.value.reason == errors_pb2.REASON_MALFORMED_FILE
    assert list(caught.value.violations) == ["weights"]


dtypes = st.sampled_from([np.float32, np.float16, np.int8, np.int64, np.bool_])
shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
names = st.text(min_size=1, max_size=12).filter(lambda name: name != "__metadata__")


@relaxed
@given(st.dictionaries(names, st.tuples(dtypes, shapes), max_size=6), st.dictionaries(st.text(), st.text(), max_size=3))
def test_what_the_reference_library_writes_is_read(read, tensors, metadata):
    arrays = {name: np.zeros(shape, dtype) for name, (dtype, shape) in tensors.items()}
    # With an empty dictionary of metadata safetensors 0.8.0 writes a header that is no JSON.
    header = read_header(read(safetensors.numpy.save(arrays, metadata or None)))
    assert {tensor.name: tensor.shape for tensor in header.tensors} == {
        name: array.shape for name, array in arrays.items()
    }
    assert header.metadata == metadata


@relaxed
@given(st.lists(st.tuples(st.integers(0, 1 << 10), st.integers(0, 255)), min_size=1, max_size=3), st.integers(0, 2))
def test_a_damaged_file_is_read_only_if_the_reference_library_reads_it_too(read, changes, cut):
    good = safetensors.numpy.save({"a": np.zeros(3, np.float32), "b": np.zeros((2, 2), np.int8)}, {"k": "v"})
    damaged = bytearray(good)
    for position, value in changes:
        damaged[position % len(good)] = value
    damaged = bytes(damaged[: len(good) - cut])
    try:
        ours = read_header(read(damaged))
    except InvalidArgument:
        return
    try:
        theirs = dict(safetensors.deserialize(damaged))
    except SafetensorError as error:
        pytest.fail(f"accepted what the reference refuses: {error}")
    assert {tensor.name: list(tensor.shape) for tensor in ours.tensors} == {
        name: item["shape"] for name, item in theirs.items()
    }


@relaxed
@given(st.binary(max_size=200))
def test_noise_is_refused_or_read_but_never_crashes(read, noise):
    for data in (noise, len(noise).to_bytes(8, "little") + noise):
        with suppress(InvalidArgument):
            read_header(read(data))
