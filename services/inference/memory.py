"""The memory of this machine as one process sees it: how much it may use, and giving back what it no longer uses."""

import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil


def usable_bytes(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """The machine's memory, or what a container's limit leaves of it, in bytes."""
    return int(min([psutil.virtual_memory().total, *_limits(proc, cgroup)]))


def give_back() -> None:
    """Returns free memory to the system.

    glibc keeps what is freed in the middle of its heaps, for ever: an unloaded model's smaller arrays stay resident
    until it is told to trim them. Elsewhere, and with other allocators, nothing happens.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim:
        trim(0)


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
