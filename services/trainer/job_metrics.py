"""What the trainer tells Prometheus: its jobs by state, its queue and the workers it lost. Read when scraped."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from octavo.v1 import trainer_pb2 as pb
from services.trainer.supervisor import Supervisor

_LIVING = (pb.JOB_STATE_QUEUED, pb.JOB_STATE_RUNNING, pb.JOB_STATE_PAUSED)


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
