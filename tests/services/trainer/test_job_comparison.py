"""Jobs side by side and in figures."""

import pytest

from octavo.errors import InvalidArgument
from octavo.v1 import trainer_pb2 as pb
from services.trainer.job_comparison import check_request, compare, statistics_of, thinned


def job(name, bits, **spec):
    plan = pb.Plan(train=pb.TrainSpec(**spec))
    return pb.Job(name=name, plan=plan, best_evaluation=pb.Evaluation(bits_per_byte=bits), train=pb.TrainSpec())


def test_only_what_differs_is_listed_and_the_lowest_bits_per_byte_is_best():
    first = job("jobs/a", 2.5, batch_size=8, seed=1, optimizer=pb.OptimizerSpec(learning_rate=0.5))
    second = job("jobs/b", 2.4, batch_size=8, seed=1, optimizer=pb.OptimizerSpec(learning_rate=0.25), threads=2)
    answer = compare([first, second], [([], []), ([], [])], 0)
    differences = {one.field: list(one.values) for one in answer.differences}
    assert differences == {"train.optimizer.learning_rate": ["0.5", "0.25"], "train.threads": ["", "2"]}
    assert answer.best_job == "jobs/b"


@pytest.mark.parametrize(("count", "points"), [(0, 5), (5, 5), (6, 5), (1000, 7), (1000, 1)])
def test_thin_curves_keep_their_last_point(count, points):
    metrics = [pb.TrainingMetric(step=step) for step in range(1, count + 1)]
    steps = [metric.step for metric in thinned(metrics, points)]
    assert len(steps) == min(count, points)
    assert steps == sorted(set(steps))
    assert steps[-1:] == ([count] if count else [])


@pytest.mark.parametrize("names", [[], ["jobs/a"], ["jobs/a", "jobs/a"], [f"jobs/{chr(97 + i)}" for i in range(21)]])
def test_too_few_too_many_or_doubled_names_are_refused(names):
    with pytest.raises(InvalidArgument):
        check_request(pb.CompareJobsRequest(names=names))


def test_statistics_count_by_state_and_measure_what_succeeded():
    done = pb.Job(state=pb.JOB_STATE_SUCCEEDED, train=pb.TrainSpec(), progress=pb.JobProgress(tokens=100))
    done.start_time.FromSeconds(10)
    done.end_time.FromSeconds(40)
    failed = pb.Job(state=pb.JOB_STATE_FAILED, train=pb.TrainSpec(), progress=pb.JobProgress(tokens=5))
    answer = statistics_of([done, failed], 3)
    assert dict(answer.jobs_by_state) == {"JOB_STATE_SUCCEEDED": 1, "JOB_STATE_FAILED": 1}
    assert dict(answer.jobs_by_kind) == {"train": 2}
    assert answer.success_rate == 0.5
    assert answer.mean_duration.seconds == 30
    assert answer.total_tokens == 105
    assert not statistics_of([], 1).HasField("success_rate")
