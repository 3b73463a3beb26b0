"""How good a model is on the validation part: every token of it, once, always the same way.

Protocol: the text is cut into windows of the context length that do not overlap, the last one as long as it comes
out; each token but the very first is predicted once, from those before it in its window. The mean context is that
of random windows, so the figure compares with the usual estimates from random batches, without their noise.
Sliding windows would score better and are not used.
"""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from octavo.errors import FailedPrecondition
from octavo.v1 import trainer_pb2 as pb
from octavo.v1.errors_pb2 import Reason
from services.trainer.model import IGNORED, Transformer

# Enough to keep two cores busy, small enough that logits of a 50,000-token vocabulary stay below 1 GB.
_TOKENS_PER_BATCH = 4096


def windows(tokens: npt.NDArray[np.integer[Any]], length: int) -> tuple[Tensor, Tensor]:
    """All windows as tokens and targets, int64 [n, length]; what the last lacks is 0 and IGNORED."""
    count = math.ceil((len(tokens) - 1) / length)
    inputs = np.zeros(count * length, dtype=np.int64)
    targets = np.full(count * length, IGNORED, dtype=np.int64)
    inputs[: len(tokens) - 1] = tokens[:-1]
    targets[: len(tokens) - 1] = tokens[1:]
    return (torch.from_numpy(x.reshape(count, length)) for x in (inputs, targets))  # type: ignore[return-value]


@torch.inference_mode()
def evaluate(
    model: Transformer,
    tokens: npt.NDArray[np.integer[Any]],
    *,
    text_bytes: int,
    dtype: torch.dtype = torch.float32,
) -> pb.Evaluation:
    """Loss, perplexity, bits per byte and accuracy over `tokens`, which encode `text_bytes` bytes of UTF-8.

    FailedPrecondition when there are fewer than two tokens. Leaves `step` and `training_loss` to the caller.
    """
    if len(tokens) < 2:
        raise FailedPrecondition(
            Reason.REASON_CORPUS_UNUSABLE,
            "the validation part has fewer than two tokens; give more text or a larger validation_fraction",
            tokens=len(tokens),
        )
    start = time.perf_counter()
    device = model.embedding.device
    length = min(model.architecture.context_length, len(tokens) - 1)
    inputs, targets = windows(tokens, length)
    total = torch.zeros((), dtype=torch.float64, device=device)
    right = torch.zeros((), dtype=torch.int64, device=device)
    rows = max(1, _TOKENS_PER_BATCH // length)
    for chunk, wanted in zip(torch.split(inputs, rows), torch.split(targets, rows), strict=True):
        expected = wanted.to(device)
        logits = model(chunk.to(device), dtype=dtype).float()
        total += torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), expected.flatten(), ignore_index=IGNORED, reduction="sum"
        )
        right += (logits.argmax(-1) == expected).sum()
    evaluation = summarize(total.item(), int(right), predicted=len(tokens) - 1, text_bytes=text_bytes)
    evaluation.duration.FromNanoseconds(int((time.perf_counter() - start) * 1e9))
    return evaluation


def summarize(total_nats: float, right: int, *, predicted: int, text_bytes: int) -> pb.Evaluation:
    """The figures that follow from a sum of losses over `predicted` tokens."""
    loss = total_nats / predicted
    return pb.Evaluation(
        validation_loss=loss,
        # Beyond e^700 a double overflows; such a model has diverged, whatever the digits.
        perplexity=math.exp(min(loss, 700.0)),
        bits_per_byte=total_nats / math.log(2) / max(1, text_bytes),
        accuracy=right / predicted,
        tokens=predicted,
    )
