"""Arrivals, and what is seen of the requests."""

import asyncio
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.load import Observation, RefusedError, Summary, arrivals, closed_loop, open_loop


@given(st.floats(0.1, 500), st.floats(0.1, 5), st.integers(0, 2**32))
def test_arrivals_are_in_order_within_the_time_and_the_same_for_a_seed(per_s, seconds, seed):
    due = arrivals(per_s, seconds, seed)
    assert due == sorted(due)
    assert all(0 < when < seconds for when in due)
    assert due == arrivals(per_s, seconds, seed)


def test_so_many_arrive_as_were_asked_for():
    count = len(arrivals(100, 100, seed=3))
    # A Poisson count of mean 10,000 is this near in all but one of 10^9 seeds.
    assert abs(count - 10_000) < 6 * math.sqrt(10_000)


async def test_every_request_is_seen_whatever_becomes_of_it():
    async def call(number):
        yield 1
        if number == 1:
            raise RefusedError(has_delay=True)
        if number == 2:
            raise ValueError("broken\nin two lines")

    summary = await open_loop(call, [0.0, 0.001, 0.002, 0.003], seconds=0.1)
    assert len(summary.observations) == 4
    assert [refusal.has_delay for refusal in summary.refusals] == [True]
    assert summary.errors == ["ValueError: broken"]
    assert summary.tokens_per_s == pytest.approx(20)


async def test_an_answer_without_a_token_is_an_error():
    async def call(number):
        yield 0

    assert (await open_loop(call, [0.0], seconds=0.1)).errors == ["it ended without a token"]


async def test_callers_ask_again_and_never_the_same():
    numbers = []

    async def call(number):
        numbers.append(number)
        await asyncio.sleep(0.01)
        yield 1

    summary = await closed_loop(call, callers=3, seconds=0.05)
    assert len(numbers) == len(set(numbers)) == len(summary.observations) >= 3


def test_the_clock_of_a_request_starts_when_it_was_due():
    observation = Observation(due_s=1.0, tokens=[(1.5, 1), (1.75, 3), (2.25, 1)])
    assert observation.first_token_s == 0.5
    assert list(observation.gaps_s()) == [0.25, 0.5]


def test_goodput_counts_what_came_in_time_of_requests_that_were_answered():
    good = Observation(due_s=0.0, tokens=[(1.0, 4), (3.0, 5)])
    bad = Observation(due_s=0.0, tokens=[(1.0, 100)], error="broken")
    summary = Summary(2.0, [good, bad])
    assert summary.tokens_per_s == 2
    assert summary.offered_per_s == 1
    assert summary.first_token_ms(50) == 1000
