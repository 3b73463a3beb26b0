"""`python -m benchmarks [NAME …]`: runs the benchmarks and writes docs/benchmarks.md, machine and versions included.

Each benchmark is a module of its own that prints a table; this one only puts the tables together.
"""

import importlib.metadata
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
VERSIONS = ("octavo", "torch", "onnxruntime", "grpcio", "numpy")
TITLES = {
    "train": "Training: how low the loss gets in a given time",
    "streaming": "Serving: what streaming costs",
}


def main(names: list[str]) -> None:
    """Runs the named benchmarks, all without names; the others keep the tables that they have."""
    unknown = sorted(set(names) - set(TITLES))
    if unknown:
        sys.exit(f"there is no benchmark {', '.join(unknown)}; there are {', '.join(TITLES)}")
    kept = sections_of(PAGE.read_text()) if PAGE.exists() else {}
    measured = {name: section(name) for name in TITLES if not names or name in names}
    sections = kept | measured
    PAGE.write_text("\n".join([INTRODUCTION, *(sections[name] for name in TITLES if name in sections)]))
    print(f"\nwritten to {PAGE.relative_to(ROOT)}")


def section(name: str) -> str:
    """Runs one benchmark, showing what it prints; answers its part of the page."""
    command = [sys.executable, "-m", f"benchmarks.{name}"]
    table: list[str] = []
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            table += [line.rstrip()] if line.startswith("|") else []
    if process.returncode:
        sys.exit(f"benchmarks.{name} failed with exit status {process.returncode}")
    lines = [f"## {TITLES[name]}", "", f"`python -m benchmarks.{name}`, {machine()}.", "", *table, ""]
    return "\n".join(lines)


def sections_of(page: str) -> dict[str, str]:
    """The parts of an earlier page by the benchmark's name."""
    found = {}
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
