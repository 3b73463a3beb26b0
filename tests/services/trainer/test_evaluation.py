"""An evaluation is one deterministic pass over every validation token."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from octavo.errors import FailedPrecondition
from octavo.formats.architecture import Architecture
from services.trainer.batches import IGNORED
from services.trainer.evaluation import evaluate, summarize, windows
from services.trainer.model import Transformer


def model() -> Transformer:
    shape = Architecture.derive("qwen3", vocab_size=11, context_length=16, width=32, layers=1, heads=2)
    transformer = Transformer(shape)
    transformer.initialize(5)
    generator = torch.Generator().manual_seed(1)
    for parameter in transformer.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return transformer


def text(length: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 11, length).astype(np.uint16)


@pytest.mark.parametrize("length", [2, 16, 17, 18, 333, 4097 + 16])
def test_it_is_the_mean_over_every_token_but_the_first(length: int) -> None:
    transformer, ids = model(), text(length)
    losses, right = [], 0
    for start in range(0, length - 1, 16):
        window = torch.from_numpy(ids[start : start + 17].astype(np.int64))
        logits = transformer(window[None, :-1])[0].double()
        losses += torch.nn.functional.cross_entropy(logits, window[1:], reduction="none").tolist()
        right += int((logits.argmax(-1) == window[1:]).sum())
    result = evaluate(transformer, ids, text_bytes=length)
    assert result.tokens == len(losses) == length - 1
    assert result.validation_loss == pytest.approx(math.fsum(losses) / len(losses), rel=1e-5)
    assert result.accuracy == pytest.approx(right / len(losses))
    assert result.perplexity == pytest.approx(math.exp(result.validation_loss))


def test_bits_per_byte_do_not_depend_on_the_tokenizer() -> None:
    by_character = summarize(100.0, 0, predicted=50, text_bytes=60)
    by_pair = summarize(100.0, 0, predicted=25, text_bytes=60)
    assert by_character.bits_per_byte == by_pair.bits_per_byte == pytest.approx(100 / math.log(2) / 60)
    assert by_character.validation_loss != by_pair.validation_loss


def test_a_second_pass_gives_the_same_bits() -> None:
    transformer, ids = model(), text(500)
    first, second = (evaluate(transformer, ids, text_bytes=500).validation_loss for _ in range(2))
    assert first == second


def test_windows_cover_the_text_once() -> None:
    inputs, targets = windows(np.arange(10), 4)
    assert inputs.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 0, 0, 0]]
    assert targets.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8], [9, IGNORED, IGNORED, IGNORED]]


def test_too_little_text_is_refused() -> None:
    with pytest.raises(FailedPrecondition, match="validation_fraction"):
        evaluate(model(), text(1), text_bytes=1)
