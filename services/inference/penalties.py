"""What a sequence's own past does to its next token: repetition, presence, frequency, a least length; and what its
caller biases.

Knows logits of one row; nothing of other rows, so that a row's company never matters.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Bender(Protocol):
    """Whatever changes one row's logits before its token is chosen."""

    def bend(self, logits: NDArray[np.float32]) -> None:
        """Changes the logits [vocab] of the next token, in place."""

    def note(self, token_id: int) -> None:
        """Is told the token that was chosen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bending:
    """How much. The values that change nothing are 1, 0, 0 and no bias.

    `repetition` divides positive logits, and multiplies negative ones, of tokens in prompt or completion (Keskar et
    al. 2019, "CTRL"); `presence` is subtracted once, `frequency` each time, for tokens of the completion.
    """

    repetition: float = 1.0
    presence: float = 0.0
    frequency: float = 0.0
    bias: Mapping[int, float] = field(default_factory=dict)

    @property
    def changes_nothing(self) -> bool:
        return (self.repetition, self.presence, self.frequency) == (1, 0, 0) and not self.bias


class Penalties:
    """One row's tokens so far, and what follows from them."""

    def __init__(self, bending: Bending, prompt: NDArray[np.int64], vocab_size: int) -> None:
        self._bending = bending
        self._counts = np.zeros(vocab_size, np.float32)
        self._is_seen = np.zeros(vocab_size, bool)
        self._is_seen[prompt] = True
        self._biased = np.array(sorted(bending.bias), np.int64)
        self._bias = np.array([bending.bias[token_id] for token_id in sorted(bending.bias)], np.float32)

    def bend(self, logits: NDArray[np.float32]) -> None:
        """Changes the logits [vocab] of the next token, in place."""
        bending = self._bending
        if bending.repetition != 1:
            seen = logits[self._is_seen]
            factor = np.float32(bending.repetition)
            logits[self._is_seen] = np.where(seen > 0, seen / factor, seen * factor)
        if bending.presence or bending.frequency:
            logits -= np.float32(bending.presence) * (self._counts > 0)
            logits -= np.float32(bending.frequency) * self._counts
        logits[self._biased] += self._bias

    def note(self, token_id: int) -> None:
        """Counts a token that was generated."""
        self._counts[token_id] += 1
        self._is_seen[token_id] = True


class LeastLength:
    """Excludes the tokens that would end a row before it has `count` tokens."""

    def __init__(self, count: int, endings: Collection[int]) -> None:
        self._missing = count
        self._endings = np.array(sorted(endings), np.int64)

    def bend(self, logits: NDArray[np.float32]) -> None:
        """Excludes them, in place, while tokens are missing."""
        if self._missing > 0:
            logits[self._endings] = -np.inf

    def note(self, token_id: int) -> None:
        """Counts a token that was generated."""
        self._missing -= 1
