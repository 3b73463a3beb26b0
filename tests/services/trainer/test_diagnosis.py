"""A verdict follows from the figures, with its evidence and something to do."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.errors import FailedPrecondition
from octavo.v1 import errors_pb2
from octavo.v1 import trainer_pb2 as pb
from services.trainer.diagnosis import diagnose, spikes


def job(**fields):
    train = pb.TrainSpec(
        architecture=pb.Architecture(vocab_size=65),
        batch_size=64,
        microbatch_size=64,
        dropout=0.1,
        optimizer=pb.OptimizerSpec(learning_rate=0.004, matrix_learning_rate=0.02),
    )
    return pb.Job(name="jobs/j", plan=pb.Plan(train=train, total_steps=2000), **fields)


def metrics(losses, memory=None):
    return [
        pb.TrainingMetric(step=step, loss=loss, gradient_norm=0.5, memory_bytes=memory(step) if memory else 0)
        for step, loss in enumerate(losses, 1)
    ]


def evaluation(step, validation, training=None):
    return pb.Evaluation(
        step=step,
        validation_loss=validation,
        training_loss=validation if training is None else training,
        bits_per_byte=validation / math.log(2),
        perplexity=math.exp(validation),
    )


FALLING = [4.2 * 0.999**step for step in range(500)]
LONG = FALLING + FALLING[-1:] * 500


def verdicts(*arguments):
    diagnosis = diagnose(*arguments)
    assert all(finding.evidence and finding.advice for finding in diagnosis.findings)
    found = [
        pb.DiagnosisVerdict.Name(finding.verdict).removeprefix("DIAGNOSIS_VERDICT_") for finding in diagnosis.findings
    ]
    assert diagnosis.verdict == (diagnosis.findings[0].verdict if found else 0)
    return found


def test_too_little_is_said_to_be_too_little():
    assert verdicts(job(), [], []) == []
    assert verdicts(job(), metrics([4.2] * 5), []) == []


def test_a_falling_loss_is_learning():
    assert verdicts(job(), metrics(FALLING), []) == ["LEARNING"]


def test_a_loss_that_stays_at_a_guess_is_not_learning():
    assert verdicts(job(), metrics([4.1] * 1200), []) == ["NOT_LEARNING"]


@pytest.mark.parametrize("losses", [[*FALLING, math.nan], [*FALLING, *[9.0] * 5]])
def test_a_spike_or_a_loss_that_is_no_number_is_unstable(losses):
    assert verdicts(job(), metrics(losses), [])[0] == "UNSTABLE"


def test_a_job_that_diverged_is_unstable():
    error = FailedPrecondition(errors_pb2.REASON_TRAINING_DIVERGED, "the loss is nan").to_status()
    assert verdicts(job(error=error), metrics(FALLING), [])[0] == "UNSTABLE"


def test_validation_far_above_training_or_rising_is_overfitting():
    for evaluations in (
        [evaluation(100, 3.0), evaluation(200, 2.9, 2.4)],
        [evaluation(100, 2.8), evaluation(200, 2.95)],
    ):
        assert verdicts(job(), metrics(FALLING), evaluations) == ["OVERFITTING", "TRAIN_LONGER"]


@pytest.mark.parametrize(
    ("validation", "level", "verdict"),
    [
        (3.1, "NOT_READY", "LEARNING"),
        (2.9, "TRAIN_LONGER", "TRAIN_LONGER"),
        (2.51, "TRAIN_LONGER", "TRAIN_LONGER"),
        (2.4, "READY", "READY"),
        (2.01, "READY", "READY"),
        (1.9, "DEPLOY", "DEPLOY"),
        (math.nan, "NOT_READY", "LEARNING"),
    ],
)
def test_the_ladder_of_losses_says_how_far_a_run_is(validation, level, verdict):
    assert verdicts(job(), metrics(FALLING), [evaluation(100, validation)]) == [verdict]
    readiness = diagnose(job(), metrics(FALLING), [evaluation(100, validation)]).readiness
    assert readiness.level == pb.ReadinessLevel.Value(f"READINESS_LEVEL_{level}")
    assert len(readiness.evidence) == 3
    assert readiness.advice


def test_the_ladder_is_the_same_for_every_vocabulary():
    # 7.2 nats for a token of three bytes are as good as 2.4 for a character.
    coarse = pb.Evaluation(step=9, validation_loss=7.2, bits_per_byte=2.4 / math.log(2), perplexity=math.exp(7.2))
    assert diagnose(job(), metrics(FALLING), [coarse]).readiness.level == pb.READINESS_LEVEL_READY


def test_a_run_whose_memory_grows_is_not_ready():
    found = diagnose(job(), metrics(LONG, lambda step: 10**8 + step * 10**6), [evaluation(100, 1.9)])
    assert found.readiness.level == pb.READINESS_LEVEL_TRAIN_LONGER
    assert not found.readiness.is_memory_stable


def test_no_gain_for_a_thousand_steps_is_a_plateau():
    evaluations = [evaluation(step, 2.7) for step in (500, 1000, 1500, 2000)]
    assert verdicts(job(), metrics([2.7] * 2000), evaluations) == ["PLATEAU", "TRAIN_LONGER"]


def test_one_that_is_good_enough_hears_of_that_before_its_plateau():
    evaluations = [evaluation(step, 1.7) for step in (500, 1000, 1500, 2000)]
    assert verdicts(job(), metrics([1.7] * 2000), evaluations) == ["DEPLOY", "PLATEAU"]


def test_memory_that_only_grows_is_a_leak():
    assert verdicts(job(), metrics(LONG, lambda step: 10**8 + step * 10**6), [])[0] == "MEMORY_LEAK"
    assert verdicts(job(), metrics(LONG, lambda step: 10**8), []) != ["MEMORY_LEAK"]


def test_a_step_in_the_growth_of_memory_is_no_leak_nor_is_a_new_worker_that_fills_up():
    assert "MEMORY_LEAK" not in verdicts(job(), metrics(LONG, lambda step: 10**9 if step > 600 else 5 * 10**8), [])
    sawtooth = metrics(LONG, lambda step: 10**8 + (step % 500) * 10**6)
    assert "MEMORY_LEAK" not in verdicts(job(), sawtooth[:600], [])


def test_a_leak_is_told_with_its_rate_and_where_it_ends():
    (leak, *_) = diagnose(job(), metrics(LONG, lambda step: 10**8 + step * 10**6), []).findings
    assert "953.7 MiB per 1000 steps" in leak.evidence
    assert "at the last step" in leak.evidence


def test_a_run_that_went_back_is_unstable_and_told_lower_rates_than_it_has():
    recovery = pb.Recovery(
        cause=pb.RECOVERY_CAUSE_NOT_FINITE, failed_step=400, step=380, learning_rate_factor=0.5, loss=math.nan
    )
    finding = diagnose(job(recoveries=[recovery]), metrics(FALLING), []).findings[0]
    assert finding.verdict == pb.DIAGNOSIS_VERDICT_UNSTABLE
    assert finding.step == 400
    assert "0.5 of the planned" in finding.evidence
    assert dict(finding.settings) == {"optimizer.learning_rate": "0.001", "optimizer.matrix_learning_rate": "0.005"}


def test_a_run_that_lacked_memory_is_told_the_microbatch_that_fits():
    recovery = pb.Recovery(
        cause=pb.RECOVERY_CAUSE_OUT_OF_MEMORY, failed_step=4, step=3, learning_rate_factor=1, microbatch_size=16
    )
    finding = diagnose(job(recoveries=[recovery]), metrics(FALLING), []).findings[0]
    assert finding.verdict == pb.DIAGNOSIS_VERDICT_OUT_OF_MEMORY
    assert finding.settings["microbatch_size"] == "16"


def test_single_losses_far_above_the_others_are_spikes():
    losses = list(FALLING)
    for step in (200, 201, 400):
        losses[step] += 1.5
    found = next(one for one in diagnose(job(), metrics(losses), []).findings)
    assert found.verdict == pb.DIAGNOSIS_VERDICT_LOSS_SPIKES
    assert found.evidence.startswith("2 spikes")
    assert found.step == 401


@given(st.lists(st.floats(-0.1, 0.1), min_size=120, max_size=200))
def test_ordinary_noise_has_no_spikes(noise):
    assert spikes([3.0 + one for one in noise]) == []


def with_norms(norms):
    return [pb.TrainingMetric(step=step, loss=3.0, gradient_norm=norm) for step, norm in enumerate(norms, 1)]


def test_a_norm_that_grows_tenfold_is_an_exploding_gradient():
    assert "EXPLODING_GRADIENTS" in verdicts(job(), with_norms([0.5] * 200 + [9.0] * 10), [])
    assert "EXPLODING_GRADIENTS" not in verdicts(job(), with_norms([0.5] * 200 + [9.0] * 3 + [0.5] * 7), [])


def test_a_norm_of_nothing_is_a_dead_gradient():
    assert "DEAD_GRADIENTS" in verdicts(job(), with_norms([0.5] * 100 + [0.0] * 50), [])


def signs(step, dead=(), ratio=0.01):
    part = pb.PartVitals(part="blocks.1", weight_norm=1, gradient_norm=1, update_ratio=ratio, dead_parameters=dead)
    return pb.TrainingMetric(
        step=step, loss=3.0, gradient_norm=0.5, learning_rate=0.004, update_ratio=ratio, parts=[part]
    )


def test_parameters_without_gradient_twice_in_a_row_are_dead():
    always = [signs(50, ["blocks.1.up"]), signs(100, ["blocks.1.up", "blocks.1.qkv"])]
    assert "DEAD_GRADIENTS" in verdicts(job(), always, [])
    once = [signs(50, ["blocks.1.up"]), signs(100, ["blocks.1.qkv"])]
    assert "DEAD_GRADIENTS" not in verdicts(job(), once, [])


@pytest.mark.parametrize(("ratio", "is_found"), [(0.5, True), (0.01, False), (1e-8, True)])
def test_updates_are_held_against_the_weights(ratio, is_found):
    assert ("UPDATES_OUT_OF_PROPORTION" in verdicts(job(), [signs(50, ratio=ratio)], [])) == is_found
