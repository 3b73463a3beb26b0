from itertools import count
from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.errors import ResourceExhausted
from services.inference.batch_policy import BatchPolicy
from services.inference.batch_queue import BatchQueue, TensorRequest


def request(rows=1, width=1, priority=0, arrival_s=0.0, deadline_s=inf):
    return TensorRequest(
        arrays={"x": np.zeros((rows, width), np.float32)},
        wanted=("y",),
        rows=rows,
        is_batched=True,
        arrival_s=arrival_s,
        priority=priority,
        deadline_s=deadline_s,
    )


def queue(*requests, **policy):
    made = BatchQueue(BatchPolicy(**{"rows": 8, **policy}))
    for waiting in requests:
        made.add(waiting)
    return made


def test_without_a_delay_all_that_fit_go_at_once():
    requests = [request(3), request(4), request(2)]
    made = queue(*requests)
    assert made.take(0.0) == (requests[:2], 0.0)
    assert made.take(0.0) == (requests[2:], 0.0)
    assert made.take(0.0) == ([], inf)


def test_a_batch_waits_for_company_until_it_is_full_or_the_delay_is_over():
    first = request(arrival_s=10.0)
    made = queue(first, delay_us=500_000)
    assert made.take(10.2) == ([], pytest.approx(0.3))
    rest = request(7, arrival_s=10.3)
    made.add(rest)
    assert made.take(10.3) == ([first, rest], 0.0)
    lonely = request(arrival_s=11.0)
    made.add(lonely)
    assert made.take(11.5) == ([lonely], 0.0)


def test_a_preferred_size_goes_without_waiting_and_the_rest_waits_on():
    requests = [request() for _ in range(3)]
    made = queue(*requests, delay_us=500_000, preferred=(2,))
    assert made.take(0.0) == (requests[:2], 0.0)
    assert made.take(0.0) == ([], 0.5)


def test_the_most_urgent_leads_and_takes_along_what_is_like_it():
    usual, wide, urgent = request(), request(width=2), request(width=2, priority=5)
    made = queue(usual, wide, urgent)
    assert made.take(0.0) == ([urgent, wide], 0.0)
    assert made.take(0.0) == ([usual], 0.0)


def test_what_is_late_comes_alone_and_first():
    late, good = request(deadline_s=1.0), request()
    made = queue(good, late, delay_us=5_000_000)
    assert made.take(0.0) == ([], 1.0)
    assert made.take(1.0) == ([late], 0.0)


def test_more_than_may_wait_are_refused():
    made = queue(request(), request(), waiting_limit=2)
    with pytest.raises(ResourceExhausted, match="2 requests are waiting already") as refusal:
        made.add(request())
    assert 0 < refusal.value.retry_after_s <= 60


REQUESTS = st.builds(request, st.integers(1, 8), st.integers(1, 2), st.integers(-1, 1))


@given(
    st.lists(st.one_of(REQUESTS, st.just("take"), st.just("leave")), max_size=40),
    st.integers(0, 2_000_000),
    st.sets(st.integers(1, 8), max_size=3),
)
def test_every_request_is_taken_once_in_batches_that_may_be_or_leaves(steps, delay_us, preferred):
    made = queue(delay_us=delay_us, preferred=tuple(sorted(preferred)), waiting_limit=100)
    added, taken, left = [], [], []
    clock = count()
    for step in [*steps, *["take"] * 200]:
        if isinstance(step, TensorRequest):
            step.arrival_s = float(next(clock))
            made.add(step)
            added.append(step)
        elif step == "leave" and len(made):
            left.append(next(iter(made)))
            made.remove(left[-1])
        else:
            batch, wait_s = made.take(float(next(clock)))
            assert (wait_s == 0) == bool(batch)
            assert sum(member.rows for member in batch) <= 8
            assert len({member.likeness for member in batch}) <= 1
            assert [member.order for member in batch] == sorted(member.order for member in batch)
            taken += batch
    assert len(made) == 0
    assert sorted(map(id, taken + left)) == sorted(map(id, added))
