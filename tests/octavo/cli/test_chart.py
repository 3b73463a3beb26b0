"""Curves in braille."""

from hypothesis import given
from hypothesis import strategies as st

from octavo.cli.chart import Curve, draw

numbers = st.floats(-1e6, 1e6)


def plain(lines):
    return [line.plain for line in lines]


def test_a_falling_curve_begins_at_the_top_left_and_ends_at_the_bottom_right():
    rows = plain(draw([Curve([(step, 100 - step) for step in range(101)], "")], 40, 6))
    assert (rows[0][:8], rows[-1][:8]) == ("100.00 ┤", "  0.00 ┤")
    corners = [rows[0][8], rows[-1][-1], rows[0][-1], rows[-1][8]]
    assert [corner == "\u2800" for corner in corners] == [False, False, True, True]


def test_a_curve_with_few_points_has_no_gaps():
    rows = plain(draw([Curve([(0, 0), (100, 1)], "")], 60, 4))
    for column in range(8, 60):
        assert any(row[column] != "\u2800" for row in rows)


def test_the_frame_reaches_to_the_end_of_the_plan():
    rows = plain(draw([Curve([(0, 1), (10, 0)], "")], 60, 4, x_end=100))
    assert all(row[column] == "\u2800" for row in rows for column in range(20, 60))


def test_too_little_to_draw_draws_nothing():
    assert draw([Curve([(1, 1)], "")], 40, 4) == []
    assert draw([Curve([(1, 1), (2, 2)], "")], 8, 4) == []


@given(st.lists(st.tuples(numbers, numbers), min_size=2, max_size=50), st.integers(16, 120), st.integers(2, 12))
def test_any_points_fit_into_the_frame(points, width, height):
    rows = plain(draw([Curve(sorted(points), ""), Curve(sorted(points), "", is_connected=False)], width, height))
    assert len(rows) == height
    assert {len(row.split("┤")[-1].split("│")[-1]) for row in rows} == {width - 8}
