"""A verdict follows from the figures, with its evidence and something to do."""

import math

import pytest

from octavo.errors import FailedPrecondition
from octavo.v1 import errors_pb2
from octavo.v1 import trainer_pb2 as pb
from services.trainer.diagnosis import diagnose


def job(**fields):
    architecture = pb.Architecture(vocab_size=65)
    return pb.Job(
        name="jobs/j", plan=pb.Plan(train=pb.TrainSpec(architecture=architecture), total_steps=2000), **fields
    )


def metrics(losses, memory=None):
    return [
        pb.TrainingMetric(step=step, loss=loss, memory_bytes=memory(step) if memory else 0)
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
    assert verdicts(job(), metrics(FALLING), [evaluation(100, 3.0), evaluation(200, 2.9, 2.4)]) == ["OVERFITTING"]
    assert verdicts(job(), metrics(FALLING), [evaluation(100, 2.8), evaluation(200, 2.95)]) == ["OVERFITTING"]


def test_good_losses_are_ready_and_better_ones_to_be_deployed():
    assert verdicts(job(), metrics(FALLING), [evaluation(100, 2.4)]) == ["READY"]
    assert verdicts(job(), metrics(FALLING), [evaluation(100, 1.9)]) == ["DEPLOY"]


def test_no_gain_for_a_thousand_steps_is_a_plateau():
    evaluations = [evaluation(step, 2.7) for step in (500, 1000, 1500, 2000)]
    assert verdicts(job(), metrics([2.7] * 2000), evaluations) == ["PLATEAU"]


def test_memory_that_only_grows_is_a_leak():
    assert verdicts(job(), metrics(FALLING * 2, lambda step: 10**8 + step * 10**6), [])[0] == "MEMORY_LEAK"
    assert verdicts(job(), metrics(FALLING * 2, lambda step: 10**8), []) != ["MEMORY_LEAK"]
