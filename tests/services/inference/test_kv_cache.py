import numpy as np
import psutil
import pytest

from octavo.formats.architecture import Architecture
from services.inference.kv_cache import KvCache

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
        assert tensor.ctypes.data % 64 == 0  # a cache line, and the kernels' widest register
        assert not tensor.any()
        assert tensor.dtype == element_type


def test_a_cache_takes_memory_only_where_it_is_written_and_gives_all_of_it_back():
    def resident_bytes():
        return psutil.Process().memory_info().rss

    start = resident_bytes()
    for _ in range(3):  # what is freed once must not make the next one come from the heap
        cache = KvCache(ARCHITECTURE, slots=16, capacity=50_000)
        assert cache.size_bytes > 500 << 20
        assert resident_bytes() - start < 20 << 20
        for tensor in cache.tensors.values():
            tensor[0] = 1
        assert resident_bytes() - start > cache.size_bytes // 20
        del cache, tensor
        assert resident_bytes() - start < 20 << 20
