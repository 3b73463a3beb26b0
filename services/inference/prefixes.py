"""Which prompt each row of the cache begins with, whether its sequence runs or is over: what need not be read again.

Only what was read as a prompt counts. Generated tokens pass through the kernel for single tokens, which rounds
otherwise (5e-7): an answer that built upon them would depend on what happened to be in the cache.
"""

from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import NDArray

LEAST = 16
"""Tokens that must agree before a copy is worth its while; a copy of so few takes as long as looking for them."""

Tokens = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Match:
    """The first `length` positions of `row` are those of a prompt."""

    row: int
    length: int


class Prefixes:
    """The prompts in the rows 0 to `slots`. Knows tokens; the cache itself is copied by others."""

    def __init__(self, slots: int) -> None:
        self._held: list[Tokens | None] = [None] * slots
        self._used = [0] * slots
        self._uses = count(1)

    def length(self, row: int) -> int:
        """How many tokens `row` holds."""
        held = self._held[row]
        return 0 if held is None else len(held)

    def hold(self, row: int, prompt: Tokens) -> None:
        """Notes that `row` begins with `prompt`, read just now."""
        self._held[row] = prompt if len(prompt) >= LEAST else None
        self._used[row] = next(self._uses)

    def forget(self, row: int) -> None:
        """Notes that `row` is about to be overwritten."""
        self._held[row] = None

    def copy(self, source: int, target: int) -> None:
        """Notes that `target` begins as `source` does."""
        self._held[target], self._used[target] = self._held[source], self._used[source]

    def swap(self, one: int, other: int) -> None:
        """Notes that two rows have changed places."""
        held, used = self._held, self._used
        held[one], held[other] = held[other], held[one]
        used[one], used[other] = used[other], used[one]

    def longest_match(self, prompt: Tokens) -> Match | None:
        """The row that has most of a prompt's beginning, if any has enough. One token is always left to read."""
        best: Match | None = None
        most = len(prompt) - 1
        if most < LEAST:
            return None
        for row, held in enumerate(self._held):
            length = 0 if held is None else min(common_length(held, prompt), most)
            if length >= LEAST and (best is None or length > best.length):
                best = Match(row, length)
        if best:
            self._used[best.row] = next(self._uses)
        return best

    def is_held_elsewhere(self, row: int) -> bool:
        """Whether another row begins with all that `row` holds."""
        mine = self._held[row]
        return mine is not None and any(
            other != row and held is not None and len(held) >= len(mine) and common_length(held, mine) == len(mine)
            for other, held in enumerate(self._held)
        )

    def oldest(self, first: int) -> int:
        """Of the rows from `first` on, the one whose prompt is worth least: empty, or unused for longest."""
        rows = range(first, len(self._held))
        return min(rows, key=lambda row: self._used[row] if self._held[row] is not None else 0)


def common_length(one: Tokens, other: Tokens) -> int:
    """How many tokens two sequences, none of them empty, begin with in common."""
    if one[0] != other[0]:  # most of the time, and forty times as fast
        return 0
    length = min(len(one), len(other))
    differences = np.flatnonzero(one[:length] != other[:length])
    return int(differences[0]) if len(differences) else length
