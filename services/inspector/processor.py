"""The processor and the share of it and of the memory that this process may use: Linux's files, psutil elsewhere.

Knows nothing of GPUs or of what the machine is for.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psutil

from octavo.v1 import inspector_pb2 as pb

# What ONNX Runtime's MLAS and oneDNN choose kernels by.
_DECISIVE: Final = re.compile(
    r"^(sse4_2|avx|avx2|fma|f16c|avx_vnni|avx512\w*|amx_\w+|avx10\w*|asimd|asimddp|asimdhp|i8mm|bf16|svebf16|sve2?|sme2?)$"
)
_NO_LIMIT: Final = 1 << 60  # cgroup v1 says "unlimited" with the largest multiple of a page


class ProcessorProbe:
    """Asks the processor. What never changes is read once; `proc` and `sys` are Linux's mount points."""

    def __init__(self, proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> None:
        self._proc = proc
        self._sys = sys
        self._cgroup = sys / "fs" / "cgroup"
        self._fixed: pb.ProcessorDescription | None = None

    def describe(self) -> pb.ProcessorDescription:
        """The processor now."""
        if self._fixed is None:
            self._fixed = self._describe_fixed()
        description = pb.ProcessorDescription()
        description.CopyFrom(self._fixed)
        description.usable_core_count = self._usable_cores()
        description.load_average = os.getloadavg()[0]
        return description

    def describe_memory(self) -> pb.MemoryDescription:
        """The memory now, within the container's limit."""
        memory, swap = psutil.virtual_memory(), psutil.swap_memory()
        description = pb.MemoryDescription(
            total_bytes=memory.total,
            available_bytes=memory.available,
            swap_total_bytes=swap.total,
            swap_used_bytes=swap.used,
            process_bytes=psutil.Process().memory_info().rss,
        )
        for limit, used in self._memory_limits():
            if limit < min(memory.total, description.limit_bytes or _NO_LIMIT):
                description.limit_bytes = limit
                description.available_bytes = max(min(memory.available, limit - used), 0)
        return description

    def _describe_fixed(self) -> pb.ProcessorDescription:
        facts = self._cpuinfo()
        frequency = psutil.cpu_freq()
        return pb.ProcessorDescription(
            model=facts.get("model name", "") or platform.processor(),
            architecture=platform.machine(),
            physical_core_count=psutil.cpu_count(logical=False) or 0,
            logical_core_count=psutil.cpu_count() or 0,
            features=_features(facts.get("flags", "") or facts.get("Features", "")),
            cache_bytes=self._largest_cache_bytes(),
            maximum_frequency_hz=int((frequency.max or frequency.current) * 1e6) if frequency else 0,
        )

    def _largest_cache_bytes(self) -> int:
        """The largest cache that the first core sees; 0 where the kernel does not say."""
        caches = (self._sys / "devices" / "system" / "cpu" / "cpu0" / "cache").glob("index*/size")
        return max((_kibibytes(_read(cache)) for cache in caches), default=0)

    def _cpuinfo(self) -> dict[str, str]:
        """The facts about the first processor; empty where there is no such file."""
        path = self._proc / "cpuinfo"
        if not path.exists():
            return {}
        first, _, _ = path.read_text(errors="replace").partition("\n\n")
        pairs = (line.partition(":") for line in first.splitlines())
        return {key.strip(): value.strip() for key, _, value in pairs}

    def _usable_cores(self) -> float:
        """The smaller of the affinity and the container's quota."""
        # sched_getaffinity is Linux's; elsewhere a process may use every core.
        affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min([float(affinity), *self._quotas()])

    def _quotas(self) -> Iterator[float]:
        for group in self._groups():
            words = _read(group / "cpu.max").split()
            if len(words) == 2 and words[0].isdigit():
                yield int(words[0]) / int(words[1])
        quota = _read(self._cgroup / "cpu" / "cpu.cfs_quota_us")
        period = _read(self._cgroup / "cpu" / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit():
            yield int(quota) / int(period)

    def _memory_limits(self) -> Iterator[tuple[int, int]]:
        """Limit and unreclaimable use, in bytes, of each group that limits this process."""
        for group in self._groups():
            limit, used = _read(group / "memory.max"), _read(group / "memory.current")
            if limit.isdigit() and used.isdigit():
                yield int(limit), int(used) - _statistic(group / "memory.stat", "inactive_file")
        old = self._cgroup / "memory"
        limit, used = _read(old / "memory.limit_in_bytes"), _read(old / "memory.usage_in_bytes")
        if limit.isdigit() and used.isdigit() and int(limit) < _NO_LIMIT:
            yield int(limit), int(used) - _statistic(old / "memory.stat", "total_inactive_file")

    def _groups(self) -> Iterator[Path]:
        """The control groups (v2) of this process, from its own up to the root."""
        lines = _read(self._proc / "self" / "cgroup").splitlines()
        own = next((line[3:] for line in lines if line.startswith("0::")), "/")
        parts = [part for part in own.split("/") if part and part != ".."]
        for depth in range(len(parts), -1, -1):
            yield self._cgroup.joinpath(*parts[:depth])


def _features(flags: str) -> list[str]:
    return sorted(flag for flag in flags.split() if _DECISIVE.match(flag))


def _kibibytes(text: str) -> int:
    """The bytes in a size such as `32768K`."""
    match = re.fullmatch(r"(\d+)K", text)
    return int(match.group(1)) * 1024 if match else 0


def _statistic(path: Path, name: str) -> int:
    found = re.search(rf"^{name} (\d+)$", _read(path), re.MULTILINE)
    return int(found.group(1)) if found else 0


def _read(path: Path) -> str:
    """The text of a file of the kernel; empty where this kernel does not have it or does not show it."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
