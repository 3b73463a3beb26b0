"""Jobs side by side."""

import pytest

from octavo.errors import InvalidArgument
from octavo.v1 import trainer_pb2 as pb
from services.trainer.job_comparison import check_request, compare, thinned
from services.trainer.job_measures import MEASURES, JobRecord


def record(name, *, losses=(), evaluations=(), step_s=1.0, tokens_per_step=10, **spec):
    """A job with a loss for each step and (step, bits per byte) for each evaluation."""
    job = pb.Job(name=f"jobs/{name}", plan=pb.Plan(train=pb.TrainSpec(**spec)), train=pb.TrainSpec())
    metrics = []
    for step, loss in enumerate(losses, 1):
        metric = pb.TrainingMetric(step=step, loss=loss, tokens=step * tokens_per_step)
        metric.step_duration.FromNanoseconds(int(step_s * 1e9))
        metrics.append(metric)
    looks = [pb.Evaluation(step=step, bits_per_byte=bits, validation_loss=bits / 2) for step, bits in evaluations]
    if looks:
        job.best_evaluation.CopyFrom(min(looks, key=lambda one: one.bits_per_byte))
    job.progress.step, job.progress.tokens = len(metrics), len(metrics) * tokens_per_step
    return JobRecord(job, lambda: (metrics, looks))


def compared(*records, **asked):
    return compare(list(records), pb.CompareJobsRequest(**asked))


def test_only_what_differs_is_listed_and_the_lowest_bits_per_byte_is_best():
    first = record("a", evaluations=[(1, 2.5)], batch_size=8, optimizer=pb.OptimizerSpec(learning_rate=0.5))
    second = record(
        "b", evaluations=[(1, 2.4)], batch_size=8, optimizer=pb.OptimizerSpec(learning_rate=0.25), threads=2
    )
    answer = compared(first, second)
    differences = {one.field: list(one.values) for one in answer.differences}
    assert differences == {"train.optimizer.learning_rate": ["0.5", "0.25"], "train.threads": ["", "2"]}
    assert answer.best_job == "jobs/b"


def test_each_metric_has_its_own_winner_with_what_the_others_lack():
    slow = record("slow", losses=[3, 2], evaluations=[(2, 2.0)], step_s=2.0)
    fast = record("fast", losses=[3, 2], evaluations=[(2, 2.5)], step_s=0.5)
    without = record("without")
    answer = compared(slow, fast, without, metrics=["bits_per_byte", "tokens_per_second"])
    bits, speed = answer.metrics
    assert (bits.metric, bits.best_job, bits.is_lower_better) == ("bits_per_byte", "jobs/slow", True)
    assert (speed.metric, speed.best_job, speed.is_lower_better) == ("tokens_per_second", "jobs/fast", False)
    assert [one.value for one in speed.values[:2]] == [5.0, 20.0]
    assert bits.values[1].difference == 0.5
    assert bits.values[1].relative_difference == 0.25
    assert not bits.values[2].HasField("value")
    assert answer.best_job == "jobs/slow"


def test_without_names_every_metric_is_compared_and_the_first_decides():
    answer = compared(record("a", evaluations=[(1, 2.0)]), record("b", evaluations=[(1, 1.0)]))
    assert [one.metric for one in answer.metrics] == list(MEASURES)
    assert answer.best_job == "jobs/b"


def test_the_verdict_says_by_how_much_and_when_the_winner_was_where_the_next_best_ended():
    winner = record("good", losses=[3, 2, 1], evaluations=[(1, 3.0), (2, 1.9), (3, 1.5)], step_s=2.0)
    runner = record("fair", losses=[3, 2, 1], evaluations=[(3, 2.0)])
    verdict = compared(runner, winner).verdict
    assert verdict == (
        "jobs/good is best by bits_per_byte: 1.5 bits per byte, 25.0% below jobs/fair (2), "
        "which it passed by step 2, after 20 tokens and 4.0 s of training"
    )
    assert compared(record("a"), record("b")).verdict == "none of the jobs has bits_per_byte yet"
    assert compared(record("a"), runner).verdict.endswith("the others have none yet")


@pytest.mark.parametrize(
    ("axis", "places"),
    [
        (pb.CURVE_AXIS_UNSPECIFIED, ([1, 2, 3, 4], [1, 2])),
        (pb.CURVE_AXIS_TOKENS, ([10, 20, 30, 40], [20, 40])),
        (pb.CURVE_AXIS_TIME, ([1, 2, 3, 4], [2, 3, 4])),
    ],
)
def test_curves_of_different_runs_share_their_places(axis, places):
    long = record("long", losses=[4, 3, 2, 1])
    short = record("short", losses=[4, 2], step_s=2.0, tokens_per_step=20)
    first, second = compared(long, short, axis=axis).jobs
    assert [point.x for point in first.training_curve] == places[0]
    assert [point.y for point in first.training_curve] == [4, 3, 2, 1]
    shared = [point.x for point in second.training_curve]
    assert shared == [x for x in places[0] if places[1][0] <= x <= places[1][-1]]
    assert second.training_curve[0].y == 4
    assert second.training_curve[-1].y == 2


def test_evaluations_lie_where_their_steps_do():
    one = record("one", losses=[3, 2], evaluations=[(2, 2.0)], step_s=1.5)
    curve = compared(one, record("other"), axis=pb.CURVE_AXIS_TIME).jobs[0].validation_curve
    assert [(point.x, point.y) for point in curve] == [(3.0, 1.0)]


@pytest.mark.parametrize(("count", "points"), [(0, 5), (5, 5), (6, 5), (1000, 7), (1000, 1)])
def test_thin_curves_keep_their_last_point(count, points):
    metrics = [pb.TrainingMetric(step=step) for step in range(1, count + 1)]
    steps = [metric.step for metric in thinned(metrics, points)]
    assert len(steps) == min(count, points)
    assert steps == sorted(set(steps))
    assert steps[-1:] == ([count] if count else [])
    shared = compared(record("a", losses=range(count)), record("b"), max_points=points).jobs[0].training_curve
    assert len(shared) == min(count, points)


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"names": []}, "names"),
        ({"names": ["jobs/a"]}, "names"),
        ({"names": ["jobs/a", "jobs/a"]}, "names"),
        ({"names": [f"jobs/{chr(97 + i)}" for i in range(21)]}, "names"),
        ({"names": ["jobs/a", "jobs/b"], "metrics": ["loss"]}, "metrics[0]"),
        ({"names": ["jobs/a", "jobs/b"], "axis": 9}, "axis"),
        ({"names": ["jobs/a", "jobs/b"], "max_points": -1}, "max_points"),
    ],
)
def test_what_cannot_be_compared_is_refused_by_field(asked, field):
    with pytest.raises(InvalidArgument) as refusal:
        check_request(pb.CompareJobsRequest(**asked))
    assert list(refusal.value.violations) == [field]
