import asyncio
import random
from dataclasses import replace
from time import perf_counter

import numpy as np
import pytest

from octavo.errors import Cancelled, DataLoss, DeadlineExceeded, Internal, ResourceExhausted, Unavailable
from octavo.v1.errors_pb2 import Reason
from octavo.v1.inference_pb2 import FinishReason, GenerationParameters
from services.inference.outbox import Outbox
from services.inference.penalties import Bending
from services.inference.sampler import Sampling

SAMPLINGS = (
    Sampling(temperature=0),
    Sampling(temperature=1.0),
    Sampling(temperature=0.7, top_k=5),
    Sampling(temperature=1.3, top_p=0.8),
    Sampling(temperature=0.9, top_k=20, top_p=0.9, min_p=0.05),
    Sampling(temperature=0, bending=Bending(repetition=1.5)),
    Sampling(temperature=0.8, bending=Bending(presence=0.5, frequency=0.5, bias={3: 2.0})),
)
RULES = (
    {},
    {"structured_output": {"regex": "[A-F]{2,9}(, [0-9A-Z]+)*"}},
    {"structured_output": {"json_schema": '{"type": "array", "items": {"type": "integer"}, "maxItems": 4}'}},
    {"min_tokens": 3, "stop": ["A", "B"], "ignore_eos": False},
)


def submit(model, prompt, sampling, *, is_streaming=False, priority=0, deadline_s=None, **parameters):
    given = GenerationParameters(**parameters)
    sequence = model.sequence(
        np.array(prompt, np.int64),
        given,
        sampling,
        Outbox(is_streaming=is_streaming),
        form=model.forms.compile(given.structured_output) if "structured_output" in parameters else None,
        priority=priority,
        deadline_s=deadline_s,
    )
    model.engine.submit(sequence)
    return sequence


async def ended(sequence):
    """All that a reader gets: text, ids, ending."""
    text, token_ids = "", []
    while True:
        delivery = await asyncio.wait_for(sequence.outbox.take(), 30)
        text += delivery.text
        token_ids += delivery.token_ids
        if delivery.ending:
            return text, token_ids, delivery.ending


def requests(seed, count):
    """So many different requests, each a pure function of its number."""
    for number in range(count):
        dice = random.Random(f"{seed}-{number}")
        prompt = [dice.randrange(60) for _ in range(dice.choice((1, 2, 15, 16, 17, 40)))]
        sampling = replace(dice.choice(SAMPLINGS), seed=dice.getrandbits(64))
        limits = {"max_tokens": dice.randrange(1, 30), "ignore_eos": True}
        yield prompt, sampling, limits | dice.choice(RULES)


@pytest.mark.parametrize("family", ["gpt2", "qwen3"])
async def test_a_completion_is_the_same_alone_and_under_any_load_and_order(family, bundles, load):
    model = await load(bundles(family), slots=4)
    alone = [(await ended(submit(model, p, s, **kw)))[:2] for p, s, kw in requests("load", 24)]

    for schedule in range(4):
        dice = random.Random(schedule)
        order = list(enumerate(requests("load", 24)))
        dice.shuffle(order)
        running, strangers = {}, []
        for number, (prompt, sampling, kw) in order:
            running[number] = submit(
                model, prompt, sampling, is_streaming=dice.random() < 0.5, priority=dice.randrange(-3, 3), **kw
            )
            if dice.random() < 0.3:  # others come and go: their leaving moves rows
                strangers.append(submit(model, [3] * dice.randrange(1, 50), Sampling(seed=9), ignore_eos=True))
            if dice.random() < 0.5:
                await asyncio.sleep(dice.random() * 0.004)
            if strangers and dice.random() < 0.5:
                model.engine.cancel(strangers.pop(0))
        for number, sequence in running.items():
            assert (await ended(sequence))[:2] == alone[number]
        for stranger in strangers:
            model.engine.cancel(stranger)


