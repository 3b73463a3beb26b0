"""Which rows go together into a sequence: what their lengths and the seed say, so that it is known from the beginning.

The number of sequences is the same in every epoch: step n of a run is found without going through those before it.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from services.trainer.epoch_order import stream
from services.trainer.token_rows import Places

_PACKS_STREAM = 3


@dataclass(frozen=True)
class Packing:
    """Examples in the order of the sequences they go into; sequence i is those from `bounds[i]` to `bounds[i + 1]`."""

    order: Places
    bounds: Places
    fill: float
    """The part of all places that examples take."""

    @classmethod
    def of(cls, lengths: Places, room: int, *, seed: int, is_packing: bool) -> Packing:
        """Sequences with `room` places for examples of `lengths`; one in each unless `is_packing`."""
        if is_packing:
            order, bounds = best_fit(lengths, room, seed)
        else:
            order, bounds = np.arange(len(lengths)), np.arange(len(lengths) + 1)
        return cls(order, bounds, float(lengths.sum()) / ((len(bounds) - 1) * room))

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def examples_of(self, sequence: int) -> list[int]:
        """The numbers of the examples in a sequence."""
        found: list[int] = self.order[self.bounds[sequence] : self.bounds[sequence + 1]].tolist()
        return found


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
    order: Places = np.argsort(chosen, kind="stable")
    return order, np.concatenate((np.zeros(1, np.int64), np.bincount(chosen, minlength=opened).cumsum()))
