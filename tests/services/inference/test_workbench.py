"""Where versions compute: an engine over the device's session, and versions in 16 bits without a device."""

import asyncio
import json
import logging
import shutil

import numpy as np
import pytest

from octavo.errors import FailedPrecondition
from octavo.formats.architecture import Architecture
from octavo.v1.deployments_pb2 import Precision
from octavo.v1.inference_pb2 import GenerationParameters
from services.inference.device import Device, choose
from services.inference.engine import Engine
from services.inference.loader import Loader
from services.inference.outbox import Courier, Outbox
from services.inference.penalties import Bending
from services.inference.sampler import Sampling
from services.inference.scheduler import Scheduler
from services.inference.served_model import Key
from services.inference.settings import InferenceSettings
from services.inference.workbench import Workshop
from services.trainer.half_model import write_half

CONTEXT = 96
SAMPLINGS = (
    Sampling(temperature=0),
    Sampling(seed=1),
    Sampling(temperature=0.7, top_k=5, seed=2),
    Sampling(temperature=1.3, top_p=0.8, seed=3),
    Sampling(seed=4, bending=Bending(repetition=1.2, presence=0.5)),
)


def workbench(directory, kind, **settings):
    architecture = Architecture.from_config(json.loads((directory / "config.json").read_text()))
    settings = InferenceSettings(threads=1, chunk_tokens=16, **settings)
    workshop = Workshop(settings, capacity=CONTEXT, slots=lambda row_bytes: 6)
    path = directory / "model.onnx"
    return (
        workshop.on_processor(path, architecture)
        if kind == "processor"
        else workshop.on_device(path, architecture, Device())
    )


async def completions(model, bench, count=24):
    """Tokens and log-probabilities of requests that begin alike and come a few at a time, through an engine."""
    engine = Engine(
        session=bench.session,
        scheduler=Scheduler(slots=6, waiting_limit=64, wait_limit_s=60, chunk_tokens=16),
        sampler=bench.sampler,
        courier=Courier(asyncio.get_running_loop()),
        messages_per_s=500,
        name="test",
        logger=logging.getLogger("octavo.test"),
    )
    sequences = []
    for number in range(count):
        prompt = [number % 2] * (number % 3 * 17) + [number + 1, number * 5 % 60]
        parameters = GenerationParameters(
            max_tokens=3 + number % 7, ignore_eos=True, logprobs=2 if number % 4 == 0 else None
        )
        sampling = SAMPLINGS[number % len(SAMPLINGS)]
        outbox = Outbox(is_streaming=False)
        sequences.append(
            model.sequence(np.array(prompt, np.int64), parameters, sampling, outbox, priority=0, deadline_s=None)
        )
    for start in range(0, count, 5):
        for sequence in sequences[start : start + 5]:
            engine.submit(sequence)
        for _ in range(3):
            engine.step()
    while engine.scheduler.has_work:
        engine.step()
    return [(sequence.token_ids, sequence.scores) for sequence in sequences]


@pytest.mark.parametrize("settings", [{}, {"device_invariant": True}, {"device_ahead": True}])
async def test_an_engine_says_the_same_over_either_session(settings, bundles, load):
    directory = bundles("qwen3")
    model = await load(directory)
    expected = await completions(model, workbench(directory, "processor"))
    assert await completions(model, workbench(directory, "device", **settings)) == expected


async def test_scores_are_the_same_over_either_graph(bundles):
    texts = [np.arange(n) * 7 % 60 for n in (5, 8, 40)]
    answers = []
    for kind in ("processor", "device"):
        session = workbench(bundles(), kind).score_session
        found = []
        for group in session.groups([len(text) for text in texts]):
            chosen = [texts[number] for number in group]
            readings = await session.work(
                lambda left, chosen=chosen, session=session: [
                    (reading.text, reading.start, reading.logits.tobytes(), reading.hidden.tobytes())
                    for reading in session.read(chosen, [0] * len(chosen), left)
                ]
            )
            found += readings
        answers.append(found)
    assert answers[0] == answers[1]


@pytest.mark.skipif(choose("cuda").device.kind == "cuda", reason="a CUDA device answers here")
@pytest.mark.parametrize("word", ["cpu", "auto"])
async def test_a_version_in_16_bits_is_refused_without_a_device_with_advice(word, bundles, tmp_path):
    directory = shutil.copytree(bundles(), tmp_path / "bundle")
    write_half(directory, "fp16")
    loader = Loader(InferenceSettings(), asyncio.get_running_loop(), logging.getLogger("octavo.test"), choose(word))
    with pytest.raises(
        FailedPrecondition, match=r"fp16 is for CUDA, and this server computes on the cpu.*fp32 or int8"
    ):
        await asyncio.to_thread(loader.load, directory, Key("models/poet/versions/1", Precision.PRECISION_FP16))


@pytest.mark.skipif(choose("cuda").device.kind == "cuda", reason="a CUDA device answers here")
@pytest.mark.parametrize(("word", "level"), [("auto", "INFO"), ("cuda:1", "WARNING"), ("cpu", None)])
async def test_a_server_without_a_device_says_why_once(word, level, open_suite, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        async with open_suite(tmp_path, device=word):
            pass
    said = [record for record in caplog.records if "everything computes on the cpu" in record.message]
    assert [record.levelname for record in said] == ([level] if level else [])
    assert all("cuda:" in record.message for record in said)


async def test_a_served_model_says_where_it_computes(bundles, load):
    assert (await load(bundles())).device == "cpu"
