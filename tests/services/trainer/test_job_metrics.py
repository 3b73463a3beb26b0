"""What Prometheus is told is what the supervisor knows."""

from prometheus_client import CollectorRegistry

from octavo.v1 import trainer_pb2 as pb
from services.trainer.job_metrics import JobCollector


class Supervisor:
    """The part of a supervisor that is counted."""

    max_running_jobs = 2
    loss_count = 3

    def __init__(self, *running):
        self._running = list(running)

    def counts(self):
        return {pb.JOB_STATE_RUNNING: 1, pb.JOB_STATE_QUEUED: 4}

    def running(self):
        return self._running


def scraped(*running):
    registry = CollectorRegistry()
    registry.register(JobCollector(Supervisor(*running)))
    return {(one.name, *one.labels.values()): one.value for family in registry.collect() for one in family.samples}


def test_jobs_are_counted_by_state_absent_ones_as_zero():
    assert scraped() == {
        ("octavo_trainer_jobs", "queued"): 4,
        ("octavo_trainer_jobs", "running"): 1,
        ("octavo_trainer_jobs", "paused"): 0,
        ("octavo_trainer_workers_limit",): 2,
        ("octavo_trainer_worker_losses_total",): 3,
    }


def test_a_run_tells_its_figures_and_what_its_machine_uses_once_it_has_them():
    gpu = pb.GpuUsage(index=1, utilization=0.9, memory_used_bytes=7, temperature_celsius=60, power_watts=500)
    job = pb.Job(
        name="jobs/j-1",
        progress=pb.JobProgress(fraction=0.5, step=20),
        latest_metric=pb.TrainingMetric(step=20, loss=2.5, gradient_norm=0.3, flops_utilization=0.4, update_ratio=0.01),
        latest_evaluation=pb.Evaluation(validation_loss=2.6, bits_per_byte=3.7),
        latest_resource_usage=pb.ResourceUsage(process_cpu_cores=1.5, memory_used_bytes=9, gpus=[gpu]),
        recoveries=[pb.Recovery(cause=pb.RECOVERY_CAUSE_NOT_FINITE)] * 2,
    )
    seen = scraped(job, pb.Job(name="jobs/j-2"))
    expected = {
        ("progress_ratio", "jobs/j-1"): 0.5,
        ("loss", "jobs/j-1"): 2.5,
        ("gradient_norm", "jobs/j-1"): 0.3,
        ("update_ratio", "jobs/j-1"): 0.01,
        ("flops_utilization_ratio", "jobs/j-1"): 0.4,
        ("bits_per_byte", "jobs/j-1"): 3.7,
        ("process_cpu_utilization", "jobs/j-1"): 1.5,
        ("system_memory_usage_bytes", "jobs/j-1"): 9,
        ("hw_gpu_utilization_ratio", "jobs/j-1", "1"): 0.9,
        ("hw_temperature_celsius", "jobs/j-1", "1"): 60,
        ("hw_power_watts", "jobs/j-1", "1"): 500,
        ("recoveries_total", "jobs/j-1", "not_finite"): 2,
    }
    for (name, *labels), value in expected.items():
        assert seen[(f"octavo_trainer_job_{name}", *labels)] == value
    assert not [key for key in seen if "jobs/j-2" in key and key[0] != "octavo_trainer_job_progress_ratio"]
