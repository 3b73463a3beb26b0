"""How long workers were at a job is told by its events."""

from google.protobuf.timestamp_pb2 import Timestamp

from octavo.v1 import trainer_pb2 as pb
from services.trainer.running_time import RunningTime


def running_time(*events):
    """Of events given as (attempt, second)."""
    time = RunningTime()
    for attempt, second in events:
        time.note(pb.JobEvent(attempt=attempt, create_time=Timestamp(seconds=second)))
    return time


def test_waiting_between_attempts_does_not_count():
    time = running_time((0, 0), (1, 10), (1, 15), (0, 16), (0, 90), (2, 100), (2, 103))
    assert time.total_ns == 8 * 10**9


def test_a_worker_that_says_nothing_is_running_too():
    assert running_time((1, 10), (1, 15)).total_s(now_s=45) == 35
    assert running_time((1, 10), (1, 15), (0, 20)).total_s(now_s=45) == 5


def test_a_clock_that_was_set_back_takes_nothing_away():
    assert running_time((1, 10), (1, 15), (1, 3), (1, 4)).total_ns == 6 * 10**9
