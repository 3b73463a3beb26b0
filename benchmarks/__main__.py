"""`python -m benchmarks [NAME …] [OPTION …]`: runs the benchmarks, writes docs/benchmarks.md with machine and versions.

Each benchmark is a module of its own that prints its tables; this one only puts them together. `--quick` tries whether
all of them run, in minutes, and writes nothing. Other options go to each of the benchmarks named.
"""

import importlib.metadata
import os
import platform
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
VERSIONS = ("octavo", "torch", "onnxruntime", "grpcio", "numpy")
TITLES = {
    "train": "Training: how low the loss gets in a given time",
    "generate": "Generation: tokens per second beside other engines",
    "streaming": "Serving: what scheduling and streaming cost",
    "serving": "Serving: whole servers under open-loop load",
}
QUICK = {"train": ("--budgets", "3", "--seeds", "1", "--without-nanogpt")}
"""What makes a benchmark quick; for those that are not here it is `--quick`."""


def main(arguments: list[str]) -> None:
    """Runs the named benchmarks, all without names; the others keep the tables that they have."""
    first = next((place for place, word in enumerate(arguments) if word.startswith("-")), len(arguments))
    names, options = arguments[:first], arguments[first:]
    unknown = sorted(set(names) - set(TITLES))
    if unknown:
        sys.exit(f"there is no benchmark {', '.join(unknown)}; there are {', '.join(TITLES)}")
    kept = sections_of(PAGE.read_text()) if PAGE.exists() else {}
    with tempfile.TemporaryDirectory() as bundles:
        measured = {name: section(name, options, bundles) for name in TITLES if not names or name in names}
    if "--quick" in options:
        return
    sections = kept | measured
    PAGE.write_text("\n".join([INTRODUCTION, *(sections[name] for name in TITLES if name in sections)]))
    print(f"\nwritten to {PAGE.relative_to(ROOT)}")


def section(name: str, options: list[str], bundles: str) -> str:
    """Runs one benchmark, showing what it prints; answers its part of the page. They share the models in `bundles`."""
    quick = QUICK.get(name, ("--quick",))
    chosen = [word for option in options for word in (quick if option == "--quick" else (option,))]
    command = [sys.executable, "-m", f"benchmarks.{name}", *chosen]
    command += [] if name == "train" else ["--bundles", bundles]
    tables: list[str] = []
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            # Headings and tables; what else it says is for the person who waits.
            tables += [line.rstrip()] if line.startswith(("|", "#")) or not line.strip() else []
    if process.returncode:
        sys.exit(f"benchmarks.{name} failed with exit status {process.returncode}")
    text = "\n".join(tables).strip()
    return f"## {TITLES[name]}\n\n`python -m benchmarks.{name}`, {machine()}.\n\n{text}\n"


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
    main(sys.argv[1:])
