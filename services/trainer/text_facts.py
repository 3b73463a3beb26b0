"""How much text there is to learn from, as far as it is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from services.trainer.corpus import CorpusFacts


@dataclass(frozen=True, kw_only=True)
class TextFacts:
    """How much text there is: tokens of the training and validation parts and the vocabulary that made them.

    `row_tokens` is the length that rows usually do not exceed; 0 for plain text. `size_bytes` and `lines` are 0 where
    nobody has counted.
    """

    train_tokens: int
    validation_tokens: int
    vocab_size: int
    row_tokens: int = 0
    size_bytes: int = 0
    lines: int = 0

    @classmethod
    def of(cls, facts: CorpusFacts) -> Self:
        """What was counted."""
        return cls(
            train_tokens=facts.train_tokens,
            validation_tokens=facts.validation_tokens,
            vocab_size=facts.vocab_size,
            row_tokens=facts.usual_row,
        )
