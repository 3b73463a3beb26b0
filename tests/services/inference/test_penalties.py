import numpy as np

from services.inference.penalties import Bending, LeastLength, Penalties


def bent(bender, logits):
    logits = np.array(logits, np.float32)
    bender.bend(logits)
    return logits.tolist()


def test_tokens_seen_in_prompt_or_completion_are_made_less_probable():
    penalties = Penalties(Bending(repetition=2), np.array([0]), 4)
    penalties.note(1)
    assert bent(penalties, [4, -4, 4, -4]) == [2, -8, 4, -4]


def test_presence_counts_once_and_frequency_each_time_in_the_completion_only():
    penalties = Penalties(Bending(presence=1, frequency=0.5), np.array([0]), 3)
    penalties.note(1)
    penalties.note(1)
    assert bent(penalties, [5, 5, 5]) == [5, 3, 5]


def test_a_bias_is_added_after_the_penalties():
    assert bent(Penalties(Bending(repetition=2, bias={0: 3, 2: -1}), np.array([0]), 3), [4, 4, 4]) == [5, 4, 3]


def test_endings_are_excluded_until_enough_tokens_are_there():
    least = LeastLength(2, [1, 3])
    for expected in ([0, -np.inf, 0, -np.inf], [0, -np.inf, 0, -np.inf], [0, 0, 0, 0]):
        assert bent(least, [0, 0, 0, 0]) == expected
        least.note(0)
