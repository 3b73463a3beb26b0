"""How good an exported graph is on held-out text: the protocol of evaluation.py, through the graph that is served.

Precisions are compared over the same tokens, so that a difference is theirs alone. Knows nothing of torch's model.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from octavo.formats.architecture import Architecture
from octavo.v1 import trainer_pb2 as pb
from services.trainer.evaluation import summarize
from services.trainer.graph_session import GraphSession

# Logits of a batch stay below 64 MB, whatever the vocabulary; more rows than this gain nothing on a CPU.
_LOGITS_AT_ONCE: Final = 1 << 24
_TOKENS_AT_ONCE: Final = 2048


def measure(
    session: GraphSession,
    architecture: Architecture,
    tokens: npt.NDArray[np.integer[Any]],
    *,
    text_bytes: int,
    heed: Callable[[], None],
) -> pb.Evaluation:
    """Loss, perplexity, bits per byte and accuracy over at least two `tokens` of `text_bytes` bytes of UTF-8.

    `heed` is called between batches.
    """
    start = time.perf_counter()
    length = min(architecture.context_length, len(tokens) - 1)
    ids = tokens.astype(np.int64)
    whole = (len(ids) - 1) // length
    inputs, targets = (part[: whole * length].reshape(whole, length) for part in (ids[:-1], ids[1:]))
    rows = max(1, min(_TOKENS_AT_ONCE, _LOGITS_AT_ONCE // architecture.vocab_size) // length)
    batches = [(inputs[at : at + rows], targets[at : at + rows]) for at in range(0, whole, rows)]
    rest = whole * length
    if rest < len(ids) - 1:
        batches.append((ids[None, rest:-1], ids[None, rest + 1 :]))
    nats, right = 0.0, 0
    for batch, wanted in batches:
        heed()
        session.reset(rows=len(batch))
        logits = session.feed_all(batch)
        nats += _nats(logits, wanted)
        right += int((logits.argmax(axis=-1) == wanted).sum())
    evaluation = summarize(nats, right, predicted=len(ids) - 1, text_bytes=text_bytes)
    evaluation.duration.FromNanoseconds(int((time.perf_counter() - start) * 1e9))
    return evaluation


def _nats(logits: npt.NDArray[np.float32], wanted: npt.NDArray[np.int64]) -> float:
    """The sum of the losses."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    chosen = np.take_along_axis(shifted, wanted[..., None], axis=-1)[..., 0]
    losses = np.log(np.exp(shifted).sum(axis=-1)) - chosen
    return float(losses.sum(dtype=np.float64))
