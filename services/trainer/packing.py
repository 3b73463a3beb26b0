"""Several rows in one sequence: which go together, and the batches that come of it. No row sees another.

Which rows share a sequence follows from their lengths and the seed alone, so the number of sequences is known from
the beginning and step n of a run is found without going through those before it. Knows nothing of models.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch

from octavo.errors import FailedPrecondition
from octavo.v1.errors_pb2 import Reason
from services.trainer.batches import IGNORED, Batch, EpochOrder, stream
from services.trainer.token_rows import Examples, Places

_PACKS_STREAM = 3
_ORDER_STREAM = 4


class Packs:
    """Examples put into sequences of `context_length`; with `is_packing` as many into each as there is room for."""

    def __init__(self, examples: Examples, *, context_length: int, seed: int, is_packing: bool) -> None:
        self._examples = examples
        self._length = context_length
        self._counting = np.arange(context_length)
        if is_packing:
            self._order, self._bounds = best_fit(examples.lengths, context_length, seed)
        else:
            self._order, self._bounds = np.arange(len(examples)), np.arange(len(examples) + 1)

    def __len__(self) -> int:
        return len(self._bounds) - 1

    @property
    def fill(self) -> float:
        """The part of all places that examples take."""
        return float(self._examples.lengths.sum()) / (len(self) * self._length)

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
            for one in self._order[self._bounds[pack] : self._bounds[pack + 1]]:
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


def best_fit(lengths: Places, room: int, seed: int) -> tuple[Places, Places]:
    """Examples in the order of the sequences they go into, and where each sequence begins, one more at the end.

    Best fit, the longest first: each goes where the least room is left over. Equal ones come in random order.
    """
    shuffled = stream(seed, _PACKS_STREAM, 0).permutation(len(lengths))
    by_length = shuffled[np.argsort(-lengths[shuffled], kind="stable")]
    chosen = np.empty(len(lengths), np.int64)
    with_room: defaultdict[int, list[int]] = defaultdict(list)
    rooms, opened = 0, 0  # bit n of `rooms`: there is a sequence with room for n tokens
    for one, length in zip(by_length.tolist(), lengths[by_length].tolist(), strict=True):
        if fitting := rooms >> length:
            left = length + (fitting & -fitting).bit_length() - 1
            pack = with_room[left].pop()
            if not with_room[left]:
                rooms ^= 1 << left
        else:
            left, pack, opened = room, opened, opened + 1
        chosen[one] = pack
        if left > length:
            with_room[left - length].append(pack)
            rooms |= 1 << (left - length)
    order: npt.NDArray[np.int64] = np.argsort(chosen, kind="stable")
    return order, np.concatenate((np.zeros(1, np.int64), np.bincount(chosen, minlength=opened).cumsum()))
