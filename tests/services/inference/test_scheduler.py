from time import perf_counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.errors import ResourceExhausted
from services.inference.scheduler import Scheduler

SLOTS, LIMIT, CHUNK = 3, 5, 8


class Stub:
    """What the scheduler knows of a sequence."""

    def __init__(self, number, length, priority=0):
        self.number = number
        self.prompt = range(length)
        self.priority = priority
        self.row = -1
        self.read = 0
        self.start_s = 0.0


class Rows:
    """The rows of a cache as the scheduler's moves change them, and everything that must always hold."""

    def __init__(self):
        self.scheduler = Scheduler(slots=SLOTS, waiting_limit=LIMIT, chunk_tokens=CHUNK)
        self.content = [None] * SLOTS
        self.chunks = {}
        self.starts = []

    def add(self, sequence):
        is_full = self.scheduler.waiting_count == LIMIT
        if is_full:
            with pytest.raises(ResourceExhausted):
                self.scheduler.add(sequence)
        else:
            self.scheduler.add(sequence)
        return not is_full

    def read(self):
        tokens = 0
        for chunk in self.scheduler.chunks():
            if chunk.start == 0:
                self.starts.append(chunk.sequence)
            self.chunks.setdefault(chunk.sequence.number, []).append((chunk.start, chunk.end))
            assert tokens == 0 or tokens + chunk.end - chunk.start <= CHUNK
            tokens += chunk.end - chunk.start
            assert chunk.sequence.row >= len(self.scheduler.running)
            self.content[chunk.sequence.row] = chunk.sequence
            chunk.sequence.read = chunk.end
            if chunk.is_last:
                self.apply(self.scheduler.promote(chunk.sequence))
            self.check()

    def remove(self, sequence):
        self.apply(self.scheduler.remove(sequence, 1.0))
        self.check()

    def apply(self, move):
        if move:
            self.content[move.target] = self.content[move.source]

    def check(self):
        running, reading = self.scheduler.running, self.scheduler.reading
        assert [sequence.row for sequence in running] == list(range(len(running)))
        assert [self.content[sequence.row] for sequence in running] == running
        assert self.scheduler.running_count <= SLOTS
        if reading:
            assert len(running) <= reading.row < SLOTS
            assert reading.read == 0 or self.content[reading.row] is reading


@settings(max_examples=200)
@given(st.data())
def test_rows_stay_dense_and_hold_what_they_should_under_any_schedule(data):
    rows, alive = Rows(), []
    for number in range(40):
        match data.draw(st.sampled_from(["add", "add", "read", "remove"])):
            case "add":
                sequence = Stub(number, data.draw(st.integers(1, 30)), data.draw(st.integers(-1, 1)))
                if rows.add(sequence):
                    alive.append(sequence)
            case "read":
                rows.read()
            case "remove" if alive:
                rows.remove(alive.pop(data.draw(st.integers(0, len(alive) - 1))))
        assert set(map(id, rows.scheduler)) == set(map(id, alive))
    while alive:
        rows.read()
        rows.remove(alive.pop(0))
    assert not rows.scheduler.has_work


@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(0, 5))
def test_a_prompt_is_cut_by_its_length_alone(lengths, steps_between):
    rows = Rows()
    sequences = [Stub(number, length) for number, length in enumerate(lengths)]
    for sequence in sequences:
        rows.add(sequence)
        for _ in range(steps_between):
            rows.read()
    while rows.scheduler.has_work:
        rows.read()
        for sequence in list(rows.scheduler.running):
            rows.remove(sequence)
    for sequence in sequences:
        length = len(sequence.prompt)
        expected = [(start, min(start + CHUNK, length)) for start in range(0, length, CHUNK)]
        assert rows.chunks[sequence.number] == expected


def test_first_come_first_served_within_a_priority():
    rows = Rows()
    for number, priority in enumerate((0, 1, 0, 1, -1)):
        rows.add(Stub(number, CHUNK, priority))
    while rows.scheduler.has_work:
        rows.read()
        for sequence in list(rows.scheduler.running):
            rows.remove(sequence)
    assert [sequence.number for sequence in rows.starts] == [1, 3, 0, 2, 4]


def test_short_prompts_are_read_together_up_to_one_chunk():
    rows = Rows()
    for number in range(3):
        rows.add(Stub(number, 4))
    rows.read()
    assert [sequence.number for sequence in rows.scheduler.running] == [0, 1]


def test_a_full_queue_says_when_to_come_back_by_how_long_slots_are_held():
    scheduler = Scheduler(slots=1, waiting_limit=1, chunk_tokens=CHUNK)
    scheduler.add(Stub(0, 1))
    with pytest.raises(ResourceExhausted) as caught:
        scheduler.add(Stub(1, 1))
    assert 0.05 <= caught.value.retry_after_s <= 60


def test_the_longest_wait_is_that_of_the_first_to_come_of_those_that_wait():
    scheduler = Scheduler(slots=1, waiting_limit=9, chunk_tokens=8)
    assert scheduler.longest_wait_s() is None
    for number, waited_s in enumerate((300, 100, 200)):
        sequence = Stub(number, 4, 0)
        sequence.arrival_s = perf_counter() - waited_s
        scheduler.add(sequence)
    assert 300 <= scheduler.longest_wait_s() < 400
    next(scheduler.chunks())  # the first has its turn
    assert 200 <= scheduler.longest_wait_s() < 300
