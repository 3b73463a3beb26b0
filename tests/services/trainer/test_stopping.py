"""When training ends before its last step, and what people are told of it."""

import pytest

from octavo.v1 import trainer_pb2 as pb
from services.trainer.stopping import early_stop, farewell

NOTHING = pb.LiveSettings()


def spec(**changes):
    shape = pb.ScheduleSpec(warmup_steps=10, cooldown_fraction=0.6, final_fraction=0.0)
    return pb.TrainSpec(**({"steps": 1000, "schedule": shape} | changes))


def evaluated(*losses, field="validation_loss"):
    """An evaluation every 10 steps."""
    return {10 * i: pb.Evaluation(**{"step": 10 * i, "validation_loss": 9, field: x}) for i, x in enumerate(losses, 1)}


def stops(spec, evaluations, live=NOTHING):
    """The steps of those evaluations at which training would end."""
    return [step for step in evaluations if early_stop(step, spec, live, evaluations, 1000)]


def test_without_a_rule_nothing_ends_training():
    assert stops(spec(), evaluated(3, 4, 5, 6, 7)) == []


def test_a_target_ends_training_at_the_first_evaluation_that_reaches_it():
    evaluations = evaluated(3, 2.6, 2.5, 2.4)
    assert stops(spec(target_loss=2.5), evaluations) == [30, 40]
    stop = early_stop(30, spec(target_loss=2.5), NOTHING, evaluations, 1000)
    assert stop.reason == pb.TRAINING_STOP_REASON_TARGET_LOSS
    assert "2.5000 is at most the target 2.5" in stop.message
    assert early_stop(31, spec(target_loss=2.5), NOTHING, evaluations, 1000) is None


def test_patience_counts_evaluations_without_an_improvement_by_the_minimum_delta():
    rule = pb.EarlyStopping(patience=2, min_delta=0.1)
    assert stops(spec(early_stopping=rule), evaluated(3, 2.95, 2.85, 2.8, 2.78)) == [50]
    assert stops(spec(early_stopping=rule), evaluated(3, 2.95, 2.91, 2.8)) == [30]


@pytest.mark.parametrize(
    ("metric", "field", "values"),
    [
        (pb.STOPPING_METRIC_BITS_PER_BYTE, "bits_per_byte", (2, 1, 1.5)),
        (pb.STOPPING_METRIC_TRAINING_LOSS, "training_loss", (2, 1, 1)),
        (pb.STOPPING_METRIC_ACCURACY, "accuracy", (0.1, 0.5, 0.4)),
    ],
)
def test_other_metrics_are_watched_in_the_direction_that_is_better(metric, field, values):
    rule = pb.EarlyStopping(patience=1, metric=metric)
    evaluations = evaluated(*values, field=field)
    assert stops(spec(early_stopping=rule), evaluations) == [30]
    assert field in early_stop(30, spec(early_stopping=rule), NOTHING, evaluations, 1000).message


def test_a_loss_that_is_not_a_number_is_no_improvement():
    assert stops(spec(early_stopping=pb.EarlyStopping(patience=2)), evaluated(3, float("nan"), float("nan"))) == [30]


def test_people_end_training_at_once_but_not_after_its_last_step():
    asked = pb.LiveSettings(finish=True)
    assert early_stop(7, spec(), asked, {}, 1000).reason == pb.TRAINING_STOP_REASON_ASKED
    assert early_stop(1000, spec(), asked, {}, 1000) is None
    assert early_stop(700, spec(steps=500), NOTHING, {}, 1000).planned_steps == 1000
    assert early_stop(500, spec(steps=500), NOTHING, {}, 1000) is None


def test_an_early_end_says_that_the_cool_down_was_cut_and_how_to_have_one():
    stop = early_stop(600, spec(), pb.LiveSettings(finish=True), {}, 1000)
    assert "cool-down was cut: the learning rate is still at 67% of its peak" in farewell(stop, spec())
    assert "from step 600 with steps 750" in farewell(stop, spec())
    constant = spec(schedule=pb.ScheduleSpec(cooldown_fraction=0.0))
    assert "cool-down" not in farewell(stop, constant)
