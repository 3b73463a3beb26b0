"""All jobs in figures."""

import pytest

from octavo.v1 import trainer_pb2 as pb
from services.trainer.job_statistics import statistics_of

NOW_S = 1_000_000.0


def job(state, *, created=0, start=None, end=None, tokens=0, dataset="tiny", bits=None):
    """A train job on a model `poet`; times in seconds before now."""
    made = pb.Job(state=state, train=pb.TrainSpec(model="models/poet"), progress=pb.JobProgress(tokens=tokens))
    made.plan.train.dataset = f"datasets/{dataset}/versions/1"
    made.create_time.FromSeconds(int(NOW_S - created))
    made.update_time.FromSeconds(int(NOW_S))
    for field, ago_s in (("start_time", start), ("end_time", end)):
        if ago_s is not None:
            getattr(made, field).FromSeconds(int(NOW_S - ago_s))
    if bits is not None:
        made.best_evaluation.bits_per_byte = bits
    return made


def test_jobs_are_counted_by_state_and_kind_and_what_succeeded_is_timed():
    done = [job(pb.JOB_STATE_SUCCEEDED, created=100, start=90, end=90 - took, tokens=100) for took in (10, 30, 50)]
    failed = job(pb.JOB_STATE_FAILED, created=100, start=50, end=45, tokens=5)
    answer = statistics_of([*done, failed, pb.Job(state=pb.JOB_STATE_QUEUED, export=pb.ExportSpec())], 3, NOW_S)
    assert dict(answer.jobs_by_state) == {"JOB_STATE_SUCCEEDED": 3, "JOB_STATE_FAILED": 1, "JOB_STATE_QUEUED": 1}
    assert dict(answer.jobs_by_kind) == {"train": 4, "export": 1}
    assert answer.success_rate == 0.75
    assert (answer.mean_duration.seconds, answer.median_duration.seconds) == (30, 30)
    assert answer.mean_waiting_duration.ToSeconds() == 20
    assert answer.median_waiting_duration.ToSeconds() == 10
    assert answer.total_tokens == 305
    assert answer.max_running_jobs == 3


def test_nothing_is_claimed_of_no_jobs():
    answer = statistics_of([], 1, NOW_S)
    assert not answer.HasField("success_rate")
    assert not answer.HasField("mean_duration")
    assert [one.tokens_per_second for one in answer.throughput] == [0, 0]


def test_throughput_counts_the_part_of_a_job_that_lies_within_the_window():
    long = job(pb.JOB_STATE_SUCCEEDED, start=7200, end=0, tokens=72_000)
    hour, day = statistics_of([long], 1, NOW_S).throughput
    assert (hour.window.seconds, hour.busy_duration.seconds, hour.tokens) == (3600, 3600, 36_000)
    assert (day.window.seconds, day.busy_duration.seconds, day.tokens) == (86_400, 7200, 72_000)
    assert hour.tokens_per_second == day.tokens_per_second == pytest.approx(10)


def test_a_running_job_counts_up_to_its_newest_event_and_an_old_one_not_at_all():
    running = job(pb.JOB_STATE_RUNNING, start=100, tokens=500)
    old = job(pb.JOB_STATE_SUCCEEDED, start=100_000, end=90_000, tokens=10**9)
    hour, day = statistics_of([running, old], 1, NOW_S).throughput
    assert hour.tokens == day.tokens == 500
    assert hour.tokens_per_second == 5


def test_datasets_and_models_have_figures_of_their_own():
    jobs = [
        job(pb.JOB_STATE_SUCCEEDED, start=20, end=10, tokens=7, bits=2.5),
        job(pb.JOB_STATE_FAILED, start=20, end=10, tokens=3, bits=2.25),
        job(pb.JOB_STATE_QUEUED, dataset="other"),
    ]
    answer = statistics_of(jobs, 1, NOW_S)
    tiny = answer.datasets["datasets/tiny"]
    assert (tiny.jobs, tiny.succeeded_jobs, tiny.failed_jobs, tiny.tokens) == (2, 1, 1, 10)
    assert tiny.mean_duration.seconds == 10
    assert tiny.best_bits_per_byte == 2.25
    assert not answer.datasets["datasets/other"].HasField("best_bits_per_byte")
    assert answer.models["models/poet"].jobs == answer.kinds["train"].jobs == 3
