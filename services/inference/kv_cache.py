"""The keys and values of every running sequence, one row each. Knows nothing of sequences or sessions."""

from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.formats.architecture import Architecture


class KvCache:
    """Per layer, keys and values as [slots, kv_heads, capacity, head_size], filled from position 0.

    What lies behind a row's length is never read by attention, so that rows need no clearing.
    """

    def __init__(
        self, architecture: Architecture, *, slots: int, capacity: int, element_type: type[np.generic] = np.float32
    ) -> None:
        self.slots = slots
        self.capacity = capacity
        self.row_shape = (architecture.kv_heads, capacity, architecture.head_size)
        self.tensors: dict[str, NDArray[Any]] = {
            f"{kind}.{layer}": _zeros((slots, *self.row_shape), element_type)
            for layer in range(architecture.layers)
            for kind in ("key", "value")
        }

    @property
    def size_bytes(self) -> int:
        """Memory of all rows. The system hands it out page by page, as rows are first written."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def copy(self, source: int, target: int, length: int) -> None:
        """Copies the first `length` positions of row `source` over row `target`."""
        for tensor in self.tensors.values():
            tensor[target, :, :length] = tensor[source, :, :length]

    def move(self, source: int, target: int, length: int, keeps: int) -> None:
        """The same, and the first `keeps` positions that `target` had before go to row `source`."""
        for tensor in self.tensors.values():
            kept = tensor[target, :, :keeps].copy()
            tensor[target, :, :length] = tensor[source, :, :length]
            tensor[source, :, :keeps] = kept


def _zeros(shape: tuple[int, ...], element_type: type[np.generic]) -> NDArray[Any]:
    """Pages of their own: zeroed by the system when they are first touched, given back when the last array goes.

    From the heap they would be neither, once a model has been unloaded: glibc then takes as much from the heap again,
    where all of it is written at once (measured: 150 MB took 0.4 s and were resident, instead of 0 s and none).
    """
    size_bytes = np.dtype(element_type).itemsize * int(np.prod(shape, dtype=np.int64))
    pages = mmap(-1, size_bytes, flags=MAP_PRIVATE | MAP_ANONYMOUS)
    return np.frombuffer(pages, element_type).reshape(shape)


def cut(tensor: NDArray[Any], rows: int, capacity: int) -> NDArray[Any]:
    """A cache of `rows` rows of `capacity` tokens [rows, heads, capacity, head_size] in the memory of another."""
    _, heads, _, head_size = tensor.shape
    return tensor.reshape(-1)[: rows * heads * capacity * head_size].reshape(rows, heads, capacity, head_size)
