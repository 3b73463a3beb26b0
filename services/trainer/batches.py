"""Which windows of the token array make up a batch: a pure function of the seed and the step.

Resuming at step n needs no replay, and a fork sees the data its parent would have seen. Knows nothing of models.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from octavo.errors import FailedPrecondition
from octavo.v1.errors_pb2 import Reason

# Second words of the Philox key, so that no two uses of one seed share a stream.
_WINDOWS_STREAM = 1


class Batches:
    """Windows of `context_length` tokens with their successors as targets.

    Each epoch cuts the text at another phase and visits its windows in another order, so every token is seen once
    per epoch: less variance than independent offsets. Position i of the run lies in epoch i // windows.
    """

    def __init__(
        self, tokens: npt.NDArray[np.integer[Any]], *, context_length: int, batch_size: int, seed: int
    ) -> None:
        """`tokens` may be memory-mapped. FailedPrecondition when the text is shorter than one window."""
        if len(tokens) < context_length + 1:
            raise FailedPrecondition(
                Reason.REASON_CORPUS_UNUSABLE,
                f"the training text has {len(tokens)} tokens, fewer than one window of {context_length} and its "
                f"next token; give more text or a context_length of at most {max(1, len(tokens) - 1)}",
                tokens=len(tokens),
            )
        self._tokens = tokens
        self._length = context_length
        self._batch_size = batch_size
        self._seed = seed
        self.windows_per_epoch = max(1, (len(tokens) - context_length) // context_length)
        self._epoch = lru_cache(maxsize=2)(self._starts_of_epoch)

    def starts(self, step: int) -> npt.NDArray[np.int64]:
        """First tokens of the windows of optimizer step `step` (from 1)."""
        positions = np.arange((step - 1) * self._batch_size, step * self._batch_size)
        epochs, places = np.divmod(positions, self.windows_per_epoch)
        starts = np.empty(len(positions), dtype=np.int64)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            starts[chosen] = self._epoch(int(epoch))[places[chosen]]
        return starts

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Tokens and targets of a step, int64 [batch_size, context_length]."""
        windows = self._tokens[self.starts(step)[:, None] + np.arange(self._length + 1)]
        both = torch.from_numpy(windows.astype(np.int64))
        return both[:, :-1], both[:, 1:]

    def _starts_of_epoch(self, epoch: int) -> npt.NDArray[np.int64]:
        # Philox is counter-based: any epoch is reached without drawing those before (Salmon et al. 2011).
        stream = np.random.Generator(
            np.random.Philox(key=_words(self._seed & (1 << 64) - 1, _WINDOWS_STREAM), counter=_words(0, 0, epoch, 0))
        )
        slack = len(self._tokens) - 1 - self.windows_per_epoch * self._length
        phase = int(stream.integers(0, min(slack, self._length - 1) + 1))
        return phase + stream.permutation(self.windows_per_epoch) * self._length


def _words(*values: int) -> npt.NDArray[np.uint64]:
    return np.array(values, dtype=np.uint64)
