"""The device's sampler over the processor's own memory, beside the sampler it stands for."""

import json

import numpy as np
import pytest

from octavo.formats.architecture import Architecture
from services.inference.device import Device
from services.inference.device_graph import DeviceGraph
from services.inference.device_sampler import AHEAD, DeviceSampler
from services.inference.device_session import DeviceSession
from services.inference.penalties import Bending, Penalties
from services.inference.sampler import Sampler, Sampling

CONTEXT = 96
SAMPLINGS = [
    Sampling(seed=1),
    Sampling(temperature=0),
    Sampling(temperature=0.7, top_k=5, seed=2),
    Sampling(temperature=1.3, top_p=0.8, seed=3),
    Sampling(min_p=0.1, seed=2**63),
    Sampling(temperature=2.0, seed=7, bending=Bending(repetition=1.5, frequency=0.5)),
]


@pytest.fixture
def device_session(bundles):
    directory = bundles("qwen3")
    architecture = Architecture.from_config(json.loads((directory / "config.json").read_text()))
    graph = DeviceGraph(directory / "model.onnx", architecture, Device())

    def session(slots=6, **options):
        return DeviceSession(graph, graph.new_cache(slots=slots, capacity=CONTEXT), **options)

    return session


def transcribe(session, sampler, samplings, steps):
    """The tokens of sequences that start one after another; the first one leaves in between."""
    texts, running = [[] for _ in samplings], []

    def begin(number):
        row = len(running)
        prompt = np.arange(2 + number, dtype=np.int64)
        logits = session.prefill(row, prompt, 0)
        bending = samplings[number].bending
        benders = [] if bending.changes_nothing else [Penalties(bending, prompt, session.vocab_size)]
        sampler.place(row, samplings[number], CONTEXT, benders)
        texts[number].append(int(sampler.sample(logits, row)[0]))
        session.place(row, texts[number][-1], len(prompt))
        running.append(number)

    for step in range(steps):
        if step % 2 == 0 and step // 2 < len(samplings):
            begin(step // 2)
        if step == 2 * len(samplings) and len(running) > 1:
            session.move(len(running) - 1, 0)
            sampler.move(len(running) - 1, 0)
            running[0] = running.pop()
        logits = session.decode(len(running))
        tokens = sampler.sample(logits)
        session.advance(len(running), tokens)
        for row, number in enumerate(running):
            texts[number].append(int(tokens[row]))
    return texts


@pytest.mark.parametrize("options", [{}, {"is_invariant": True}, {"ahead": True}])
def test_texts_are_those_of_the_host_whatever_comes_and_goes(options, bundles, session_over, device_session):
    host = session_over(bundles("qwen3"), slots=6)
    expected = transcribe(host, Sampler(slots=6, capacity=CONTEXT), SAMPLINGS, 60)

    session = device_session(**options)
    sampler = DeviceSampler(session, Sampler(slots=6, capacity=CONTEXT))
    assert transcribe(session, sampler, SAMPLINGS, 60) == expected


def test_a_stream_goes_on_behind_the_numbers_that_were_given_ahead(bundles, session_over, device_session):
    """Eighty steps of one row: more than one block of numbers."""
    samplings = [Sampling(seed=5)]
    expected = transcribe(session_over(bundles("qwen3"), slots=6), Sampler(slots=6, capacity=CONTEXT), samplings, 80)
    session = device_session()
    assert AHEAD < 80
    assert transcribe(session, DeviceSampler(session, Sampler(slots=6, capacity=CONTEXT)), samplings, 80) == expected


def test_steps_cross_to_the_device_only_where_rows_change(device_session):
    """Once the device has chosen, its own copies of the inputs are those of the next step."""
    session = device_session()
    sampler = DeviceSampler(session, Sampler(slots=6, capacity=CONTEXT))
    session.place(0, 3, 0)
    session.prefill(0, np.arange(4), 0)
    session.place(0, 3, 4)
    sampler.place(0, Sampling(seed=1), CONTEXT)
    written = []
    for name in ("token_ids", "positions", "lengths", "strides"):
        array = getattr(session.arrays, name)
        array.write = lambda values, name=name, write=array.write: (written.append(name), write(values))
    for _ in range(10):
        session.advance(1, sampler.sample(session.decode(1)))
    assert written == ["token_ids", "positions", "lengths", "strides"]
    assert session.lengths[0] == 14
    assert session.arrays.lengths.read().view(np.int32)[0, 0] == 14
    assert session.arrays.lengths.read().view(np.int32)[1:].sum() == 0


def test_more_candidates_than_the_device_looks_at_are_the_hosts(device_session):
    """A flat distribution over the whole vocabulary, whose share of 0.9 the device may not reach."""
    session = device_session()
    samplings = [Sampling(top_p=0.9, seed=seed) for seed in range(3)]
    device, host = DeviceSampler(session, Sampler(slots=6, capacity=9)), Sampler(slots=6, capacity=9)
    for sampler in (device, host):
        for row, sampling in enumerate(samplings):
            sampler.place(row, sampling, 9)
    logits = np.zeros((3, session.vocab_size), np.float32)
    assert device.sample(logits).tolist() == host.sample(logits).tolist()