async def test_chunks_of_a_prompt_are_cut_the_same_whatever_is_running(bundles, load):
    one, other = await load(bundles(), slots=1), await load(bundles(), slots=4, version="models/poet/versions/2")
    prompts = [[n % 60 for n in range(length)] for length in (16, 31, 32, 33, 64)]
    alone = [(await ended(submit(one, prompt, Sampling(temperature=0), max_tokens=8)))[1] for prompt in prompts]
    together = [submit(other, prompt, Sampling(temperature=0), max_tokens=8) for prompt in prompts]
    assert [(await ended(sequence))[1] for sequence in together] == alone


async def test_tokens_are_limited_by_the_request_and_by_the_context(bundles, load):
    model = await load(bundles())
    _, ids, ending = await ended(submit(model, [1] * 5, Sampling(temperature=0), max_tokens=7, ignore_eos=True))
    assert (len(ids), ending.finish_reason) == (7, FinishReason.FINISH_REASON_MAX_TOKENS)
    _, ids, ending = await ended(submit(model, [1] * 90, Sampling(temperature=0), ignore_eos=True))
    assert (len(ids), ending.finish_reason) == (6, FinishReason.FINISH_REASON_CONTEXT_FULL)
    _, ids, ending = await ended(submit(model, [1] * 95, Sampling(temperature=0), max_tokens=2, ignore_eos=True))
    assert (len(ids), ending.finish_reason) == (1, FinishReason.FINISH_REASON_CONTEXT_FULL)


async def test_a_stop_token_ends_the_text_and_is_not_part_of_it(bundles, load):
    model = await load(bundles())
    text, ids, _ = await ended(submit(model, [5], Sampling(seed=3), max_tokens=20, ignore_eos=True))
    stop = ids[10]
    first = ids.index(stop)
    cut, stopped, ending = await ended(submit(model, [5], Sampling(seed=3), max_tokens=20, stop_token_ids=[stop]))
    assert stopped == ids[: first + 1]
    assert ending.finish_reason == FinishReason.FINISH_REASON_STOP_TOKEN
    assert text.startswith(cut)
    assert len(cut) == first


async def test_a_stop_text_across_tokens_ends_the_text_before_it(bundles, load):
    model = await load(bundles())
    text, _, _ = await ended(submit(model, [5], Sampling(seed=4), max_tokens=40, ignore_eos=True))
    stop = text[12:15]
    for is_streaming in (False, True):
        sequence = submit(
            model, [5], Sampling(seed=4), max_tokens=40, stop=[stop], ignore_eos=True, is_streaming=is_streaming
        )
        cut, _, ending = await ended(sequence)
        assert cut == text[: text.index(stop)]
        assert (ending.finish_reason, ending.stop) == (FinishReason.FINISH_REASON_STOP_TEXT, stop)


async def test_a_cancelled_sequence_ends_at_once_and_its_neighbours_go_on(bundles, load):
    model = await load(bundles(), slots=2)
    alone = await ended(submit(model, [7], Sampling(seed=1), max_tokens=60, ignore_eos=True))
    leaving = submit(model, [8], Sampling(seed=2), ignore_eos=True, is_streaming=True)
    staying = submit(model, [7], Sampling(seed=1), max_tokens=60, ignore_eos=True)
    await leaving.outbox.take()
    model.engine.cancel(leaving)
    assert isinstance((await ended(leaving))[2].error, Cancelled)
    assert (await ended(staying))[:2] == alone[:2]
    assert model.engine.scheduler.running_count == 0


async def test_a_full_queue_refuses_and_says_when_to_come_back(bundles, load):
    model = await load(bundles(), slots=1, waiting_limit=2)
    sequences = [submit(model, [1], Sampling(seed=n), ignore_eos=True) for n in range(12)]
    endings = [(await ended(sequence))[2] for sequence in sequences]
    refused = [ending.error for ending in endings if ending.error]
    assert refused
    for error in refused:
        assert isinstance(error, ResourceExhausted)
        assert error.reason == Reason.REASON_QUEUE_FULL
        assert error.retry_after_s > 0
    assert len([ending for ending in endings if ending.error is None]) >= 2


async def test_a_passed_deadline_ends_what_waits_and_what_runs(bundles, load):
    model = await load(bundles(), slots=1)
    first = submit(model, [1], Sampling(seed=1), ignore_eos=True, deadline_s=perf_counter() - 1)
    assert isinstance((await ended(first))[2].error, DeadlineExceeded)


