"""`python -m benchmarks [NAME …]`: runs the benchmarks and writes docs/benchmarks.md, machine and versions included.

Each benchmark is a module of its own that prints its tables; this one only puts them together. `--quick` tries whether
all of them run, in minutes, and writes nothing.
"""

import argparse
import importlib.metadata
import os
import platform
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.environments import DIRECTORY

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
VERSIONS = ("octavo", "torch", "onnxruntime", "grpcio", "numpy")
TITLES = {
    "train": "Training: how low the loss gets in a given time",
    "generate": "Generation: tokens per second beside other engines",
    "streaming": "Serving: what scheduling and streaming cost",
    "serving": "Serving: whole servers under open-loop load",
    "gpu": "Serving on a GPU",
}
EVERYWHERE = [name for name in TITLES if name != "gpu"]
"""What runs without names; `make bench-gpu` names the other, which says nothing to the page without a GPU."""
WITH_PEERS = ("generate", "serving")
WITH_BUNDLES = ("generate", "streaming", "serving")


def main() -> None:
    """Runs the named benchmarks, all without names; the others keep the tables that they have."""
    options = _options()
    unknown = sorted(set(options.names) - set(TITLES))
    if unknown:
        sys.exit(f"there is no benchmark {', '.join(unknown)}; there are {', '.join(TITLES)}")
    kept = sections_of(PAGE.read_text()) if PAGE.exists() else {}
    chosen = [name for name in TITLES if name in (options.names or EVERYWHERE)]
    with tempfile.TemporaryDirectory() as bundles:
        for name in chosen:
            arguments = [*_arguments(name, options), *(["--bundles", bundles] if name in WITH_BUNDLES else [])]
            measured = section(name, arguments)
            # At once: what is measured is kept, whatever becomes of the next one.
            if "|" in measured and not options.quick:
                kept[name] = measured
                PAGE.write_text("\n".join([INTRODUCTION, *(kept[known] for known in TITLES if known in kept)]))
                print(f"\nwritten to {PAGE.relative_to(ROOT)}\n")


def section(name: str, arguments: list[str]) -> str:
    """Runs one benchmark, showing what it prints; answers its part of the page."""
    tables: list[str] = []
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            # Headings and tables; what else it says is for the person who waits.
            tables += [line.rstrip()] if line.startswith(("|", "#")) or not line.strip() else []
    if process.returncode:
        sys.exit(f"benchmarks.{name} failed with exit status {process.returncode}")
    text = "\n".join(tables).strip()
    return f"## {TITLES[name]}\n\n`python -m benchmarks.{name}`, {machine()}.\n\n{text}\n"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(TITLES))
    parser.add_argument("--quick", action="store_true", help="do they run at all? writes nothing")
    parser.add_argument("--environments", type=Path, default=DIRECTORY, help="where the peers' environments are kept")
    return parser.parse_args()


def _arguments(name: str, options: argparse.Namespace) -> list[str]:
    """What of our options a benchmark understands, in its words."""
    arguments = ["--environments", str(options.environments)] if name in WITH_PEERS else []
    if not options.quick:
        return arguments
    short = ["--seconds", "9", "--seeds", "1", "--without-nanogpt"]
    return [*arguments, *(short if name == "train" else ["--quick"])]


def sections_of(page: str) -> dict[str, str]:
    """The parts of an earlier page by the benchmark's name."""
    found: dict[str, str] = {}
    for part in page.split("\n## ")[1:]:
        title = part.partition("\n")[0]
        found |= {name: f"## {part}" for name, known in TITLES.items() if known == title}
    return found


def machine() -> str:
    """Where and with what it was measured."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in VERSIONS)
    cores = len(os.sched_getaffinity(0))
    return f"{datetime.now(UTC):%Y-%m-%d}, {processor()}, {cores} cores, Python {platform.python_version()}, {versions}"


def processor() -> str:
    """The processor's name where the system tells it."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


INTRODUCTION = """# Benchmarks

Every table is written by the command above it (`make bench` runs them all). Compared with one another are figures of
one run alone, whose rounds alternate: the machine is shared, and its speed changes by the minute.
"""

if __name__ == "__main__":
    main()
