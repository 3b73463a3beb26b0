"""The figures by which jobs are compared: each a name, a direction and a way to read it from a job."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from octavo.errors import InvalidArgument
from octavo.v1 import trainer_pb2 as pb

Curves = tuple[Sequence[pb.TrainingMetric], Sequence[pb.Evaluation]]


class JobRecord:
    """A job with its metrics and evaluations, by step; these are read only where they are asked for."""

    def __init__(self, job: pb.Job, read: Callable[[], Curves]) -> None:
        self.job = job
        self._read = read

    @cached_property
    def curves(self) -> Curves:
        """Its metrics and evaluations."""
        return self._read()

    @cached_property
    def training_s(self) -> Sequence[float]:
        """Seconds of training up to and with each of its metrics; evaluations and pauses do not count."""
        total, times = 0.0, []
        for metric in self.curves[0]:
            total += metric.step_duration.ToNanoseconds() / 1e9
            times.append(total)
        return times


@dataclass(frozen=True)
class Measure:
    """A figure of a job: which way is better, its unit for people, and how it is read; None where a job has none."""

    is_lower_better: bool
    unit: str
    read: Callable[[JobRecord], float | None]

    def value(self, record: JobRecord) -> float | None:
        """The figure; None where the job has none, or it is not finite."""
        value = self.read(record)
        return value if value is not None and math.isfinite(value) else None

    def order(self, value: float) -> float:
        """Ascending from the best."""
        return value if self.is_lower_better else -value


def _of_best(field: str) -> Callable[[JobRecord], float | None]:
    def read(record: JobRecord) -> float | None:
        job = record.job
        return float(getattr(job.best_evaluation, field)) if job.HasField("best_evaluation") else None

    return read


def _gap(record: JobRecord) -> float | None:
    best = record.job.best_evaluation
    return best.validation_loss - best.training_loss if best.training_loss else None


def _speed(record: JobRecord) -> float | None:
    metrics, times = record.curves[0], record.training_s
    if not metrics or not times[-1]:
        return None
    return len(metrics) * metrics[-1].tokens / metrics[-1].step / times[-1]


def _duration(record: JobRecord) -> float | None:
    job = record.job
    if not (job.HasField("end_time") and job.HasField("start_time")):
        return None
    return (job.end_time.ToNanoseconds() - job.start_time.ToNanoseconds()) / 1e9


def _memory(record: JobRecord) -> float | None:
    return max((float(metric.memory_bytes) for metric in record.curves[0]), default=None)


def _positive(read: Callable[[pb.Job], int]) -> Callable[[JobRecord], float | None]:
    return lambda record: float(read(record.job)) or None


MEASURES: Final[Mapping[str, Measure]] = {
    "bits_per_byte": Measure(True, "bits per byte", _of_best("bits_per_byte")),
    "validation_loss": Measure(True, "nats per token", _of_best("validation_loss")),
    "perplexity": Measure(True, "", _of_best("perplexity")),
    "accuracy": Measure(False, "", _of_best("accuracy")),
    "training_loss": Measure(True, "nats per token", _of_best("training_loss")),
    "generalization_gap": Measure(True, "nats per token", _gap),
    "tokens_per_second": Measure(False, "tokens/s", _speed),
    "duration": Measure(True, "s", _duration),
    "tokens": Measure(True, "tokens", _positive(lambda job: job.progress.tokens)),
    "steps": Measure(True, "steps", _positive(lambda job: job.progress.step)),
    "memory_bytes": Measure(True, "bytes", _memory),
    "parameter_count": Measure(True, "parameters", _positive(lambda job: job.plan.parameter_count)),
}


def check_metric(field: str, name: str) -> None:
    """InvalidArgument, about the request's `field`, where `name` is no measure."""
    if name not in MEASURES:
        raise InvalidArgument.field(field, f"{name[:60]!r} is no metric of jobs; there are {', '.join(MEASURES)}")
