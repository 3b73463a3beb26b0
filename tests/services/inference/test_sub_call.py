import pytest

from octavo.errors import DeadlineExceeded
from services.inference.sub_call import SubCall


class Outer:
    def __init__(self, remaining_s):
        self._remaining_s = remaining_s

    def time_remaining(self):
        return self._remaining_s


@pytest.mark.parametrize(
    ("outer_s", "own_s", "least", "most"),
    [(100, None, 90, 100), (100, 50, 40, 50), (50, 100, 40, 50), (None, 50, 40, 50)],
)
def test_the_nearer_deadline_holds(outer_s, own_s, least, most):
    assert least < SubCall(Outer(outer_s), own_s).time_remaining() <= most


def test_without_a_deadline_there_is_always_time():
    call = SubCall(Outer(None))
    assert call.time_remaining() is None
    call.check_time()


def test_what_is_late_need_not_begin():
    with pytest.raises(DeadlineExceeded):
        SubCall(Outer(None), 0.0).check_time()


def test_it_ends_once():
    call, ends = SubCall(Outer(None)), []
    call.add_done_callback(ends.append)
    call.end()
    call.end()
    assert ends == [call]
