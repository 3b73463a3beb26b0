"""Whether the memory of a worker grows without end: a trend over the run, not a single rise."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Final

from octavo.v1 import trainer_pb2 as pb
from services.trainer.finding import Finding

_FEWEST_STEPS: Final = 300
_STRETCHES: Final = 12
# A worker that starts anew begins small; what it fills then is no leak.
_NEW_WORKER: Final = 0.8
_WARM_UP: Final = 0.2
_GROWTH: Final = 0.1
_GROWTH_BYTES: Final = 64 << 20


def find(job: pb.Job, metrics: Sequence[pb.TrainingMetric]) -> Iterator[Finding]:
    """Growth of memory, with where it would end."""
    growth = Growth.of(metrics)
    if growth is None or not growth.is_steady:
        return
    left = max(0, job.plan.total_steps - growth.last_step)
    at_end = growth.last_bytes + growth.bytes_per_step * left
    total = job.latest_resource_usage.memory_total_bytes
    end = f"; at this rate {at_end / 2**20:.0f} MiB at the last step" if left else ""
    end += f" of the machine's {total / 2**20:.0f} MiB" if left and total else ""
    yield Finding(
        pb.DIAGNOSIS_VERDICT_MEMORY_LEAK,
        f"the worker grew from {growth.first_bytes / 2**20:.0f} MiB to {growth.last_bytes / 2**20:.0f} MiB between "
        f"steps {growth.first_step} and {growth.last_step}, {growth.bytes_per_step * 1000 / 2**20:.1f} MiB per 1000 "
        f"steps{end}",
        "pause and resume the job: a new worker begins small and goes on with the same bits",
        growth.last_step,
    )


def is_stable(metrics: Sequence[pb.TrainingMetric]) -> bool:
    """Whether memory does not grow steadily; too little to say counts as stable."""
    growth = Growth.of(metrics)
    return growth is None or not growth.is_steady


class Growth:
    """The trend of the memory of the newest worker: the median slope between stretches of its steps (Theil-Sen)."""

    def __init__(self, points: Sequence[tuple[int, float]]) -> None:
        """`points` are steps and bytes."""
        (self.first_step, self.first_bytes), (self.last_step, self.last_bytes) = points[0], points[-1]
        slopes = [(late[1] - early[1]) / (late[0] - early[0]) for early, late in combinations(points, 2)]
        self.bytes_per_step = statistics.median(slopes)
        rising = sum(slope > 0 for slope in slopes) / len(slopes)
        grown = self.bytes_per_step * (self.last_step - self.first_step)
        self.is_steady = rising > 0.9 and grown > max(_GROWTH_BYTES, _GROWTH * self.first_bytes)

    @classmethod
    def of(cls, metrics: Sequence[pb.TrainingMetric]) -> Growth | None:
        """None while there are too few steps."""
        seen = [metric for metric in metrics if metric.memory_bytes]
        for index in range(len(seen) - 1, 0, -1):
            if seen[index].memory_bytes < _NEW_WORKER * seen[index - 1].memory_bytes:
                seen = seen[index:]
                break
        seen = seen[int(_WARM_UP * len(seen)) :]
        if len(seen) < _FEWEST_STEPS:
            return None
        length = len(seen) // _STRETCHES
        stretches = [seen[at * length : (at + 1) * length] for at in range(_STRETCHES)]
        return cls(
            [(part[length // 2].step, statistics.median(one.memory_bytes for one in part)) for part in stretches]
        )
