"""What can be changed of a running job, what it makes of the plan, and what a fork takes over."""

import pytest

from octavo.v1 import trainer_pb2 as pb
from services.trainer.live_settings import difference, faults, in_force, inherited

PLANNED = pb.TrainSpec(
    steps=100,
    evaluation_interval_steps=10,
    optimizer=pb.OptimizerSpec(weight_decay=0.1, learning_rate=0.004),
    sample=pb.SampleSpec(prompt="once", length=20, temperature=0.8),
    early_stopping=pb.EarlyStopping(patience=3),
)


def test_without_settings_the_plan_is_in_force():
    assert in_force(PLANNED, pb.LiveSettings()) == PLANNED


def test_settings_take_the_place_of_the_plans_own_and_zero_is_a_value():
    live = pb.LiveSettings(weight_decay=0, steps=200, target_loss=1.5, early_stopping=pb.EarlyStopping())
    spec = in_force(PLANNED, live)
    assert (spec.optimizer.weight_decay, spec.steps, spec.target_loss) == (0, 200, 1.5)
    assert spec.early_stopping.patience == 0
    assert (spec.optimizer.learning_rate, spec.evaluation_interval_steps) == (0.004, 10)
    assert PLANNED.steps == 100


def test_new_prompts_replace_the_planned_one_and_leave_length_and_temperature():
    spec = in_force(PLANNED, pb.LiveSettings(sample=pb.SampleSpec(prompts=["a", "b"])))
    assert (spec.sample.prompt, list(spec.sample.prompts), spec.sample.length) == ("", ["a", "b"], 20)
    assert in_force(PLANNED, pb.LiveSettings(sample=pb.SampleSpec(length=5))).sample.prompt == "once"


@pytest.mark.parametrize(
    ("live", "field"),
    [
        (pb.LiveSettings(learning_rate_scale=0), "learning_rate_scale"),
        (pb.LiveSettings(learning_rate_scale=float("nan")), "learning_rate_scale"),
        (pb.LiveSettings(learning_rate_scale=101), "learning_rate_scale"),
        (pb.LiveSettings(weight_decay=-0.1), "weight_decay"),
        (pb.LiveSettings(evaluation_interval_steps=-1), "evaluation_interval_steps"),
        (pb.LiveSettings(steps=0), "steps"),
        (pb.LiveSettings(target_loss=-1), "target_loss"),
        (pb.LiveSettings(sample=pb.SampleSpec(temperature=-1)), "sample.temperature"),
        (pb.LiveSettings(early_stopping=pb.EarlyStopping(min_delta=0.1)), "early_stopping.patience"),
    ],
)
def test_a_setting_that_cannot_be_honoured_is_named(live, field):
    assert list(faults(live)) == [field]


def test_early_stopping_may_be_switched_off():
    assert not faults(pb.LiveSettings(early_stopping=pb.EarlyStopping()))


def test_a_fork_takes_over_what_it_does_not_change_itself_and_never_an_end():
    live = pb.LiveSettings(learning_rate_scale=0.5, weight_decay=0.2, steps=50, target_loss=1, finish=True)
    assert inherited(live, ["optimizer.matrix_learning_rate", "steps"]) == pb.LiveSettings(
        weight_decay=0.2, target_loss=1
    )
    assert inherited(live, ["optimizer"]) == pb.LiveSettings(steps=50, target_loss=1)


def test_a_change_is_told_in_words():
    before = pb.LiveSettings(weight_decay=0.1, target_loss=1.5)
    after = pb.LiveSettings(weight_decay=0.1, learning_rate_scale=0.5)
    assert difference(before, after) == "learning_rate_scale 0.5, target_loss as planned"
