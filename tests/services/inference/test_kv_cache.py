import numpy as np
import pytest

from octavo.formats.architecture import Architecture
from services.inference.kv_cache import ALIGNMENT_BYTES, KvCache

ARCHITECTURE = Architecture.derive("llama", vocab_size=10, context_length=32, width=64, layers=3, heads=4, kv_heads=2)


def test_a_copy_takes_so_many_positions_and_nothing_else():
    cache = KvCache(ARCHITECTURE, slots=3, capacity=8)
    for number, tensor in enumerate(cache.tensors.values()):
        tensor[:] = np.random.default_rng(number).normal(size=tensor.shape)
    before = {name: tensor.copy() for name, tensor in cache.tensors.items()}
    cache.copy(2, 0, 5)
    for name, tensor in cache.tensors.items():
        assert (tensor[0, :, :5] == before[name][2, :, :5]).all()
        assert (tensor[0, :, 5:] == before[name][0, :, 5:]).all()
        assert (tensor[1:] == before[name][1:]).all()


@pytest.mark.parametrize("element_type", [np.float32, np.int8])
@pytest.mark.parametrize("capacity", [1, 7, 32])
def test_tensors_are_aligned_and_zeroed(capacity, element_type):
    cache = KvCache(ARCHITECTURE, slots=2, capacity=capacity, element_type=element_type)
    assert list(cache.tensors) == [f"{kind}.{layer}" for layer in range(3) for kind in ("key", "value")]
    for tensor in cache.tensors.values():
        assert tensor.shape == (2, 2, capacity, 16)
        assert tensor.ctypes.data % ALIGNMENT_BYTES == 0
        assert not tensor.any()
        assert tensor.dtype == element_type
