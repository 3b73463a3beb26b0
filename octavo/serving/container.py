"""What a container lets this process have, as the kernel's control groups say it."""

from collections.abc import Iterator
from pathlib import Path


def memory_limits_bytes(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
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
