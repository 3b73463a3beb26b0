"""The keys and values of every running sequence, one row each. Knows nothing of sequences or sessions."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.formats.architecture import Architecture

ALIGNMENT_BYTES = 64
"""A cache line, and the widest vector register of the kernels that read the cache."""


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
            f"{kind}.{layer}": _aligned_zeros((slots, *self.row_shape), element_type)
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


def _aligned_zeros(shape: tuple[int, ...], element_type: type[np.generic]) -> NDArray[Any]:
    size_bytes = np.dtype(element_type).itemsize * int(np.prod(shape, dtype=np.int64))
    # zeros, not empty: pages come zeroed from the system anyway, and stale memory may hold NaN.
    raw = np.zeros(size_bytes + ALIGNMENT_BYTES, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT_BYTES
    return raw[start : start + size_bytes].view(element_type).reshape(shape)
