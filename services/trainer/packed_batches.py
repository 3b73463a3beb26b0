"""Batches of sequences that hold several rows, none of which sees another. Knows nothing of models."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from octavo.errors import FailedPrecondition
from octavo.v1.errors_pb2 import Reason
from services.trainer.batches import IGNORED, Batch
from services.trainer.epoch_order import EpochOrder, stream
from services.trainer.packing import Packing
from services.trainer.token_rows import Examples, Places

_ORDER_STREAM = 4


class Packs:
    """Examples put into sequences of `context_length`; with `is_packing` as many into each as there is room for."""

    def __init__(self, examples: Examples, *, context_length: int, seed: int, is_packing: bool) -> None:
        self._examples = examples
        self._length = context_length
        self._counting = np.arange(context_length)
        self._packing = Packing.of(examples.lengths, context_length, seed=seed, is_packing=is_packing)

    def __len__(self) -> int:
        return len(self._packing)

    def batch(self, chosen: Iterable[int]) -> Batch:
        """The sequences of these numbers; what they do not fill is IGNORED, and a row of its own."""
        packs = list(chosen)
        shape = (len(packs), self._length)
        tokens = np.zeros(shape, np.int64)
        targets = np.full(shape, IGNORED, np.int64)
        positions = np.zeros(shape, np.int64)
        count = 0
        for row, pack in enumerate(packs):
            at = 0
            for one in self._packing.examples_of(pack):
                at = self._put(one, tokens[row, at:], targets[row, at:], positions[row, at:]) + at
                count += 1
            positions[row, at:] = self._counting[: self._length - at]
        if self._examples.are_rows:
            self._check_ends(targets, count)
        return Batch(
            tokens=torch.from_numpy(tokens),
            targets=torch.from_numpy(targets),
            positions=torch.from_numpy(positions),
            target_count=int((targets != IGNORED).sum()),
        )

    def _put(self, one: int, tokens: Places, targets: Places, positions: Places) -> int:
        """Write an example to where these begin; returns the places it takes."""
        source = self._examples
        begin, first = source.begins[one], source.firsts[one]
        ids = source.tokens[begin : source.ends[one]]
        length = len(ids) - 1
        tokens[:length] = ids[:-1]
        targets[first - begin - 1 : length] = ids[first - begin :]
        positions[:length] = self._counting[:length]
        return length

    def _check_ends(self, targets: Places, count: int) -> None:
        """The end of every answer is among the targets: hidden ends are learnt by nobody, and the model never stops."""
        ends = int((targets == self._examples.end_id).sum())
        if ends != count:
            raise FailedPrecondition(
                Reason.REASON_CORPUS_UNUSABLE, f"{ends} of {count} rows have their end among what is learnt"
            )


class PackedBatches:
    """Batches of packed examples; a pure function of the seed and the step. Each epoch has an order of its own."""

    def __init__(self, packs: Packs, *, batch_size: int, seed: int) -> None:
        self._packs = packs
        self._order = EpochOrder(
            len(packs), batch_size, lambda epoch: stream(seed, _ORDER_STREAM, epoch).permutation(len(packs))
        )

    def batch(self, step: int) -> Batch:
        """The sequences of optimizer step `step` (from 1)."""
        return self._packs.batch(self._order.visited(step))
