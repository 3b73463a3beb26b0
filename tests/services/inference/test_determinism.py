"""A completion depends on its request alone: hundreds of random schedules, compared to the last bit."""

import asyncio
import random
from dataclasses import replace

import numpy as np
import pytest

from octavo.errors import Cancelled
from octavo.v1.deployments_pb2 import Precision
from octavo.v1.inference_pb2 import GenerationParameters
from services.inference.outbox import Outbox
from services.inference.penalties import Bending
from services.inference.sampler import Sampling

SAMPLINGS = (
    Sampling(temperature=0),
    Sampling(temperature=1.0),
    Sampling(temperature=0.7, top_k=5),
    Sampling(temperature=1.3, top_p=0.8),
    Sampling(temperature=0.9, top_k=20, top_p=0.9, min_p=0.05),
    Sampling(temperature=0.8, bending=Bending(repetition=1.2, presence=0.5, frequency=0.5, bias={3: 2.0})),
)
REQUESTS = 40
SCHEDULES = 16


class Driver:
    """An engine whose steps the test takes itself, one after another, so that a schedule is a pure function."""

    def __init__(self, model):
        self.model = model

    def submit(self, prompt, sampling, parameters, priority=0):
        sequence = self.model.sequence(
            np.array(prompt, np.int64),
            GenerationParameters(logprobs=2, ignore_eos=True, **parameters),
            sampling,
            Outbox(is_streaming=False),
            priority=priority,
            deadline_s=None,
        )
        self.model.engine.submit(sequence)
        return sequence

    async def step(self):
        if self.model.engine.scheduler.has_work or not self.model.engine._commands.empty():
            self.model.engine.step()
        await asyncio.sleep(0)

    async def finish(self):
        while self.model.engine.scheduler.has_work or not self.model.engine._commands.empty():
            await self.step()


@pytest.fixture
async def drive(load, monkeypatch):
    """Loads a bundle into an engine without a thread."""

    async def driver(directory, **settings):
        with monkeypatch.context() as patch:
            patch.setattr("services.inference.engine.Engine.start", lambda engine: None)
            return Driver(await load(directory, **settings))

    return driver


def requests():
    """Requests of all kinds, many of which begin alike; each is a pure function of its number."""
    for number in range(REQUESTS):
        dice = random.Random(f"request {number}")
        stem = [dice.randrange(3)] * dice.choice((0, 0, 17, 20, 33))
        prompt = stem + [dice.randrange(60) for _ in range(dice.choice((1, 2, 3, 15, 16, 17, 40)))]
        sampling = replace(dice.choice(SAMPLINGS), seed=dice.getrandbits(64))
        yield prompt, sampling, {"max_tokens": dice.randrange(1, 16)}


def fingerprint(sequence):
    """Tokens and exact log-probabilities, those of the best others too."""
    assert sequence.is_over
    return sequence.token_ids, [(score.log_probability, score.best) for score in sequence.scores]


async def alone(driver):
    """What each request gets of an engine that does nothing else and remembers nothing."""
    expected = []
    for request in requests():
        driver.model.engine.scheduler.prefixes.__init__(driver.model.engine.scheduler.slots)
        sequence = driver.submit(*request)
        await driver.finish()
        assert sequence.reused == 0
        expected.append(fingerprint(sequence))
    return expected


async def run_schedule(driver, dice):
    """All requests in a random order, at random moments, among strangers who come and leave."""
    order = list(enumerate(requests()))
    dice.shuffle(order)
    sequences, strangers = {}, []
    for number, request in order:
        sequences[number] = driver.submit(*request, priority=dice.randrange(-3, 3))
        if dice.random() < 0.3:
            stem = [dice.randrange(3)] * dice.choice((0, 18, 30))
            stranger = driver.submit([*stem, 7], Sampling(seed=9), {"max_tokens": 20})
            strangers.append(stranger)
        for _ in range(dice.choice((0, 0, 1, 3))):
            await driver.step()
        if strangers and dice.random() < 0.5:
            driver.model.engine.cancel(strangers.pop(dice.randrange(len(strangers))))
    await driver.finish()
    return sequences


@pytest.mark.parametrize(
    ("family", "word"), [("gpt2", "fp32"), ("qwen3", "fp32"), ("gpt2", "int8"), ("qwen3", "int8"), ("llama", "int4"),
                         ("gpt2", "int8_weights")]
)  # fmt: skip
async def test_the_same_bits_alone_and_in_any_company_order_and_cut_with_or_without_reuse(
    family, word, quantized, drive
):
    directory, precision = quantized(family), Precision.Value(f"PRECISION_{word.upper()}")
    expected = await alone(await drive(directory, precision=precision, slots=1, chunk_tokens=96))
    reused = 0
    for number, (slots, chunk_tokens) in enumerate([(5, 16), (2, 96), (9, 33)]):
        settings = {"slots": slots, "chunk_tokens": chunk_tokens, "waiting_limit": 1000}
        driver = await drive(directory, precision=precision, **settings)
        for schedule in range(SCHEDULES):
            sequences = await run_schedule(driver, random.Random(f"{number} {schedule}"))
            for request, sequence in sequences.items():
                assert fingerprint(sequence) == expected[request], (slots, chunk_tokens, schedule, request)
                reused += sequence.reused
    assert reused > 100 * SCHEDULES  # the schedules did take the short way where there was one


async def test_of_ten_thousand_requests_with_a_third_cancelled_every_slot_returns_and_nobody_is_changed(bundles, drive):
    driver = await drive(bundles(), slots=32, chunk_tokens=64, waiting_limit=10_000)
    kinds = [(prompt[:24], sampling, {"max_tokens": 1 + index % 5}) for index, (prompt, sampling, _) in
             enumerate(requests())]  # fmt: skip
    expected = []
    for kind in kinds:
        sequence = driver.submit(*kind)
        await driver.finish()
        expected.append(fingerprint(sequence))
    dice = random.Random(3)
    alive, sequences = [], []
    for number in range(10_000):
        sequences.append((number % len(kinds), driver.submit(*kinds[number % len(kinds)])))
        alive.append(sequences[-1][1])
        if number % 3 == 0:
            alive = [sequence for sequence in alive if not sequence.is_over]
            driver.model.engine.cancel(alive.pop(dice.randrange(len(alive))))
        if number % 12 == 0:
            await driver.step()
    await driver.finish()
    endings = [(kind, sequence, (await sequence.outbox.take()).ending) for kind, sequence in sequences]
    cancelled = [sequence for _, sequence, ending in endings if isinstance(ending.error, Cancelled)]
    finished = [(kind, sequence) for kind, sequence, ending in endings if ending.error is None]
    assert len(cancelled) + len(finished) == 10_000
    assert len(cancelled) == 3334
    for kind, sequence in finished:
        assert fingerprint(sequence) == expected[kind]
    scheduler = driver.model.engine.scheduler
    assert (scheduler.running_count, scheduler.waiting_count) == (0, 0)
    # And every slot still works: as many at once as there are.
    last = [driver.submit([1, 2], Sampling(temperature=0), {"max_tokens": 5}) for _ in range(32)]
    await driver.step()
    assert scheduler.running_count == 32
    await driver.finish()
    assert len({tuple(sequence.token_ids) for sequence in last}) == 1