async def test_a_run_that_fails_ends_its_request_alone(bundles, load, monkeypatch):
    model = await load(bundles(), slots=4)
    session = model.engine._session
    alone = await ended(submit(model, [7, 7], Sampling(seed=1), max_tokens=50, ignore_eos=True))
    read, decode, decode_row = session._read, session.decode, session.decode_row
    poisoned = []

    def failing_read(row, pieces, start):
        if any(piece[0] == 13 for piece in pieces):
            raise RuntimeError("no")
        return read(row, pieces, start)

    def failing_decode(count):
        if poisoned:
            raise RuntimeError("the batch fails")
        return decode(count)

    def failing_row(row):
        if model.engine.scheduler.running[row] in poisoned:
            raise RuntimeError("this row fails")
        return decode_row(row)

    monkeypatch.setattr(session, "_read", failing_read)
    monkeypatch.setattr(session, "decode", failing_decode)
    monkeypatch.setattr(session, "decode_row", failing_row)
    bad_prompt = submit(model, [13], Sampling(seed=2), max_tokens=5)
    bad_row = submit(model, [9], Sampling(seed=3), ignore_eos=True, is_streaming=True)
    good = submit(model, [7, 7], Sampling(seed=1), max_tokens=50, ignore_eos=True)
    assert isinstance((await ended(bad_prompt))[2].error, Internal)
    await bad_row.outbox.take()
    poisoned.append(bad_row)
    assert isinstance((await ended(bad_row))[2].error, DataLoss)
    assert (await ended(good))[:2] == alone[:2]


async def test_an_engine_that_breaks_tells_everybody_and_takes_nothing_more(bundles, load, monkeypatch):
    model = await load(bundles(), slots=2)
    sequences = [submit(model, [n], Sampling(seed=n), ignore_eos=True) for n in range(5)]
    monkeypatch.setattr(model.engine, "_publish", lambda: 1 / 0)
    for sequence in sequences:
        error = (await ended(sequence))[2].error
        assert error is None or isinstance(error, Internal)
    await asyncio.to_thread(model.engine._thread.join)
    with pytest.raises(Unavailable):
        submit(model, [1], Sampling(seed=1))


async def test_stopping_ends_everything_with_unavailable(bundles, load):
    model = await load(bundles(), slots=1)
    sequences = [submit(model, [n], Sampling(seed=n), ignore_eos=True) for n in range(6)]
    await asyncio.to_thread(model.engine.stop)
    endings = [(await ended(sequence))[2] for sequence in sequences]
    assert all(ending.error is None or isinstance(ending.error, Unavailable) for ending in endings)
    assert isinstance(endings[-1].error, Unavailable)


async def test_higher_priority_goes_first_among_those_that_wait(bundles, load):
    model = await load(bundles(), slots=1)
    blocker = submit(model, [1], Sampling(seed=0), ignore_eos=True, is_streaming=True)
    await blocker.outbox.take()
    waiting = {
        priority: submit(model, [2], Sampling(seed=1), max_tokens=4, priority=priority) for priority in (0, 5, 2)
    }
    endings = {priority: (await ended(sequence))[2] for priority, sequence in waiting.items()}
    assert sorted(endings, key=lambda priority: endings[priority].start_s) == [5, 2, 0]


async def test_a_slow_reader_gets_the_same_text_in_fewer_pieces(bundles, load):
    model = await load(bundles(), slots=2)
    text, ids, _ = await ended(submit(model, [4], Sampling(seed=5), max_tokens=80, ignore_eos=True))
    sequence = submit(model, [4], Sampling(seed=5), max_tokens=80, ignore_eos=True, is_streaming=True)
    pieces = []
    ending = None
    while ending is None:
        delivery = await sequence.outbox.take()
        pieces.append(delivery)
        ending = delivery.ending
        await asyncio.sleep(0.05)
    assert "".join(piece.text for piece in pieces) == text
    assert [token_id for piece in pieces for token_id in piece.token_ids] == ids
    assert len(pieces) < 5
