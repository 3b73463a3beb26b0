"""Which windows of the token array make up a batch: a pure function of the seed and the step.

Resuming at step n needs no replay, and a fork sees the data its parent would have seen. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from octavo.errors import FailedPrecondition
from octavo.v1.errors_pb2 import Reason
from services.trainer.epoch_order import EpochOrder, stream

# Target of a position that is not learnt: it counts neither in the loss nor in its gradient.
IGNORED = -100

# Second words of the Philox key, so that no two uses of one seed share a stream.
_WINDOWS_STREAM = 1


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Sequences with their successors as targets, int64 [B, T]; `target_count` of the targets are not IGNORED.

    `positions` count from 0 in each row where sequences hold several.
    """

    tokens: Tensor
    targets: Tensor
    target_count: int
    positions: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        return Batch(
            tokens=self.tokens.to(device, non_blocking=True),
            targets=self.targets.to(device, non_blocking=True),
            positions=None if self.positions is None else self.positions.to(device, non_blocking=True),
            target_count=self.target_count,
        )

    def split(self, rows: int) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """Tokens, targets and positions of `rows` sequences at a time."""
        for at in range(0, len(self.tokens), rows):
            part = slice(at, at + rows)
            yield self.tokens[part], self.targets[part], None if self.positions is None else self.positions[part]


class BatchSource(Protocol):
    """Batches of a run by their step."""

    def batch(self, step: int) -> Batch:
        """That of optimizer step `step` (from 1)."""
        ...


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
        self._order = EpochOrder(self.windows_per_epoch, batch_size, self._starts_of_epoch)

    def starts(self, step: int) -> npt.NDArray[np.int64]:
        """First tokens of the windows of optimizer step `step` (from 1)."""
        return self._order.visited(step)

    def batch(self, step: int) -> Batch:
        """The windows of optimizer step `step`."""
        windows = self._tokens[self.starts(step)[:, None] + np.arange(self._length + 1)]
        both = torch.from_numpy(windows.astype(np.int64))
        return Batch(tokens=both[:, :-1], targets=both[:, 1:], target_count=self._batch_size * self._length)

    def _starts_of_epoch(self, epoch: int) -> npt.NDArray[np.int64]:
        drawn = stream(self._seed, _WINDOWS_STREAM, epoch)
        slack = len(self._tokens) - 1 - self.windows_per_epoch * self._length
        phase = int(drawn.integers(0, min(slack, self._length - 1) + 1))
        return phase + drawn.permutation(self.windows_per_epoch) * self._length
