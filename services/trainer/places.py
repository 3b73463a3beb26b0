"""Where jobs run: places on the CPU, and CUDA devices that take one job each; and what the others wait for.

A pure function of who holds a place and who wants one. A job whose place is taken keeps nobody from another.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from octavo.v1 import trainer_pb2 as pb

CPU: Final = "cpu"


def place_of(job: pb.Job) -> str:
    """`cpu` or a device such as `cuda:0`, which is also what `cuda` means. Jobs that do not train run on the CPU."""
    device = job.plan.train.device
    return f"{device}:0" if device == "cuda" else device or CPU


def in_turn(queued: Iterable[pb.Job]) -> list[pb.Job]:
    """By priority, then age."""
    return sorted(queued, key=lambda job: (-job.priority, job.create_time.ToNanoseconds()))


def share_places(
    holders: Sequence[pb.Job], queue: Sequence[pb.Job], cpu_places: int
) -> tuple[list[str], dict[str, str]]:
    """Names of the queued jobs that run now, and what each of the others waits for, in the order of the queue."""
    held: dict[str, list[str]] = {}
    for job in holders:
        held.setdefault(place_of(job), []).append(job.name)
    starting: list[str] = []
    waiting: dict[str, str] = {}
    before: dict[str, int] = {}
    for job in queue:
        place = place_of(job)
        taken = held.setdefault(place, [])
        if len(taken) < (cpu_places if place == CPU else 1):
            taken.append(job.name)
            starting.append(job.name)
            continue
        waiting[job.name] = _reason(place, taken, before.get(place, 0))
        before[place] = before.get(place, 0) + 1
    return starting, waiting


def _reason(place: str, holders: Sequence[str], before: int) -> str:
    who = " and ".join(holders) if len(holders) < 4 else f"{holders[0]} and {len(holders) - 1} others"
    verb = "has" if len(holders) == 1 else "have"
    what = "a place on the CPU" if place == CPU else place
    words = f"waits for {what}, which {who} {verb}" if holders else f"waits for {what}: there is none"
    return f"{words}; {before} {'job is' if before == 1 else 'jobs are'} before it" if before else words
