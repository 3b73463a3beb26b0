"""The memory of this machine as one process sees it: how much it may use, and giving back what it no longer uses."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

import psutil

# glibc's names in malloc.h. The thresholds are those that it arrives at by itself in a program with large arrays.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGE_BYTES, _TRIM_BYTES, _APART_BYTES = 32 << 20, 64 << 20, 1 << 20


def usable_bytes(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """The machine's memory, or what a container's limit leaves of it, in bytes."""
    return int(min([psutil.virtual_memory().total, *_limits(proc, cgroup)]))


class Heap:
    """The C library's heap, where ONNX Runtime keeps weights. Without glibc nothing here does anything.

    glibc keeps what is freed at the end of a thread's heap, up to 64 MB for each thread, and what is freed in the
    middle until it is told to trim. An unloaded model would stay resident there.
    """

    def __init__(self) -> None:
        library = ctypes.CDLL(None) if sys.platform == "linux" else None
        self._mallopt = getattr(library, "mallopt", None)
        self._trim = getattr(library, "malloc_trim", None)
        self._lock = Lock()
        self._loads = 0

    @contextmanager
    def apart(self) -> Iterator[None]:
        """What is allocated meanwhile, from 1 MiB on, gets pages of its own, which go back when it is freed.

        All threads are meant, and short-lived arrays cost them more meanwhile: not for longer than a load.
        """
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    def trim(self) -> None:
        """Returns free pages to the system."""
        if self._trim:
            self._trim(0)

    def _count(self, change: int) -> None:
        with self._lock:
            self._loads += change
            if self._mallopt:
                self._mallopt(_M_MMAP_THRESHOLD, _APART_BYTES if self._loads else _LARGE_BYTES)
                self._mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES)


def _limits(proc: Path, cgroup: Path) -> Iterator[int]:
    """The limits of the control groups (v2, and v1 where it is mounted) that this process is in, in bytes."""
    lines = _read(proc / "self" / "cgroup").splitlines()
    own = next((line[3:] for line in lines if line.startswith("0::")), "/")
    parts = [part for part in own.split("/") if part and part != ".."]
    paths = [cgroup.joinpath(*parts[:depth], "memory.max") for depth in range(len(parts) + 1)]
    for path in (*paths, cgroup / "memory" / "memory.limit_in_bytes"):
        if (text := _read(path)).isdigit():
            yield int(text)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
