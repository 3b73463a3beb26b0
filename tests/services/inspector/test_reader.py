"""A reader returns exactly what lies there, fetches little, and stops at its budget."""

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo.errors import Cancelled, DataLoss, InvalidArgument, ResourceExhausted
from services.inspector.reader import BLOCK_BYTES, Budget, Reader

DATA = random.Random(3).randbytes(40 * BLOCK_BYTES + 77)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, len(DATA)), st.integers(0, 6 * BLOCK_BYTES)), max_size=20), st.integers(1, 8))
def test_any_reads_in_any_order_give_the_bytes_that_lie_there(make_reader, ranges, blocks):
    reader = make_reader(DATA, cache_bytes=blocks * BLOCK_BYTES)
    for offset, length in ranges:
        end = min(offset + length, len(DATA))
        assert reader.read(offset, end - offset) == DATA[offset:end]


def test_a_second_read_of_the_same_place_fetches_nothing(make_reader):
    reader = make_reader(DATA)
    reader.read(10, 20)
    reader.read(0, BLOCK_BYTES)
    assert reader._source.fetches == [(0, BLOCK_BYTES)]


def test_a_scan_in_order_is_fetched_in_ever_larger_steps(make_reader):
    reader = make_reader(DATA)
    for offset in range(0, len(DATA) - 100, 100):
        reader.read(offset, 100)
    assert len(reader._source.fetches) < 8
    assert sum(length for _, length in reader._source.fetches) == len(DATA)


def test_reads_far_apart_fetch_one_block_each(make_reader):
    reader = make_reader(DATA)
    for block in (30, 3, 17):
        reader.read(block * BLOCK_BYTES + 5, 8)
    assert [length for _, length in reader._source.fetches] == [BLOCK_BYTES] * 3


def test_a_stream_passes_every_byte_once_and_keeps_none(make_reader):
    reader = make_reader(DATA)
    assert b"".join(reader.stream(5, 100_000, 30_000)) == DATA[5:100_005]
    assert not reader._blocks


def test_a_read_beyond_the_end_blames_the_file(make_reader):
    with pytest.raises(InvalidArgument, match="the file has"):
        make_reader(b"abc").read(2, 2)


def test_a_source_that_returns_too_little_is_data_loss(make_reader):
    reader = make_reader(b"abcdef")
    reader._source.fetch = lambda offset, length: b"a"
    with pytest.raises(DataLoss, match="1 bytes arrived where 6"):
        reader.read(0, 6)


def test_the_budget_holds_over_all_files_of_a_call(source):
    budget = Budget(BLOCK_BYTES + 10)
    Reader(source(DATA), budget).read(0, 1)
    with pytest.raises(ResourceExhausted, match="one file"):
        Reader(source(DATA), budget).read(0, 1)
    assert budget.fetched_bytes == BLOCK_BYTES


def test_a_caller_that_left_ends_the_reading(source):
    budget = Budget(1 << 30)
    reader = Reader(source(DATA), budget)
    reader.read(0, 1)
    budget.cancel()
    with pytest.raises(Cancelled):
        reader.read(20 * BLOCK_BYTES, 1)
