"""What the trainer tells Prometheus: its jobs by state, its queue, the workers it lost, and the runs that live.

Read when scraped. Names of what a process, a system and its hardware use follow the OpenTelemetry conventions
(https://opentelemetry.io/docs/specs/semconv/system/), with our prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from google.protobuf.duration_pb2 import Duration
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from octavo.v1 import trainer_pb2 as pb
from services.trainer.supervisor import Supervisor

_LIVING = (pb.JOB_STATE_QUEUED, pb.JOB_STATE_RUNNING, pb.JOB_STATE_PAUSED)
_PREFIX: Final = "octavo_trainer_job_"

Read = Callable[[pb.Job], float]

# Name, what it says, what of a job has to be there, and how it is read.
_RUN: Final[tuple[tuple[str, str, str, Read], ...]] = (
    ("progress_ratio", "How far the job has come, 0 to 1.", "progress", lambda job: job.progress.fraction),
    ("steps", "Optimizer steps done.", "progress", lambda job: job.progress.step),
    ("eta_seconds", "Expected time to the end; 0 while unknown.", "progress", lambda job: _seconds(job.progress.eta)),
    ("loss", "Training loss of the newest step, nats per token.", "latest_metric", lambda job: job.latest_metric.loss),
    ("learning_rate", "AdamW's learning rate.", "latest_metric", lambda job: job.latest_metric.learning_rate),
    ("gradient_norm", "Before clipping.", "latest_metric", lambda job: job.latest_metric.gradient_norm),
    (
        "step_duration_seconds",
        "Of the newest step.",
        "latest_metric",
        lambda job: _seconds(job.latest_metric.step_duration),
    ),
    ("tokens_per_second", "Of the newest step.", "latest_metric", lambda job: job.latest_metric.tokens_per_second),
    (
        "flops_utilization_ratio",
        "Achieved operations over the most that this machine was measured to reach.",
        "latest_metric",
        lambda job: job.latest_metric.flops_utilization,
    ),
    (
        "update_ratio",
        "Norm of the update over that of the weights.",
        "latest_metric",
        lambda job: job.latest_metric.update_ratio,
    ),
    ("validation_loss", "Nats per token.", "latest_evaluation", lambda job: job.latest_evaluation.validation_loss),
    ("bits_per_byte", "Of the validation text.", "latest_evaluation", lambda job: job.latest_evaluation.bits_per_byte),
    (
        "perplexity",
        "Of the validation part, per token.",
        "latest_evaluation",
        lambda job: job.latest_evaluation.perplexity,
    ),
)
_USAGE: Final[tuple[tuple[str, str, Callable[[pb.ResourceUsage], float]], ...]] = (
    ("process_cpu_utilization", "CPU time of the worker per second.", lambda usage: usage.process_cpu_cores),
    ("process_memory_usage_bytes", "Resident memory of the worker.", lambda usage: usage.process_memory_bytes),
    ("system_cpu_utilization_ratio", "Busy part of all cores, 0 to 1.", lambda usage: usage.cpu_utilization),
    ("system_memory_usage_bytes", "Memory that is not available.", lambda usage: usage.memory_used_bytes),
    ("system_memory_limit_bytes", "Memory of the machine.", lambda usage: usage.memory_total_bytes),
    ("system_filesystem_usage_bytes", "Of the disk with the trainer's data.", lambda usage: usage.disk_used_bytes),
    ("system_filesystem_limit_bytes", "Size of that disk.", lambda usage: usage.disk_total_bytes),
)
_GPU: Final[tuple[tuple[str, str, Callable[[pb.GpuUsage], float]], ...]] = (
    ("hw_gpu_utilization_ratio", "Part of the time in which the GPU computed.", lambda gpu: gpu.utilization),
    ("hw_gpu_memory_usage_bytes", "Memory of the GPU in use.", lambda gpu: gpu.memory_used_bytes),
    ("hw_gpu_memory_limit_bytes", "Memory of the GPU.", lambda gpu: gpu.memory_total_bytes),
    ("hw_temperature_celsius", "Of the GPU.", lambda gpu: gpu.temperature_celsius),
    ("hw_power_watts", "What the GPU draws.", lambda gpu: gpu.power_watts),
)


class JobCollector(Collector):
    """Shows what the supervisor knows; costs nothing between two scrapes."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    def collect(self) -> Iterator[Metric]:
        """The metrics as they are now. May be called from any thread."""
        counts = self._supervisor.counts()
        jobs = GaugeMetricFamily("octavo_trainer_jobs", "Jobs that have not ended, by state.", labels=["state"])
        for state in _LIVING:
            jobs.add_metric([pb.JobState.Name(state).removeprefix("JOB_STATE_").lower()], counts.get(state, 0))
        yield jobs
        yield GaugeMetricFamily(
            "octavo_trainer_workers_limit", "Workers that may run at once.", self._supervisor.max_running_jobs
        )
        yield CounterMetricFamily(
            "octavo_trainer_worker_losses", "Workers that died before their job's end.", self._supervisor.loss_count
        )
        running = self._supervisor.running()
        yield from _runs(running)
        yield from _resources(running)


def _runs(running: Iterable[pb.Job]) -> Iterator[Metric]:
    """The figures of each run; ended ones leave with their job, so that labels stay few."""
    for name, help_text, needed, read in _RUN:
        family = GaugeMetricFamily(_PREFIX + name, help_text, labels=["job"])
        for job in running:
            if job.HasField(needed):  # type: ignore[arg-type]
                family.add_metric([job.name], read(job))
        yield family
    recoveries = CounterMetricFamily(
        f"{_PREFIX}recoveries", "Steps that a run could not do and went on from.", labels=["job", "cause"]
    )
    for job in running:
        causes = [pb.RecoveryCause.Name(one.cause).removeprefix("RECOVERY_CAUSE_").lower() for one in job.recoveries]
        for cause in sorted(set(causes)):
            recoveries.add_metric([job.name, cause], causes.count(cause))
    yield recoveries


def _resources(running: Iterable[pb.Job]) -> Iterator[Metric]:
    """What workers and their machines use."""
    used = [job for job in running if job.HasField("latest_resource_usage")]
    for name, help_text, read in _USAGE:
        family = GaugeMetricFamily(_PREFIX + name, help_text, labels=["job"])
        for job in used:
            family.add_metric([job.name], read(job.latest_resource_usage))
        yield family
    for name, help_text, measure in _GPU:
        family = GaugeMetricFamily(_PREFIX + name, help_text, labels=["job", "gpu"])
        for job in used:
            for gpu in job.latest_resource_usage.gpus:
                family.add_metric([job.name, str(gpu.index)], measure(gpu))
        yield family


def _seconds(duration: Duration) -> float:
    return duration.ToNanoseconds() / 1e9
