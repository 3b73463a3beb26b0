"""How much memory all models of this process may take, and who has been promised how much. Loads nothing itself."""

import re
from dataclasses import dataclass
from pathlib import Path

_LENGTH = re.compile(rb"\n\x06length\x12.([0-9]+)", re.DOTALL)
"""An entry of ONNX's `external_data`: key `length`, field 1, and its value, field 2, in decimal digits."""

_CACHE_ELEMENT = re.compile(rb"octavo.cache_element_bytes\x12\x01([0-9])")
"""The exporter's word on the cache, in ONNX's `metadata_props`: key, and field 2, one digit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """What a model takes of memory, in bytes.

    `working` is what a step needs beside weights and cache: activations, logits, the sampler's copies.
    """

    weights_bytes: int
    cache_bytes: int = 0
    working_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.cache_bytes + self.working_bytes


class Reservation:
    """A promise of memory, until it is released."""

    def __init__(self, budget: "MemoryBudget", size_bytes: int) -> None:
        self._budget = budget
        self.size_bytes = size_bytes

    def release(self) -> None:
        """Gives the promise back; again, nothing happens."""
        self._budget.used_bytes -= self.size_bytes
        self.size_bytes = 0


class MemoryBudget:
    """At most `limit_bytes` promised at the same time. Used by one thread."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0

    @property
    def free_bytes(self) -> int:
        return self.limit_bytes - self.used_bytes

    def reserve(self, size_bytes: int) -> Reservation | None:
        """A promise of so much, or None where too little is left."""
        if size_bytes > self.free_bytes:
            return None
        self.used_bytes += size_bytes
        return Reservation(self, size_bytes)


def weights_bytes(graph: Path) -> int:
    """The memory of a graph's weights: its file, and every range of other files that it names.

    Read from the bytes as they are, in a millisecond; parsing a graph takes the better part of a second.
    ONNX Runtime packs weights for its kernels and lets go of what it has packed: measured, what stays is within a
    tenth of this.
    """
    content = graph.read_bytes()
    return len(content) + sum(map(int, _LENGTH.findall(content)))


def cache_element_bytes(graph: Path) -> int:
    """The size of a number in the graph's cache; that of a float32 where it does not say."""
    said = _CACHE_ELEMENT.search(graph.read_bytes())
    return int(said[1]) if said else 4
