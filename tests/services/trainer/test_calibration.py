"""A time budget becomes a number of steps that fits it, with looks that do not eat it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.v1 import trainer_pb2 as pb
from services.trainer.calibration import Pace, budgeted_plan
from services.trainer.machine import Machine
from services.trainer.plan import resolve_tokenizer
from services.trainer.text_facts import TextFacts

FACTS = TextFacts(train_tokens=1_000_000, validation_tokens=100_000, vocab_size=65)
MACHINE = Machine(device="cpu", threads=2, has_bf16=False, memory_bytes=8 << 30)


def spec(budget_s, **changes):
    asked = pb.TrainSpec(dataset="datasets/tiny", model="models/poet", **changes)
    asked.time_budget.FromNanoseconds(int(budget_s * 1e9))
    asked.tokenizer.CopyFrom(resolve_tokenizer(asked.tokenizer, 1_100_000))
    return asked


@settings(deadline=None, max_examples=60)
@given(st.floats(5, 10_000), st.floats(0.001, 1.0), st.floats(0.01, 20.0))
def test_steps_and_looks_together_fit_the_budget_and_most_of_it_is_training(budget_s, step_s, look_s):
    fixed = budgeted_plan(spec(budget_s), FACTS, MACHINE, Pace(step_s=step_s, look_s=look_s))
    steps, interval = fixed.train.steps, fixed.train.evaluation_interval_steps
    looks = 1 + (steps - 1) // interval
    assert 1 <= looks <= 10
    assert steps * step_s <= budget_s or steps == 1
    if look_s < 0.1 * budget_s:
        assert steps * step_s + looks * look_s <= budget_s + step_s
        assert steps * step_s >= 0.85 * budget_s - 2 * step_s


@pytest.mark.parametrize("interval", [0, 7])
def test_an_interval_that_people_set_stays(interval):
    asked = spec(60, evaluation_interval_steps=interval)
    fixed = budgeted_plan(asked, FACTS, MACHINE, Pace(step_s=0.05, look_s=1.0))
    assert fixed.train.evaluation_interval_steps == interval
    assert 60 * 0.2 / 0.05 - 1 <= fixed.train.steps <= 60 / 0.05
