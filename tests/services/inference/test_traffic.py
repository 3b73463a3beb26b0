from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from services.inference.traffic import Turns


def test_turns_are_spread_as_evenly_as_can_be():
    turns = Turns()
    assert [turns.next({"a": 3, "b": 1}) for _ in range(8)] == list("aabaaaba")


def test_without_weights_it_is_always_the_firsts_turn():
    turns = Turns()
    assert {turns.next({"a": 0, "b": 0}) for _ in range(5)} == {"a"}


@given(st.dictionaries(st.text("abcdefgh", min_size=1, max_size=1), st.integers(0, 50), min_size=1))
def test_a_whole_round_gives_each_exactly_its_weight(weights):
    turns, total = Turns(), sum(weights.values())
    for _ in range(2):
        seen = Counter(turns.next(weights) for _ in range(total))
        assert all(seen[key] == weight for key, weight in weights.items())


@given(st.lists(st.integers(1, 9), min_size=2, max_size=5), st.integers(1, 200))
def test_no_share_is_ever_a_whole_turn_or_more_off(weights, count):
    turns, shares = Turns(), dict(enumerate(weights))
    seen = Counter(turns.next(shares) for _ in range(count))
    assert all(abs(seen[key] - count * weight / sum(weights)) < len(weights) for key, weight in shares.items())


def test_a_key_that_comes_or_goes_leaves_the_others_their_shares():
    turns = Turns()
    for _ in range(3):
        turns.next({"a": 1, "b": 1, "c": 1})
    seen = Counter(turns.next({"a": 2, "b": 1}) for _ in range(300))
    assert abs(seen["a"] - 200) <= 1
