"""Turns a time budget into steps: measures what a step and a look at the run cost here and now, once per job.

The budget is wall-clock time of training with its evaluations and samples; preparing, exporting and registering come
on top. Looks are made rarer where they would eat the budget, so that a short run still spends it on learning.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Final, Self

from octavo.v1 import trainer_pb2 as pb
from services.trainer.loop import Training
from services.trainer.machine import Machine
from services.trainer.plan import plan
from services.trainer.text_facts import TextFacts

# Part of a budget that evaluations and samples may take where their interval is left to us.
_LOOKING: Final = 0.1
_MOST_LOOKS: Final = 10
# Where people set the interval themselves, training still gets at least the rest of this.
_MOST_LOOKING: Final = 0.8
# Part of a short budget that measuring a step may take beside it; a second is enough.
_CALIBRATING: Final = 0.05
# Enough of a sample to know what a token costs.
_TRIED_TOKENS: Final = 16


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds that a step, and an evaluation with its sample, take on this machine now."""

    step_s: float
    look_s: float

    @classmethod
    def measure(cls, training: Training, prompts: list[list[int]], *, budget_s: float) -> Self:
        """Measured on a run that is thrown away afterwards, in little time beside the budget."""
        step_s = training.measure_step_s(at_least_s=min(1.0, _CALIBRATING * budget_s))
        evaluation_s = training.evaluate(0).duration.ToNanoseconds() / 1e9
        sample = training.spec.sample
        start = time.perf_counter()
        if sample.length:
            training.sample(prompts[0], max_tokens=_TRIED_TOKENS, temperature=sample.temperature, seed=0)
        token_s = (time.perf_counter() - start) / _TRIED_TOKENS
        return cls(step_s=step_s, look_s=evaluation_s + token_s * sample.length * len(prompts))


def budgeted_plan(spec: pb.TrainSpec, facts: TextFacts, machine: Machine, pace: Pace) -> pb.Plan:
    """The plan that ends with the time budget of `spec`."""
    budget_s = spec.time_budget.ToNanoseconds() / 1e9
    chosen = pb.TrainSpec()
    chosen.CopyFrom(spec)
    if spec.HasField("evaluation_interval_steps"):
        draft = plan(spec, facts, machine, step_s=pace.step_s)
        looks = _looks(draft.total_steps, spec.evaluation_interval_steps)
    else:
        looks = max(1, min(_MOST_LOOKS, int(_LOOKING * budget_s / max(1e-9, pace.look_s))))
    spent_s = min(looks * pace.look_s, _MOST_LOOKING * budget_s)
    if not spec.HasField("evaluation_interval_steps"):
        steps = plan(spec, facts, machine, step_s=pace.step_s, spent_s=spent_s).total_steps
        chosen.evaluation_interval_steps = math.ceil(steps / looks)
    return plan(chosen, facts, machine, step_s=pace.step_s, spent_s=spent_s)


def _looks(steps: int, interval: int) -> int:
    """How often a run is evaluated, its end included."""
    return 1 + (steps - 1) // interval if interval else 1
