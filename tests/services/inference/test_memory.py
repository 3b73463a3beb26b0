import ctypes
import mmap
import threading

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


def resident_bytes():
    return psutil.Process().memory_info().rss


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")
def test_what_a_thread_allocates_for_a_model_goes_when_it_is_freed():
    heap, grown = memory.Heap(), []
    np.ones(31 << 20, np.uint8)  # freed, it makes glibc take what is smaller from the heap

    def load():
        before = resident_bytes()
        with heap.apart(), heap.apart():
            arrays = [np.ones(2 << 20, np.uint8) for _ in range(30)]
        grown.append(resident_bytes() - before)
        del arrays
        heap.trim()
        grown.append(resident_bytes() - before)

    thread = threading.Thread(target=load)
    thread.start()
    thread.join()
    assert grown[0] > 20 << 20
    assert grown[1] < 10 << 20


def test_what_is_resident_throughout_moves_to_huge_pages_and_keeps_its_content():
    weights = np.random.default_rng(0).integers(0, 255, 40 << 20, np.uint8)
    kept, before, resident = weights.copy(), memory.join_pages(), resident_bytes()
    untouched = np.frombuffer(mmap.mmap(-1, 64 << 20), np.uint8)
    if not before:
        pytest.skip("this system has no huge pages")
    assert memory.join_pages() >= 60 << 20
    assert resident_bytes() < resident + (16 << 20)
    assert np.array_equal(weights, kept)
    assert not untouched.any()


def test_a_system_without_huge_pages_keeps_its_small_ones(tmp_path):
    assert memory.join_pages(size=tmp_path / "hpage_pmd_size") == 0
