import json

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from octavo.errors import InvalidArgument, NotFound
from octavo.formats.tensor_file import read_header, read_tensor, write_safetensors
from octavo.v1.errors_pb2 import Reason

DTYPES = st.sampled_from(["f4", "f8", "f2", "i8", "i4", "i2", "i1", "u1", "u2", "u4", "u8", "?"])
ARRAYS = DTYPES.flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5))
)
FILES = st.dictionaries(st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"), ARRAYS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tensors")


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()


@given(FILES, st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3))
def test_the_reference_reader_reads_what_we_write(folder, tensors, metadata):
    path = folder / "ours.safetensors"
    header = write_safetensors(path, tensors, metadata)
    assert_same(safetensors.numpy.load_file(path), tensors)
    assert read_header(path) == header
    assert header.metadata == metadata


@given(FILES)
def test_we_read_what_the_reference_writer_writes(folder, tensors):
    path = folder / "theirs.safetensors"
    safetensors.numpy.save_file(tensors, path)
    found = {name: read_tensor(path, entry) for name, entry in read_header(path).tensors.items()}
    assert_same(found, tensors)


@given(FILES)
def test_tensors_of_whole_cache_lines_start_on_one(folder, tensors):
    header = write_safetensors(folder / "aligned.safetensors", tensors)
    for entry in header.tensors.values():
        assert entry.size_bytes % 64 or entry.offset % 64 == 0


@given(FILES, st.data())
def test_a_damaged_file_is_refused_or_means_something_never_crashes(folder, tensors, data):
    path = folder / "damaged.safetensors"
    write_safetensors(path, tensors)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, min(len(content) - 1, 300)))
        content[position] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        header = read_header(path)
    except InvalidArgument:
        return
    assert sum(entry.size_bytes for entry in header.tensors.values()) <= len(content)


@given(FILES, st.data())
def test_a_file_cut_off_anywhere_is_refused(folder, tensors, data):
    path = folder / "cut.safetensors"
    write_safetensors(path, tensors)
    content = path.read_bytes()
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(InvalidArgument):
        read_header(path)


def raw(table, data=b"\0" * 8):
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    return len(text).to_bytes(8, "little") + text + data


def row(start=0, end=8, **changes):
    return {"dtype": "F32", "shape": [2], "data_offsets": [start, end]} | changes


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "cut off"),
        ((1 << 62).to_bytes(8, "little") + b"{}", "cut off"),
        (raw(b"[]", b""), "not a JSON object"),
        (raw(b" {}", b""), "not a JSON object"),
        (raw(b"{", b""), "not JSON"),
        (raw(b"[" * 100_000, b""), "not JSON"),
        (raw(b'{"a":{},"a":{}}', b""), "twice"),
        (raw({"a": row(), "__metadata__": {"n": 1}}), "__metadata__"),
        (raw({"a": {"dtype": "F32"}}), "needs dtype, shape and data_offsets"),
        (raw({"a": row(dtype="F31")}), "unknown dtype"),
        (raw({"a": row(dtype=["F32"])}), "unknown dtype"),
        (raw({"a": row(shape=[-2])}), "not lists of sizes"),
        (raw({"a": row(shape=[True, 2])}), "not lists of sizes"),
        (raw({"a": row(shape=[3])}), "need 12"),
        (raw({"a": row(shape=[1 << 62, 1 << 62])}), "need"),
        (raw({"a": row(8, 0)}), "spans -8"),
        (raw({"a": row(8, 16)}, b"\0" * 16), "hole or an overlap"),
        (raw({"a": row(), "b": row()}), "hole or an overlap"),
        (raw({"a": row()}, b"\0" * 9), "the file at"),
    ],
)
def test_each_way_to_break_the_format_has_its_own_words(tmp_path, content, complaint):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(InvalidArgument, match=complaint) as caught:
        read_header(path)
    assert caught.value.reason == Reason.REASON_INVALID_TENSOR_FILE


def test_a_missing_file_is_not_found(tmp_path):
    with pytest.raises(NotFound):
        read_header(tmp_path / "none.safetensors")


def test_a_write_that_is_refused_leaves_the_old_file(tmp_path):
    path = tmp_path / "kept.safetensors"
    write_safetensors(path, {"a": np.ones(3, np.float32)})
    before = path.read_bytes()
    for bad in ({"a": np.ones(1, np.complex64)}, {"__metadata__": np.ones(1)}, {"a": np.ones(1, ">f4")}):
        with pytest.raises(InvalidArgument):
            write_safetensors(path, bad)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_the_same_tensors_are_the_same_bytes(tmp_path):
    tensors = {"b": np.arange(6, dtype=np.float32).reshape(2, 3).T, "a": np.zeros((), np.int64)}
    first, second = tmp_path / "1", tmp_path / "2"
    write_safetensors(first, tensors, {"format": "pt"})
    write_safetensors(second, tensors, {"format": "pt"})
    assert first.read_bytes() == second.read_bytes()
