"""What Prometheus is told is what the supervisor knows."""

from prometheus_client import CollectorRegistry

from octavo.v1 import trainer_pb2 as pb
from services.trainer.job_metrics import JobCollector


class Supervisor:
    """The part of a supervisor that is counted."""

    max_running_jobs = 2
    loss_count = 3

    def counts(self):
        return {pb.JOB_STATE_RUNNING: 1, pb.JOB_STATE_QUEUED: 4}


def test_jobs_are_counted_by_state_absent_ones_as_zero():
    registry = CollectorRegistry()
    registry.register(JobCollector(Supervisor()))
    seen = {(one.name, *one.labels.values()): one.value for family in registry.collect() for one in family.samples}
    assert seen == {
        ("octavo_trainer_jobs", "queued"): 4,
        ("octavo_trainer_jobs", "running"): 1,
        ("octavo_trainer_jobs", "paused"): 0,
        ("octavo_trainer_workers_limit",): 2,
        ("octavo_trainer_worker_losses_total",): 3,
    }
