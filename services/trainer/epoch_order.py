"""In which order a run visits its data: a pure function of the seed and the step, whatever the data are."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import numpy.typing as npt


class EpochOrder:
    """Things visited once an epoch, `batch_size` at a time: position i of the run lies in epoch i // count."""

    def __init__(self, count: int, batch_size: int, of_epoch: Callable[[int], npt.NDArray[np.int64]]) -> None:
        """`of_epoch` answers the `count` things in the order of an epoch."""
        self._count = count
        self._batch_size = batch_size
        self._of_epoch = lru_cache(maxsize=2)(of_epoch)

    def visited(self, step: int) -> npt.NDArray[np.int64]:
        """What optimizer step `step` (from 1) visits."""
        positions = np.arange((step - 1) * self._batch_size, step * self._batch_size)
        epochs, places = np.divmod(positions, self._count)
        found = np.empty(len(positions), dtype=np.int64)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            found[chosen] = self._of_epoch(int(epoch))[places[chosen]]
        return found


def stream(seed: int, use: int, epoch: int) -> np.random.Generator:
    """The random numbers of one use of a seed in one epoch.

    Philox is counter-based: any epoch is reached without drawing those before (Salmon et al. 2011).
    """
    return np.random.Generator(np.random.Philox(key=_words(seed & (1 << 64) - 1, use), counter=_words(0, 0, epoch, 0)))


def _words(*values: int) -> npt.NDArray[np.uint64]:
    return np.array(values, dtype=np.uint64)
