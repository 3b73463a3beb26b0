from time import perf_counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.errors import ResourceExhausted
from services.inference.prefixes import LEAST
from services.inference.scheduler import AGEING_S, CHUNKS_AT_ONCE, Scheduler

SLOTS, LIMIT, CHUNK = 4, 6, 48
PATIENCE_S = 1000.0


class Stub:
    """What the scheduler knows of a sequence."""

    def __init__(self, number, prompt, priority=0):
        self.number = number
        self.prompt = np.array(prompt, np.int64)
        self.priority = priority
        self.row = -1
        self.read = self.reused = 0
        self.start_s = 0.0
        self.arrival_s = perf_counter()


def distinct(number, length, priority=0):
    """A prompt that has nothing in common with those of other numbers."""
    return Stub(number, [number] * length, priority)


class Rows:
    """The rows of a cache as the scheduler's runs, copies and moves change them, and what must always hold."""

    def __init__(self, slots=SLOTS):
        self.scheduler = Scheduler(slots=slots, waiting_limit=LIMIT, wait_limit_s=PATIENCE_S, chunk_tokens=CHUNK)
        self.cache = np.full((slots, 64), -1, np.int64)
        self.runs = []
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
        left = CHUNK * min(CHUNKS_AT_ONCE, max(1, self.scheduler.waiting_count // max(1, len(self.scheduler.running))))
        for run in self.scheduler.runs():
            assert run.tokens <= left
            left -= run.tokens
            self.runs.append(run)
            for copy in run.copies:
                self.cache[copy.target, : copy.length] = self.cache[copy.source, : copy.length]
            rows = [sequence.row for sequence in run.sequences]
            assert rows == list(range(rows[0], rows[0] + len(rows)))
            assert rows[0] >= len(self.scheduler.running)
            for sequence in run.sequences:
                self.read_piece(sequence, run)
            if run.is_last:
                for sequence in run.sequences:
                    self.starts.append(sequence)
                    if move := self.scheduler.promote(sequence):
                        self.cache[move.target] = self.cache[move.source]
            self.check()

    def read_piece(self, sequence, run):
        assert sequence.read == run.start
        end = min(run.end, len(sequence.prompt))
        self.cache[sequence.row, run.start : run.end] = -1  # what fills a shorter prompt up
        self.cache[sequence.row, run.start : end] = sequence.prompt[run.start : end]
        sequence.read = end

    def remove(self, sequence):
        if move := self.scheduler.remove(sequence, 1.0):
            kept = self.cache[move.target, : move.keeps].copy()
            self.cache[move.target] = self.cache[move.source]
            self.cache[move.source] = -1
            self.cache[move.source, : move.keeps] = kept
        self.check()

    def check(self):
        running = self.scheduler.running
        assert [sequence.row for sequence in running] == list(range(len(running)))
        assert self.scheduler.running_count <= len(self.cache)
        for sequence in running:
            assert self.cache[sequence.row, : len(sequence.prompt)].tolist() == sequence.prompt.tolist()
        for sequence in self.scheduler.reading:
            assert self.cache[sequence.row, : sequence.read].tolist() == sequence.prompt[: sequence.read].tolist()

    def finish(self):
        while self.scheduler.has_work:
            self.read()
            for sequence in list(self.scheduler.running):
                self.remove(sequence)


PROMPTS = st.tuples(st.integers(0, 2), st.integers(0, 60), st.integers(0, 2), st.integers(1, 60)).map(
    lambda parts: ([parts[0]] * parts[1] + [parts[2]] * parts[3])[:60]
)


@settings(max_examples=100)
@given(st.data())
def test_each_row_begins_with_its_prompt_under_any_schedule(data):
    rows, alive = Rows(), []
    for number in range(40):
        match data.draw(st.sampled_from(["add", "add", "read", "remove"])):
            case "add":
                sequence = Stub(number, data.draw(PROMPTS), data.draw(st.integers(-1, 1)))
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


def test_what_a_running_row_begins_with_is_copied_and_not_read():
    rows = Rows()
    rows.add(Stub(0, range(40)))
    rows.add(Stub(1, [*range(30), 99, 98]))
    rows.read()
    assert [(run.start, run.end) for run in rows.runs] == [(0, 40), (30, 32)]
    assert rows.runs[1].sequences[0].reused == 30


def test_what_a_finished_row_held_is_found_again_after_others_had_its_place():
    rows = Rows()
    for number in (1, 2, 3):
        rows.add(distinct(number, 20))
        rows.finish()
    rows.add(again := distinct(1, 25))
    rows.finish()
    assert again.reused == 20


def test_nothing_is_saved_in_rows_that_are_about_to_be_filled():
    rows = Rows()
    for number in range(2):  # the first two rows hold prompts that are over
        rows.add(distinct(number, 20))
    rows.finish()
    rows.runs.clear()
    for number in range(2, 2 + SLOTS):
        rows.add(distinct(number, 20))
    rows.read()
    assert [run.copies for run in rows.runs] == [()] * len(rows.runs)


def test_one_token_of_a_prompt_is_always_read():
    rows = Rows()
    rows.add(Stub(0, range(30)))
    rows.finish()
    rows.add(again := Stub(1, range(30)))
    rows.finish()
    assert again.reused == 29


def test_few_common_tokens_are_read_again():
    rows = Rows()
    rows.add(Stub(0, range(40)))
    rows.finish()
    rows.add(other := Stub(1, [*range(LEAST - 1), *[99] * 20]))
    rows.finish()
    assert other.reused == 0


def test_prompts_that_begin_alike_are_read_one_after_another_so_that_the_rest_can_be_copied():
    rows = Rows()
    for number in range(3):
        rows.add(Stub(number, [*range(20), number, number]))
    rows.read()
    assert [[one.number for one in run.sequences] for run in rows.runs] == [[0], [1], [2]]
    assert [run.start for run in rows.runs] == [0, 20, 20]


def test_first_come_first_served_within_a_priority():
    rows = Rows(slots=1)
    for number, priority in enumerate((0, 1, 0, 1, -1)):
        rows.add(distinct(number, 20, priority))
    rows.finish()
    assert [sequence.number for sequence in rows.starts] == [1, 3, 0, 2, 4]


def test_waiting_makes_up_for_priority():
    rows = Rows(slots=1)
    rows.add(important := distinct(0, 20, priority=5))
    rows.add(patient := distinct(1, 20))
    rows.scheduler.remove(patient, 1.0)
    patient.arrival_s = important.arrival_s - 6 * AGEING_S
    rows.add(patient)
    rows.finish()
    assert [sequence.number for sequence in rows.starts] == [1, 0]


def test_short_prompts_are_read_together_up_to_one_chunk():
    rows = Rows()
    for number in range(4):
        rows.add(distinct(number, 15))
    rows.read()
    assert [[one.number for one in run.sequences] for run in rows.runs] == [[0, 1, 2], [3]]


def test_more_is_read_at_once_the_more_wait_for_each_that_would_have_to_wait():
    rows = Rows(slots=40)
    for number in range(6):
        rows.add(distinct(number, CHUNK))
    rows.read()
    assert len(rows.runs) == CHUNKS_AT_ONCE
    rows.read()  # four decode now, two wait
    assert len(rows.runs) == CHUNKS_AT_ONCE + 1


def test_a_short_prompt_is_not_filled_up_to_a_much_longer_one():
    rows = Rows()
    for number, length in enumerate((20, 1, 1)):
        rows.add(distinct(number, length))
    rows.read()
    assert [[one.number for one in run.sequences] for run in rows.runs] == [[0, 1], [2]]


def test_a_full_queue_says_when_to_come_back_by_how_long_slots_are_held():
    scheduler = Scheduler(slots=1, waiting_limit=1, wait_limit_s=PATIENCE_S, chunk_tokens=CHUNK)
    scheduler.add(Stub(0, [1]))
    with pytest.raises(ResourceExhausted) as caught:
        scheduler.add(Stub(1, [1]))
    assert 0.05 <= caught.value.retry_after_s <= 60


def test_no_more_may_wait_than_have_their_turn_in_time():
    scheduler = Scheduler(slots=2, waiting_limit=9, wait_limit_s=10, chunk_tokens=CHUNK)
    scheduler.add(slow := distinct(0, 8))
    for run in scheduler.runs():
        scheduler.promote(*run.sequences)
    scheduler.remove(slow, slow.start_s + 5)  # two slots, held for 5 s each: four have their turn within 10 s
    for number in range(4):
        scheduler.add(distinct(number, 8))
    with pytest.raises(ResourceExhausted) as caught:
        scheduler.require_room()
    assert (caught.value.metadata["waiting"], caught.value.retry_after_s) == ("4", 5)


def test_as_many_as_there_are_slots_may_wait_however_long_these_are_held():
    scheduler = Scheduler(slots=2, waiting_limit=9, wait_limit_s=10, chunk_tokens=CHUNK)
    scheduler.add(slow := distinct(0, 8))
    for run in scheduler.runs():
        scheduler.promote(*run.sequences)
    scheduler.remove(slow, slow.start_s + 3600)
    for number in range(2):
        scheduler.add(distinct(number, 8))
    with pytest.raises(ResourceExhausted):
        scheduler.add(distinct(2, 8))


def crowded(length):
    """All four slots taken, and as many prompts of that length waiting."""
    rows = Rows()
    for number in range(SLOTS):
        rows.add(distinct(number, 1))
    rows.read()
    for number in range(SLOTS):
        rows.add(distinct(SLOTS + number, length))
    rows.runs.clear()
    return rows


def test_while_more_wait_than_slots_are_free_prompts_are_read_together():
    rows = crowded(length=5)
    for ends, read in ((1, []), (1, []), (0, [2])):  # one, then two slots free: as many as a step of all four
        for sequence in rows.scheduler.running[:ends]:
            rows.remove(sequence)
        rows.read()
        assert [len(run.sequences) for run in rows.runs] == read


def test_a_single_free_slot_is_not_left_free_for_long():
    rows = crowded(length=5)
    rows.remove(rows.scheduler.running[0])
    steps = 1
    while not rows.runs:
        rows.read()
        steps += 1
    assert steps == SLOTS + 1


def test_nobody_waits_for_company_where_all_that_wait_find_a_slot():
    rows = crowded(length=5)
    for sequence in list(rows.scheduler)[2 * SLOTS - 3 :]:
        rows.remove(sequence)
    rows.remove(rows.scheduler.running[0])
    rows.read()
    assert [len(run.sequences) for run in rows.runs] == [1]


def test_long_prompts_that_would_be_read_alone_do_not_wait_for_company():
    rows = crowded(length=CHUNK // 2 + 1)
    rows.remove(rows.scheduler.running[0])
    rows.read()
    assert [len(run.sequences) for run in rows.runs] == [1]


def test_the_longest_wait_is_that_of_the_first_to_come_of_those_that_wait():
    scheduler = Scheduler(slots=1, waiting_limit=9, wait_limit_s=PATIENCE_S, chunk_tokens=8)
    assert scheduler.longest_wait_s() is None
    for number, waited_s in enumerate((300, 100, 200)):
        sequence = Stub(number, [number] * 4)
        sequence.arrival_s = perf_counter() - waited_s
        scheduler.add(sequence)
    assert 300 <= scheduler.longest_wait_s() < 400
    next(scheduler.runs())  # the first has its turn
    assert 200 <= scheduler.longest_wait_s() < 300
