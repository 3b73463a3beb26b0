"""Where jobs run: places on the CPU, and CUDA devices, each for one process of one job; and what the others wait for.

A pure function of who holds a place and who wants one. A job whose place is taken keeps nobody from another.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from octavo.v1 import trainer_pb2 as pb

CPU: Final = "cpu"


def places_of(job: pb.Job) -> list[str]:
    """`cpu` or a device such as `cuda:0`, which is also what `cuda` means; each of several processes has its own.

    Jobs that do not train run on the CPU, where several processes take one place.
    """
    device, processes = job.plan.train.device, job.plan.train.processes
    if device == "cuda":
        return [f"cuda:{index}" for index in range(max(1, processes))]
    return [device or CPU]


def in_turn(queued: Iterable[pb.Job]) -> list[pb.Job]:
    """By priority, then age."""
    return sorted(queued, key=lambda job: (-job.priority, job.create_time.ToNanoseconds()))


def share_places(
    holders: Sequence[pb.Job], queue: Sequence[pb.Job], cpu_places: int
) -> tuple[list[str], dict[str, str]]:
    """Names of the queued jobs that run now, and what each of the others waits for, in the order of the queue."""
    held: dict[str, list[str]] = {}
    for job in holders:
        for place in places_of(job):
            held.setdefault(place, []).append(job.name)
    starting: list[str] = []
    waiting: dict[str, str] = {}
    before: dict[str, int] = {}
    for job in queue:
        places = places_of(job)
        taken = [place for place in places if len(held.get(place, ())) >= (cpu_places if place == CPU else 1)]
        # One that waits for a device keeps its others, lest jobs of one device each go before it for ever.
        for place in (one for one in places if one not in taken):
            held.setdefault(place, []).append(job.name)
        if not taken:
            starting.append(job.name)
            continue
        first = taken[0]
        waiting[job.name] = _reason(first, held.get(first, ()), before.get(first, 0))
        before[first] = before.get(first, 0) + 1
    return starting, waiting


def _reason(place: str, holders: Sequence[str], before: int) -> str:
    who = " and ".join(holders) if len(holders) < 4 else f"{holders[0]} and {len(holders) - 1} others"
    verb = "has" if len(holders) == 1 else "have"
    what = "a place on the CPU" if place == CPU else place
    words = f"waits for {what}, which {who} {verb}" if holders else f"waits for {what}: there is none"
    return f"{words}; {before} {'job is' if before == 1 else 'jobs are'} before it" if before else words
