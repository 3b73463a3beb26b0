"""A Python environment for each peer, made when it is first needed and kept: `peers/<name>/requirements.txt` says how.

Knows venv and pip; nothing of what runs in an environment.
"""

import hashlib
import subprocess
import sys
from pathlib import Path

PEERS = Path(__file__).parent / "peers"
DIRECTORY = Path.home() / ".cache" / "octavo" / "benchmarks"


class NotAvailableError(Exception):
    """A peer cannot be had on this machine: the message is the reason, in one line."""


def interpreter(peer: str, directory: Path) -> Path:
    """The Python of a peer's environment below `directory`; made or brought up to date first, if need be.

    Raises NotAvailableError with what pip said last.
    """
    environment = directory / peer
    python = environment / "bin" / "python"
    requirements, unneeded = PEERS / peer / "requirements.txt", PEERS / peer / "unneeded.txt"
    texts = [path.read_bytes() for path in (requirements, unneeded) if path.exists()]
    digest = hashlib.sha256(b"\0".join(texts)).hexdigest()
    mark = environment / ".octavo"
    if mark.exists() and mark.read_text() == digest:
        return python
    if not python.exists():
        print(f"making the environment of {peer} in {environment}; this can take minutes", file=sys.stderr, flush=True)
        _run([sys.executable, "-m", "venv", str(environment)])
    pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    _run([*pip, "install", "--requirement", str(requirements)])
    if unneeded.exists():
        # Required by a peer's metadata, needed by none of its text models, and often built for another torch.
        _run([*pip, "uninstall", "--yes", "--requirement", str(unneeded)])
    mark.write_text(digest)
    return python


def _run(command: list[str]) -> None:
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        lines = (finished.stderr or finished.stdout).strip().splitlines() or [f"exit status {finished.returncode}"]
        errors = [line for line in lines if line.startswith("ERROR")] or lines
        raise NotAvailableError(errors[-1][:300])
