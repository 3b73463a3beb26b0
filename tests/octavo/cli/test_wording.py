"""How figures and times read."""

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from octavo.cli import wording


@pytest.mark.parametrize(
    ("size_bytes", "words"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (3 << 20, "3.0 MiB"),
        (5 << 40, "5.0 TiB"),
        (1 << 60, "1048576.0 TiB"),
    ],
)
def test_sizes_are_binary(size_bytes, words):
    assert wording.size(size_bytes) == words


@pytest.mark.parametrize(
    ("number", "words"),
    [(0, "0"), (999, "999"), (1000, "1k"), (829_824, "830k"), (999_999, "1M"), (354_823_168, "355M")],
)
def test_counts_have_three_digits(number, words):
    assert wording.count(number) == words


@pytest.mark.parametrize(
    ("duration_s", "words"),
    [(0.0004, "0 ms"), (0.85, "850 ms"), (9.94, "9.9 s"), (59.4, "59 s"), (59.7, "1 min 0 s"), (7500, "2 h 5 min")],
)
def test_durations_are_as_exact_as_they_matter(duration_s, words):
    assert wording.lasting(duration_s) == words


def test_a_time_that_is_not_set_reads_as_nothing():
    assert wording.ago(Timestamp()) == ""


def test_a_text_on_one_line_shows_its_breaks():
    assert wording.one_line("a\nb\tc", 10) == "a⏎b c"
    assert wording.one_line("x" * 20, 10) == "x" * 9 + "…"
