"""How good a model is on the validation part: every token of it, once, always the same way.

Protocol: the text is cut into windows of the context length that do not overlap, the last one as long as it comes
out; each token but the very first is predicted once, from those before it in its window. The mean context is that
of random windows, so the figure compares with the usual estimates from random batches, without their noise.
Sliding windows would score better and are not used. Of rows, each token that is learnt is predicted once, from those
before it in its row.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from octavo.errors import FailedPrecondition
from octavo.v1 import trainer_pb2 as pb
from octavo.v1.errors_pb2 import Reason
from services.trainer.batches import IGNORED, Batch
from services.trainer.model import Transformer
from services.trainer.packed_batches import Packs
from services.trainer.token_rows import Examples

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


def evaluate(
    model: Transformer,
    data: npt.NDArray[np.integer[Any]] | Examples,
    *,
    text_bytes: int,
    dtype: torch.dtype = torch.float32,
) -> pb.Evaluation:
    """Loss, perplexity, bits per byte and accuracy over a text or rows, of whose targets the text has `text_bytes`.

    FailedPrecondition when a text has fewer than two tokens. Leaves `step` and `training_loss` to the caller.
    """
    start = time.perf_counter()
    length = model.architecture.context_length
    batches = _row_batches(data, length) if isinstance(data, Examples) else _text_batches(data, length)
    sums = _Sums(model.embedding.device)
    for batch in batches:
        sums.add(model, batch.to(model.embedding.device), dtype)
    evaluation = summarize(sums.nats.item(), int(sums.right), predicted=sums.predicted, text_bytes=text_bytes)
    if isinstance(data, Examples):
        evaluation.rows = len(data)
        if data.are_rows:
            evaluation.exact_match = 1 - int(sums.wrong_rows) / len(data)
    evaluation.duration.FromNanoseconds(int((time.perf_counter() - start) * 1e9))
    return evaluation


class _Sums:
    """What is added up over the batches of an evaluation, on the device."""

    def __init__(self, device: torch.device) -> None:
        self.nats = torch.zeros((), dtype=torch.float64, device=device)
        self.right = torch.zeros((), dtype=torch.int64, device=device)
        self.wrong_rows = torch.zeros((), dtype=torch.int64, device=device)
        self.predicted = 0

    @torch.inference_mode()
    def add(self, model: Transformer, batch: Batch, dtype: torch.dtype) -> None:
        logits = model(batch.tokens, positions=batch.positions, dtype=dtype).float()
        self.nats += torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORED, reduction="sum"
        )
        is_right = logits.argmax(-1) == batch.targets
        self.right += is_right.sum()
        self.predicted += batch.target_count
        if batch.positions is not None:
            self.wrong_rows += _wrong_rows(~is_right & (batch.targets != IGNORED), batch.positions)


def _wrong_rows(is_wrong: Tensor, positions: Tensor) -> Tensor:
    """How many rows of packed sequences have a token that is wrong."""
    rows = (positions == 0).flatten().cumsum(0) - 1
    wrong_tokens = torch.zeros(rows.numel(), dtype=torch.int64, device=rows.device)
    return (wrong_tokens.index_add_(0, rows, is_wrong.flatten().long()) > 0).sum()


def _text_batches(tokens: npt.NDArray[np.integer[Any]], context_length: int) -> Iterator[Batch]:
    if len(tokens) < 2:
        raise FailedPrecondition(
            Reason.REASON_CORPUS_UNUSABLE,
            "the validation part has fewer than two tokens; give more text or a larger validation_fraction",
            tokens=len(tokens),
        )
    length = min(context_length, len(tokens) - 1)
    at_once = max(1, _TOKENS_PER_BATCH // length) * length
    for at in range(0, len(tokens) - 1, at_once):
        part = tokens[at : at + at_once + 1]
        inputs, targets = windows(part, length)
        yield Batch(tokens=inputs, targets=targets, target_count=len(part) - 1)


def _row_batches(examples: Examples, context_length: int) -> Iterator[Batch]:
    packs = Packs(examples, context_length=context_length, seed=0, is_packing=True)
    at_once = max(1, _TOKENS_PER_BATCH // context_length)
    for at in range(0, len(packs), at_once):
        yield packs.batch(range(at, min(len(packs), at + at_once)))


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
