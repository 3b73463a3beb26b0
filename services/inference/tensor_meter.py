"""What one tensor model has done, in plain numbers: requests by outcome, runs by batch size, and where the time went.

Runs are written by the batcher's thread, outcomes on the event loop; no number is written by both.
"""

from collections import Counter
from dataclasses import dataclass
from time import time

from services.inference.batch_queue import Spent
from services.inference.meter import FIRST_TOKEN_BOUNDS_S, Distribution

BATCH_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
OK = "ok"


@dataclass(slots=True)
class Runs:
    """Runs of one batch size, and the seconds they took in all."""

    count: int = 0
    input_s: float = 0.0
    infer_s: float = 0.0
    output_s: float = 0.0


class TensorMeter:
    """The numbers of one model since it was loaded."""

    def __init__(self) -> None:
        self.runs: dict[int, Runs] = {}
        """By rows."""
        self.batch_rows = Distribution(BATCH_BOUNDS)
        self.run_s = Distribution(FIRST_TOKEN_BOUNDS_S)
        self.outcomes: Counter[str] = Counter()
        self.request_s = Distribution(FIRST_TOKEN_BOUNDS_S)
        self.failed_s = Distribution(FIRST_TOKEN_BOUNDS_S)
        self.queue_s = Distribution(FIRST_TOKEN_BOUNDS_S)
        self.input_s = self.infer_s = self.output_s = 0.0
        """Of requests that succeeded, each with the whole time of its batch."""
        self.rows = 0
        """Elements of batches that succeeded."""
        self.last_s = 0.0
        """When the last request ended, in seconds since 1970."""

    def count_run(self, rows: int, spent: Spent) -> None:
        """Counts a run that succeeded."""
        runs = self.runs.setdefault(rows, Runs())
        runs.count += 1
        runs.input_s += spent.input_s
        runs.infer_s += spent.infer_s
        runs.output_s += spent.output_s
        self.batch_rows.add(rows)
        self.run_s.add(spent.infer_s)

    def count_success(self, rows: int, duration_s: float, spent: Spent) -> None:
        """Counts a request that was answered, `duration_s` after it came."""
        self.last_s = time()
        self.outcomes[OK] += 1
        self.rows += rows
        self.request_s.add(duration_s)
        self.queue_s.add(spent.queue_s)
        self.input_s += spent.input_s
        self.infer_s += spent.infer_s
        self.output_s += spent.output_s

    def count_failure(self, outcome: str, duration_s: float) -> None:
        """Counts a request that was not answered, by why."""
        self.last_s = time()
        self.outcomes[outcome] += 1
        self.failed_s.add(duration_s)

    @property
    def execution_count(self) -> int:
        """Runs of the graph."""
        return sum(runs.count for runs in list(self.runs.values()))
