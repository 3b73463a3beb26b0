"""The figures of rounds: medians, ratios and percentiles."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.rates import Result, best, compare, percentile, rate_table, ratio_table


def result(title, *rates, is_ours=False, bits=8, reason=""):
    return Result(title=title, is_ours=is_ours, is_target=is_ours, bits=bits, reason=reason, rounds={"8": list(rates)})


def test_the_ratio_is_the_median_of_those_of_each_round():
    found = compare([result("ours", 10, 40, 30, is_ours=True), result("peer", 10, 10, 20)], "8", 1.5, (8,))
    assert found.ratio == 1.5


def test_the_best_peer_is_the_one_with_the_highest_median_in_its_class():
    results = [
        result("ours", 100, is_ours=True),
        result("slow", 1, 1, 90),
        result("fast", 50, 60, 55),
        result("four bits", 500, bits=4),
    ]
    assert compare(results, "8", 1, (8,)).peer.title == "fast"


def test_there_is_no_comparison_with_nobody():
    results = [result("ours", 100, is_ours=True), Result(title="absent", is_ours=False, reason="no wheel")]
    assert compare(results, "8", 1, (8,)) is None
    assert best([], "8") is None


def test_one_who_could_not_take_part_is_a_row_with_the_reason():
    lines = rate_table([Result(title="absent", is_ours=False, reason="no | wheel")], {"8": "batch 8"})
    assert lines[-1] == "| absent | — | not available: no / wheel |"


def test_tables_have_as_many_cells_in_each_line():
    results = [result("ours", 2000, is_ours=True), result("peer", 1000)]
    comparison = compare(results, "8", 1.5, (8,))
    for lines in (rate_table(results, {"8": "batch 8"}), ratio_table([("batch 8", comparison)])):
        assert len({line.count("|") for line in lines}) == 1
    assert "| ours 2,000 | peer 1,000 | 2.00 | 1.5 |" in ratio_table([("batch 8", comparison)])[-1]


@pytest.mark.parametrize(("percent", "expected"), [(50, 2), (75, 3), (95, 4), (0, 1), (100, 4)])
def test_a_percentile_is_one_of_the_values(percent, expected):
    assert percentile([4, 1, 3, 2], percent) == expected


def test_there_is_no_percentile_of_nothing():
    assert math.isnan(percentile([], 50))


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 100))
def test_so_many_values_are_at_most_the_percentile(values, percent):
    found = percentile(values, percent)
    assert found in values
    assert sum(value <= found for value in values) >= percent / 100 * len(values) - 1e-6
