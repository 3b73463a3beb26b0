import pytest

from services.inference.pace import WINDOW_S, Pace


def test_a_pace_is_the_growth_since_the_oldest_note_of_the_window():
    pace = Pace()
    for second in range(30):
        pace.note(second, 100 * second, 7 * second)
    assert pace.per_second(30, 3000, 210) == pytest.approx((100, 7))
    assert pace.per_second(29.5, 2000, 140) == pytest.approx((0, 0))


def test_nothing_is_told_before_there_are_two_moments():
    pace = Pace()
    assert pace.per_second(5.0, 10, 10) == (0, 0)
    pace.note(5.0, 10, 10)
    assert pace.per_second(5.0, 10, 10) == (0, 0)


def test_what_was_long_ago_no_longer_counts():
    pace = Pace()
    pace.note(0.0, 0)
    pace.note(1.0, 1000)
    assert pace.per_second(1.0 + WINDOW_S, 1000) == (0,)
    assert pace.per_second(2.0 + WINDOW_S, 1000) == (0,)
