"""What one engine has done, in plain numbers: cheap to count at every step, read when somebody asks.

Written by the engine's thread alone. Knows nothing of Prometheus; `metrics` shows it.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from time import time

from octavo.v1.errors_pb2 import Reason
from octavo.v1.inference_pb2 import FinishReason
from services.inference.outbox import Ending

# The bounds of OpenTelemetry's gen_ai.server.time_to_first_token, finer below for models as small as ours.
FIRST_TOKEN_BOUNDS_S = (
    0.001, 0.002, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10,
)  # fmt: skip
INTER_TOKEN_BOUNDS_S = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5,
)  # fmt: skip


class Distribution:
    """Counts of values by upper bound, the last one unbounded, and their sum."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float, times: int = 1) -> None:
        """Counts `value`, `times` over."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    def cumulated(self) -> Iterator[tuple[str, float]]:
        """Each bound as Prometheus writes it, with the count of values up to it."""
        count = 0
        for bound, more in zip((*self.bounds, float("inf")), self.counts, strict=True):
            count += more
            yield ("+Inf" if bound == float("inf") else str(bound)), count


class Meter:
    """The numbers of one engine since it was made."""

    def __init__(self) -> None:
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.completion_tokens = 0
        self.steps = 0
        self.outcomes: Counter[str] = Counter()
        self.first_token_s = Distribution(FIRST_TOKEN_BOUNDS_S)
        self.inter_token_s = Distribution(INTER_TOKEN_BOUNDS_S)
        self.queue_s = Distribution(FIRST_TOKEN_BOUNDS_S)
        self.total_s = Distribution(FIRST_TOKEN_BOUNDS_S)
        self.failed_s = Distribution(FIRST_TOKEN_BOUNDS_S)
        self.last_s = 0.0
        """When the last sequence ended, in seconds since 1970."""

    def count_end(self, ending: Ending) -> None:
        """Counts a sequence that is over, by what became of it."""
        self.last_s = time()
        if ending.error:
            self.failed_s.add(ending.end_s - ending.arrival_s)
            self.outcomes[Reason.Name(ending.error.reason).removeprefix("REASON_").lower()] += 1
            return
        self.outcomes[FinishReason.Name(ending.finish_reason).removeprefix("FINISH_REASON_").lower()] += 1
        self.first_token_s.add(ending.first_token_s - ending.arrival_s)
        self.queue_s.add(ending.start_s - ending.arrival_s)
        self.total_s.add(ending.end_s - ending.arrival_s)
