"""Octavo as a contestant: the bare session loop, and the engine around it with scheduler, sampler and transcripts.

The worker that `peers/host.py` runs for us, and what `benchmarks.streaming` measures from within a server.
"""

import asyncio
import importlib.metadata
import logging
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime

from octavo.v1.deployments_pb2 import Precision
from octavo.v1.inference_pb2 import GenerationParameters
from services.inference.loader import Loader
from services.inference.outbox import Outbox
from services.inference.sampler import Sampling
from services.inference.served_model import Key, LoadedModel
from services.inference.settings import InferenceSettings

VERSION = "models/bench/versions/1"
GREEDY = Sampling(temperature=0)
SAMPLED = Sampling(temperature=0.8, top_k=40, seed=1)


def version() -> str:
    return f"{importlib.metadata.version('octavo')} on onnxruntime {onnxruntime.__version__}"


def key(precision: str) -> Key:
    """The bundle that is measured, under the name that it has everywhere here."""
    return Key(VERSION, Precision.Value(f"PRECISION_{precision.upper()}"))


def loaded(
    directory: Path, precision: str, settings: InferenceSettings, loop: asyncio.AbstractEventLoop
) -> LoadedModel:
    """The bundle as the inference server loads it, its engine running."""
    found = Loader(settings, loop, logging.getLogger("octavo.inference")).load(directory, key(precision))
    if not isinstance(found, LoadedModel):
        raise TypeError(f"{directory} holds no language model")
    return found


class Model:
    """A served model without a server around it. `layer` is what answers."""

    def __init__(
        self,
        directory: Path,
        *,
        precision: str,
        threads: int,
        sequences: int,
        layer: Literal["session", "engine"],
        **_: object,
    ) -> None:
        # A cache for the whole context of every sequence, as the peers get one.
        settings = InferenceSettings(port=0, threads=threads, slots=sequences, cache_limit_bytes=1 << 40)
        self._loop = asyncio.new_event_loop()
        self._loaded = loaded(directory, precision, settings, self._loop)
        self._layer = layer

    def generate(self, prompts: list[list[int]], new: int) -> list[list[int]]:
        if self._layer == "session":
            return session_completions(self._loaded, prompts, new)
        return self._loop.run_until_complete(engine_completions(self._loaded, prompts, new))


def session_completions(loaded: LoadedModel, prompts: list[list[int]], new: int) -> list[list[int]]:
    """Prompts of one length as many at a time as fit a chunk, then decode steps and argmax: the floor.

    Steps the session of an engine that has nothing to do.
    """
    session, sampler = loaded.engine._session, loaded.engine._sampler
    rows, length = len(prompts), len(prompts[0])
    ids = [np.array(prompt, np.int64) for prompt in prompts]
    together = max(1, InferenceSettings.chunk_tokens // length)
    starts = range(0, rows, together)
    firsts = [session.prefill_together(first, ids[first : first + together]).argmax(axis=1) for first in starts]
    steps = [np.concatenate(firsts)]
    for row, token_id in enumerate(steps[0].tolist()):
        session.place(row, token_id, length)
    for _ in range(new - 1):
        logits = session.decode(rows)
        # Logits on a device stay there: its sampler, greedy where nothing was placed, is the argmax.
        steps.append(logits.argmax(axis=1) if isinstance(logits, np.ndarray) else sampler.sample(logits))
        session.advance(rows, steps[-1])
    completions: list[list[int]] = np.stack(steps, axis=1).tolist()
    return completions


async def engine_completions(
    loaded: LoadedModel, prompts: list[list[int]], new: int, sampling: Sampling = GREEDY
) -> list[list[int]]:
    """All prompts at once, each answered in one delivery."""
    outboxes = []
    for prompt in prompts:
        outboxes.append(Outbox(is_streaming=False))
        parameters = GenerationParameters(max_tokens=new, ignore_eos=True)
        ids = np.array(prompt, np.int64)
        sequence = loaded.sequence(ids, parameters, sampling, outboxes[-1], priority=0, deadline_s=None)
        loaded.engine.submit(sequence)
    deliveries = [await outbox.take() for outbox in outboxes]
    for delivery in deliveries:
        if delivery.ending and delivery.ending.error:
            raise delivery.ending.error
    return [delivery.token_ids for delivery in deliveries]
