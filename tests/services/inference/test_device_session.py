"""The device's session over the processor's own memory: everything but the CUDA provider itself."""

import json

import numpy as np
import pytest

from octavo.formats.architecture import Architecture
from services.inference.device import Device
from services.inference.device_graph import DeviceGraph
from services.inference.device_session import DeviceSession

FAMILIES = ("gpt2", "llama", "qwen3")
CONTEXT = 96


@pytest.fixture
def device_session_over():
    """Opens a bundle's session in the processor's memory."""

    def session(directory, slots=4, **options):
        architecture = Architecture.from_config(json.loads((directory / "config.json").read_text()))
        graph = DeviceGraph(directory / "model.onnx", architecture, Device())
        return DeviceSession(graph, graph.new_cache(slots=slots, capacity=CONTEXT), **options)

    return session


def prompts_of(*counts):
    return [np.arange(n, dtype=np.int64) * 7 % 60 for n in counts]


def transcribe(session, prompts, steps, chunk=16):
    """The bytes of all logits, row by row, while rows end one after another and the last one takes the gap's place."""
    rows = list(range(len(prompts)))
    seen = {row: [] for row in rows}
    for row, prompt in enumerate(prompts):
        for start in range(0, len(prompt), chunk):
            logits = session.prefill(row, prompt[start : start + chunk], start)
        seen[row].append(logits[0].tobytes())
        session.place(row, int(logits[0].argmax()), len(prompt))
    for step in range(steps):
        logits = np.array(session.decode(len(rows)))
        for place, row in enumerate(rows):
            seen[row].append(logits[place].tobytes())
        session.advance(len(rows), logits.argmax(axis=1))
        if step % 3 == 2 and len(rows) > 1:
            last = rows.pop()
            if step % 2:
                session.move(len(rows), 0)
                rows[0] = last
    return seen


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("options", [{}, {"is_invariant": True}, {"ahead": True}])
def test_it_computes_what_the_session_computes_bit_for_bit(family, options, bundles, session_over, device_session_over):
    prompts = prompts_of(1, 5, 17, 33, 8, 2)
    expected = transcribe(session_over(bundles(family), slots=7), prompts, 20)

    assert transcribe(device_session_over(bundles(family), slots=7, **options), prompts, 20) == expected


def test_batches_are_powers_of_two_or_all_slots(bundles, device_session_over):
    session = device_session_over(bundles(), slots=6)
    assert [session.batch(count) for count in range(1, 7)] == [1, 2, 4, 4, 6, 6]
    assert device_session_over(bundles(), slots=6, is_invariant=True).batch(2) == 6


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_fill_a_batch_change_nothing_that_others_read(family, bundles, device_session_over):
    """Row 3 is half read while rows 0 to 2 decode in a batch of four."""
    session = device_session_over(bundles(family))
    first, second = prompts_of(20)[0][:10], prompts_of(20)[0][10:]
    session.prefill(3, first, 0)
    expected = session.prefill(3, second, 10).tobytes()

    session.prefill(3, first, 0)
    for row in range(3):
        session.prefill(row, prompts_of(5)[0], 0)
        session.place(row, 1, 5)
    for _ in range(4):
        logits = np.array(session.decode(3))
        session.advance(3, logits.argmax(axis=1))

    assert session.prefill(3, second, 10).tobytes() == expected


def test_a_row_alone_gives_the_bits_of_the_batch(bundles, device_session_over):
    session = device_session_over(bundles("qwen3"))
    for row, prompt in enumerate(prompts_of(3, 9, 4)):
        session.prefill(row, prompt, 0)
        session.place(row, 2, len(prompt))
    together = np.array(session.decode(3))
    assert [session.decode_row(row)[0].tobytes() for row in range(3)] == [row.tobytes() for row in together]


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_read_together_give_the_same_bits_as_alone(family, bundles, device_session_over):
    session = device_session_over(bundles(family), slots=5)
    prompts = prompts_of(9, 1, 30, 2)
    alone = [session.prefill(0, prompt, 0).tobytes() for prompt in prompts]
    assert [row.tobytes() for row in session.prefill_together(1, prompts)] == alone


def test_a_row_may_be_filled_but_for_its_last_position(bundles, session_over, device_session_over):
    """Texts end there: the token at the last position is never fed. A batch's filling goes there instead."""
    prompt = prompts_of(CONTEXT - 3)[0]
    expected = transcribe(session_over(bundles()), [prompt, *prompts_of(1, 2)], 2, chunk=CONTEXT)
    assert transcribe(device_session_over(bundles()), [prompt, *prompts_of(1, 2)], 2, chunk=CONTEXT) == expected


def test_a_step_begun_ahead_is_repeated_where_rows_have_changed(bundles, device_session_over):
    session = device_session_over(bundles(), ahead=True)
    plain = device_session_over(bundles())
    for one in (session, plain):
        for row, prompt in enumerate(prompts_of(3, 4)):
            one.prefill(row, prompt, 0)
            one.place(row, 5, len(prompt))
        logits = np.array(one.decode(2))
        one.stepped(logits.argmax(axis=1))  # as a chooser on the device would, which has written them itself
        one.arrays.token_ids.write(np.append(logits.argmax(axis=1), [0, 0]))
        one.arrays.positions.write(one.positions + (np.arange(4) < 2)[:, None])
        one.arrays.lengths.write(one.lengths + (np.arange(4) < 2).astype(np.int32))
        one.advance(2, logits.argmax(axis=1))
    session.place(1, 9, 3)
    plain.place(1, 9, 3)
    assert np.array(session.decode(2)).tobytes() == np.array(plain.decode(2)).tobytes()


def test_sessions_over_one_graph_never_share_a_capture(bundles, device_session_over):
    """A replay reads and writes where its capture did, whoever asks for it."""
    session = device_session_over(bundles())
    other = DeviceSession(session._graph, session._graph.new_cache(slots=4, capacity=CONTEXT))
    eager = DeviceSession(session._graph, session._graph.new_cache(slots=4, capacity=CONTEXT), replays=False)
    numbers = [one.number(count) for one in (session, other) for count in (1, 2, 3)]
    assert len(set(numbers)) == 6
    assert min(numbers) > 0
    assert [session.number(count) for count in (1, 2, 3, 4)] == [*numbers[:3], numbers[2]]
    assert eager.number(2) < 0


def test_logits_that_were_overwritten_are_told(bundles, device_session_over):
    session = device_session_over(bundles())
    session.prefill(0, prompts_of(3)[0], 0)
    session.place(0, 1, 3)
    logits = session.decode(1)
    session.decode_row(0)
    with pytest.raises(RuntimeError, match="overwritten"):
        logits[0]


def test_a_row_that_is_not_there_is_not_fetched(bundles, device_session_over):
    session = device_session_over(bundles())
    session.prefill(0, prompts_of(3)[0], 0)
    session.place(0, 1, 3)
    with pytest.raises(IndexError):
        session.decode(1)[1]
