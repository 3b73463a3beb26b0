"""Estimated times are those that were measured, within a fifth; and a plan's time is that of its parts."""

import pytest

from octavo.v1 import trainer_pb2 as pb
from services.trainer.machine import Machine
from services.trainer.plan import architecture_of, plan, resolve
from services.trainer.text_facts import TextFacts
from services.trainer.time_estimate import estimated_times

ONE = Machine(device="cpu", threads=1, has_bf16=True, memory_bytes=24 << 30, cores=2)


def text(vocab_size):
    return TextFacts(train_tokens=1_003_854, validation_tokens=20_000, vocab_size=vocab_size)


def times_of(machine=ONE, vocab_size=65, **fields):
    spec = resolve(pb.TrainSpec(steps=100, **fields), text(vocab_size), machine)
    return estimated_times(spec, architecture_of(spec), text(vocab_size), machine, None)


@pytest.mark.parametrize(
    ("size", "vocab_size", "precision", "step_s"),
    [
        (2, 65, pb.TRAINING_PRECISION_BF16, 0.0176),
        (4, 65, pb.TRAINING_PRECISION_BF16, 0.0747),
        (4, 4096, pb.TRAINING_PRECISION_BF16, 0.0997),
        (6, 65, pb.TRAINING_PRECISION_BF16, 0.4277),
        (8, 65, pb.TRAINING_PRECISION_BF16, 1.486),
        (4, 65, pb.TRAINING_PRECISION_FP32, 0.1885),
    ],
)
def test_a_step_takes_what_one_thread_was_seen_to_take(size, vocab_size, precision, step_s):
    assert times_of(size=size, vocab_size=vocab_size, precision=precision).step_s == pytest.approx(step_s, rel=0.2)


def test_a_second_thread_does_nine_tenths_of_the_first():
    two = Machine(device="cpu", threads=2, has_bf16=True, memory_bytes=24 << 30, cores=2)
    assert times_of(two, size=4).step_s == pytest.approx(0.0394, rel=0.2)
    assert times_of(two, size=4, threads=1).step_s == times_of(size=4).step_s
    assert times_of(two, size=4, threads=64).step_s == times_of(two, size=4).step_s


@pytest.mark.parametrize(("size", "evaluation_s"), [(4, 0.196), (6, 0.540), (8, 1.089)])
def test_an_evaluation_takes_what_it_was_seen_to_take(size, evaluation_s):
    assert times_of(size=size).evaluation_s == pytest.approx(evaluation_s, rel=0.2)


def test_the_time_of_a_plan_is_that_of_its_phases_and_a_budget_holds_steps_and_looks():
    answer = plan(pb.TrainSpec(), text(65), ONE)
    phases = {one.phase: one.duration.ToNanoseconds() / 1e9 for one in answer.phases}
    assert set(phases) == {pb.JOB_PHASE_PREPARE, pb.JOB_PHASE_TRAIN, pb.JOB_PHASE_EXPORT}
    assert sum(phases.values()) == pytest.approx(answer.estimated_duration.ToNanoseconds() / 1e9, abs=1e-6)
    budget = pb.TrainSpec()
    budget.time_budget.FromSeconds(60)
    budgeted = {one.phase: one.duration.ToNanoseconds() / 1e9 for one in plan(budget, text(65), ONE).phases}
    assert pb.JOB_PHASE_CALIBRATE in budgeted
    assert budgeted[pb.JOB_PHASE_TRAIN] == pytest.approx(60, rel=0.05)
