"""How a lack of memory shows: as an error of an allocator, or as a process that the kernel killed.

Knows nothing of jobs, nor of torch.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

# torch.OutOfMemoryError and the RuntimeErrors of the CPU's allocators say so in words only.
_WORDS: Final = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory", "bad_alloc")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there was not enough memory."""
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in _WORDS)


class OomKills:
    """Tells whether the kernel has killed a process for want of memory where process `pid` lives, since it was made.

    Counted in the process's memory cgroup (version 2 or 1) where there is one, on the whole machine otherwise.
    `root` is the root of the file system.
    """

    def __init__(self, pid: int, root: Path = Path("/")) -> None:
        self._files = [*_cgroup_files(pid, root), root / "proc/vmstat"]
        self._before = self._count()

    def is_any(self) -> bool:
        """Whether there was one; False where the system does not tell."""
        return self._count() > self._before

    def _count(self) -> int:
        for file in self._files:
            try:
                match = re.search(r"^oom_kill (\d+)$", file.read_text(), re.MULTILINE)
            except OSError:
                continue
            if match:
                return int(match[1])
        return 0


def _cgroup_files(pid: int, root: Path) -> list[Path]:
    try:
        lines = (root / f"proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return []
    mounted = root / "sys/fs/cgroup"
    files: list[Path] = []
    for line in lines:
        hierarchy, controllers, path = line.split(":", 2)
        below = path.lstrip("/")
        if hierarchy == "0":
            # Inside a container the path may be that of the host, and the mount the container's own group.
            files += [mounted / below / "memory.events", mounted / "memory.events"]
        elif "memory" in controllers.split(","):
            files += [mounted / "memory" / below / "memory.oom_control", mounted / "memory/memory.oom_control"]
    return files
