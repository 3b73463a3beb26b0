import ctypes
import mmap

import numpy as np
import psutil
import pytest

from services.inference import memory


@pytest.fixture
def machine(tmp_path):
    """The kernel's files of a process in the control group /pod/inference."""
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text("0::/pod/inference\n")
    (tmp_path / "cgroup" / "pod" / "inference").mkdir(parents=True)

    def usable(**limits):
        for path, text in limits.items():
            (tmp_path / "cgroup" / path.replace("_", "/").removesuffix("root") / "memory.max").write_text(text)
        return memory.usable_bytes(tmp_path / "proc", tmp_path / "cgroup")

    return usable


def test_without_limits_the_machines_memory_is_usable(machine):
    assert machine() == psutil.virtual_memory().total
    assert machine(pod="max\n") == psutil.virtual_memory().total


def test_the_tightest_group_on_the_way_up_decides(machine):
    assert machine(pod="30000\n", pod_inference="50000\n") == 30000
    assert machine(pod_inference="20000\n") == 20000


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")
def test_what_is_allocated_for_a_model_has_pages_of_its_own_and_goes_with_it():
    heap, process = memory.Heap(), psutil.Process()
    before = process.memory_info().rss
    with heap.apart(), heap.apart():
        arrays = [np.ones(2 << 20, np.uint8) for _ in range(40)]
    assert {array.ctypes.data % mmap.PAGESIZE for array in arrays} == {16}  # behind the length of the mapping
    kept = arrays[-1]
    del arrays
    assert process.memory_info().rss - before < 20 << 20
    assert kept.all()
    heap.trim()
