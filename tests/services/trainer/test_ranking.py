"""The best configuration so far is the best on average, over the seeds it was tried with."""

import pytest

from octavo.errors import InvalidArgument, NotFound
from octavo.v1 import trainer_pb2 as pb
from services.trainer.configuration import configuration_id
from services.trainer.job_measures import JobRecord
from services.trainer.ranking import best_configuration, check_request


def record(name, bits, *, version=1, state=pb.JOB_STATE_SUCCEEDED, **spec):
    train = pb.TrainSpec(dataset=f"datasets/tiny/versions/{version}", **spec)
    job = pb.Job(name=f"jobs/{name}", state=state, plan=pb.Plan(train=train), train=train)
    job.configuration_id = configuration_id(train)
    if bits is not None:
        job.best_evaluation.bits_per_byte = bits
        job.best_evaluation.accuracy = bits / 10
    return JobRecord(job, lambda: ([], []))


def best(*records, dataset="datasets/tiny", **asked):
    return best_configuration(records, pb.GetBestConfigurationRequest(dataset=dataset, **asked))


def test_seeds_of_one_configuration_count_together():
    lucky = record("lucky", 1.0, seed=1, dropout=0.5)
    unlucky = record("unlucky", 3.0, seed=2, dropout=0.5)
    steady = record("steady", 1.5, seed=1, dropout=0.1)
    answer = best(lucky, unlucky, steady, max_others=5)
    assert list(answer.best.jobs) == ["jobs/steady"]
    assert not answer.best.HasField("standard_deviation")
    (other,) = answer.others
    assert list(other.jobs) == ["jobs/lucky", "jobs/unlucky"]
    assert other.mean == 2.0
    assert other.standard_deviation == pytest.approx(2**0.5)
    assert other.train.seed == 1


def test_only_the_newest_version_of_a_dataset_counts_unless_one_is_named():
    old, new = record("old", 1.0, version=2), record("new", 2.0, version=10)
    assert best(old, new).dataset == "datasets/tiny/versions/10"
    assert list(best(old, new, dataset="datasets/tiny/versions/2").best.jobs) == ["jobs/old"]


def test_jobs_that_failed_or_were_never_evaluated_do_not_count():
    failed = record("failed", 0.5, state=pb.JOB_STATE_FAILED)
    waiting = record("waiting", None, state=pb.JOB_STATE_QUEUED, version=3)
    running = record("running", 2.0, state=pb.JOB_STATE_RUNNING)
    assert list(best(failed, waiting, running).best.jobs) == ["jobs/running"]
    with pytest.raises(NotFound, match="bits_per_byte"):
        best(failed, waiting)


def test_more_accuracy_is_better():
    answer = best(record("low", 1.0, dropout=0.1), record("high", 2.0, dropout=0.2), metric="accuracy")
    assert (list(answer.best.jobs), answer.metric) == (["jobs/high"], "accuracy")


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"dataset": "tiny"}, "dataset"),
        ({"dataset": ""}, "dataset"),
        ({"dataset": "datasets/tiny", "metric": "luck"}, "metric"),
        ({"dataset": "datasets/tiny", "max_others": 101}, "max_others"),
    ],
)
def test_what_cannot_be_ranked_is_refused_by_field(asked, field):
    with pytest.raises(InvalidArgument) as refusal:
        check_request(pb.GetBestConfigurationRequest(**asked))
    assert list(refusal.value.violations) == [field]


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "models/other"},
        {"seed": 7},
        {"threads": 9},
        {"processes": 4},
        {"device": "cuda"},
        {"aliases": ["champion"]},
        {"checkpoints": pb.CheckpointPolicy(keep_latest=5)},
        {"sample": pb.SampleSpec(prompt="x")},
        {"microbatch_size": 2},
        {"evaluation_interval_steps": 5},
        {"price_per_hour": 3.0},
    ],
)
def test_names_chance_and_place_do_not_change_a_configuration(changes):
    assert configuration_id(pb.TrainSpec(batch_size=8, **changes)) == configuration_id(pb.TrainSpec(batch_size=8))


@pytest.mark.parametrize(
    "changes",
    [
        {"dataset": "datasets/tiny/versions/2"},
        {"batch_size": 9},
        {"steps": 1},
        {"dropout": 0.0},
        {"optimizer": pb.OptimizerSpec(beta1=0.5)},
        {"early_stopping": pb.EarlyStopping(patience=2)},
    ],
)
def test_what_is_learnt_from_changes_it(changes):
    assert configuration_id(pb.TrainSpec(**changes)) != configuration_id(pb.TrainSpec())


def test_how_often_one_looks_matters_only_to_runs_that_may_stop_early():
    spec = pb.TrainSpec(early_stopping=pb.EarlyStopping(patience=2))
    often = pb.TrainSpec(early_stopping=spec.early_stopping, evaluation_interval_steps=5)
    assert configuration_id(spec) != configuration_id(often)


def test_identifiers_stay_what_they_were():
    """Written down: a change of these values forgets every best configuration there is."""
    assert configuration_id(pb.TrainSpec()) == "c-44136fa355b3"
    assert configuration_id(pb.TrainSpec(dropout=0.1, steps=100)) == "c-6fbe47f8b3d6"
