"""A corpus that every machine has: the source of Python's own standard library, read from the running interpreter."""

import sysconfig
from pathlib import Path

SIZE_BYTES = 3_000_000


def corpus(size_bytes: int = SIZE_BYTES) -> str:
    """Top-level modules of the standard library in the order of their names, each whole with its licence header.

    Modules that are not plain ASCII are left out, so that a vocabulary of characters stays small. The same
    interpreter always gives the same text.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    parts: list[str] = []
    total_bytes = 0
    for path in sorted(folder.glob("*.py")):
        source = path.read_bytes()
        if source.isascii() and total_bytes + len(source) <= size_bytes:
            parts.append(source.decode("ascii"))
            total_bytes += len(source)
    return "\n\n".join(parts)
