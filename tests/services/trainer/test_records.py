"""Records are read back whole whatever was cut off or torn, by readers that follow a writer."""

import errno
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.trainer.records import RecordReader, RecordWriter

payloads = st.lists(st.binary(max_size=300), max_size=20)
quick = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(path, records):
    writer = RecordWriter(path)
    for record in records:
        writer.append(record)
    writer.close()


@quick
@given(records=payloads, limit=st.integers(1, 7))
def test_what_is_appended_is_read_in_order_and_numbered(tmp_path_factory, records, limit):
    path = tmp_path_factory.mktemp("records") / "log"
    write(path, records)
    reader = RecordReader(path)
    read = []
    while batch := reader.read(limit):
        assert len(batch) <= limit
        read += batch
    assert read == records
    assert reader.number == len(records)
    assert not reader.has_news()


@quick
@given(records=payloads, data=st.data())
def test_a_torn_end_is_never_read_and_the_next_writer_goes_on_before_it(tmp_path_factory, records, data):
    path = tmp_path_factory.mktemp("records") / "log"
    write(path, records)
    size = path.stat().st_size if path.exists() else 0
    kept_bytes = data.draw(st.integers(0, size))
    os.truncate(path, kept_bytes)
    with path.open("ab") as file:
        file.write(data.draw(st.sampled_from([b"", b"\0" * 50, b"\xff" * 50])))
    whole = RecordReader(path).read()
    assert whole == records[: len(whole)]
    ends = [sum(8 + len(one) for one in records[:count]) for count in range(len(records) + 1)]
    assert len(whole) == max(count for count, end in enumerate(ends) if end <= kept_bytes)
    write(path, [b"after"])
    assert RecordReader(path).read() == [*whole, b"after"]


@quick
@given(records=payloads.filter(bool), data=st.data())
def test_a_flipped_byte_ends_the_reading_before_its_record(tmp_path_factory, records, data):
    path = tmp_path_factory.mktemp("records") / "log"
    write(path, records)
    content = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    before = 0
    while 8 + len(records[before]) <= position:
        position -= 8 + len(records[before])
        before += 1
    assert RecordReader(path).read() == records[:before]


@quick
@given(records=payloads, cuts=st.lists(st.integers(1, 400), max_size=30))
def test_a_reader_that_follows_a_slow_writer_sees_each_record_once(tmp_path_factory, records, cuts):
    directory = tmp_path_factory.mktemp("records")
    write(directory / "whole", records)
    content = (directory / "whole").read_bytes()
    reader = RecordReader(directory / "slow")
    seen = []
    with (directory / "slow").open("ab", buffering=0) as slow:
        for cut in [*cuts, len(content)]:
            slow.write(content[:cut])
            content = content[cut:]
            while batch := reader.read():
                seen += batch
    assert seen == records


def test_skipping_goes_as_far_as_the_file_does(tmp_path):
    write(tmp_path / "log", [b"a", b"b", b"c"])
    reader = RecordReader(tmp_path / "log")
    reader.skip(2)
    assert reader.read() == [b"c"]
    reader.skip(10)
    assert reader.number == 3


def test_what_was_cut_off_is_kept_beside_the_file(tmp_path):
    write(tmp_path / "log", [b"a"])
    with (tmp_path / "log").open("ab") as file:
        file.write(b"torn")
    write(tmp_path / "log", [b"b"])
    assert (tmp_path / "log.torn").read_bytes() == b"torn"
    assert RecordReader(tmp_path / "log").read() == [b"a", b"b"]


def test_a_missing_file_has_no_records(tmp_path):
    reader = RecordReader(tmp_path / "log")
    assert reader.read() == []
    assert not reader.has_news()


@pytest.mark.parametrize("size", [1 << 20, (1 << 20) + 1, 3 << 20])
def test_a_record_larger_than_a_block_is_read(tmp_path, size):
    write(tmp_path / "log", [b"x" * size, b"y"])
    reader = RecordReader(tmp_path / "log")
    assert [len(one) for one in reader.read() + reader.read()] == [size, 1]


def test_a_record_that_the_disk_had_no_room_for_hides_none_that_comes_later(tmp_path, monkeypatch):
    path = tmp_path / "log"
    writer, write_bytes = RecordWriter(path), os.write
    writer.append(b"first")

    def full(descriptor, content):
        if len(content) < 10:
            raise OSError(errno.ENOSPC, "no space left")
        return write_bytes(descriptor, content[: len(content) - 5])

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with pytest.raises(OSError, match="no space left"):
            writer.append(b"second, cut")
    assert writer.append(b"third") == 2
    writer.close()
    assert RecordReader(path).read() == [b"first", b"third"]


def test_a_record_that_could_not_be_read_back_is_not_written(tmp_path):
    writer = RecordWriter(tmp_path / "log")
    with pytest.raises(ValueError, match="at most"):
        writer.append(bytes((16 << 20) + 1))
    assert writer.append(b"small") == 1
    writer.close()
    assert RecordReader(tmp_path / "log").read() == [b"small"]
