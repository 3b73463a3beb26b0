"""When training ends before its last step: a target reached, no improvement, or people who ask for it.

A pure function of the settings in force and the evaluations so far: a resumed run ends at the same step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from octavo.v1 import trainer_pb2 as pb
from services.trainer import schedule

_NAMES: Final = {
    pb.STOPPING_METRIC_VALIDATION_LOSS: "validation_loss",
    pb.STOPPING_METRIC_BITS_PER_BYTE: "bits_per_byte",
    pb.STOPPING_METRIC_TRAINING_LOSS: "training_loss",
    pb.STOPPING_METRIC_ACCURACY: "accuracy",
}
# A cool-down over a fifth of all steps regains most of what a long one would have.
_SHORT_COOLDOWN: Final = 0.2


def early_stop(
    step: int,
    spec: pb.TrainSpec,
    live: pb.LiveSettings,
    evaluations: Mapping[int, pb.Evaluation],
    planned_steps: int,
) -> pb.TrainingStop | None:
    """Why training ends after `step`, 1 or more, if not by having come to the last one.

    `spec` is the one in force, `planned_steps` what the plan had. Losses are judged at the step of an evaluation only.
    """
    if step == spec.steps:
        return None
    if live.finish or step > spec.steps:
        reason, message = pb.TRAINING_STOP_REASON_ASKED, "it was asked to finish"
    elif step in evaluations:
        reason, message = _judged(spec, [evaluations[one] for one in sorted(evaluations) if one <= step])
    else:
        return None
    steps = max(spec.steps, planned_steps) if step > spec.steps else spec.steps
    return pb.TrainingStop(reason=reason, step=step, planned_steps=steps, message=message) if reason else None


def _judged(spec: pb.TrainSpec, past: Sequence[pb.Evaluation]) -> tuple[pb.TrainingStopReason.ValueType, str]:
    loss = past[-1].validation_loss
    if loss <= spec.target_loss:
        message = f"the validation loss {loss:.4f} is at most the target {spec.target_loss:g}"
        return pb.TRAINING_STOP_REASON_TARGET_LOSS, message
    rule = spec.early_stopping
    if rule.patience:
        best, waited = _best(rule, past)
        if waited >= rule.patience:
            name = _name(rule)
            message = (
                f"{name} has not improved by more than {rule.min_delta:g} for {waited} evaluations; the best is "
                f"{getattr(best, name):.4f} at step {best.step}"
            )
            return pb.TRAINING_STOP_REASON_EARLY_STOPPING, message
    return pb.TRAINING_STOP_REASON_UNSPECIFIED, ""


def _best(rule: pb.EarlyStopping, past: Sequence[pb.Evaluation]) -> tuple[pb.Evaluation, int]:
    """The last evaluation that was an improvement, and how many followed it."""
    name = _name(rule)
    sign = -1.0 if name == "accuracy" else 1.0
    best, waited, least = past[0], 0, math.inf
    for one in past:
        value = sign * getattr(one, name)
        if value < least - rule.min_delta or (math.isinf(least) and math.isfinite(value)):
            best, waited, least = one, 0, value
        else:
            waited += 1
    return best, waited


def _name(rule: pb.EarlyStopping) -> str:
    return _NAMES[rule.metric or pb.STOPPING_METRIC_VALIDATION_LOSS]


def farewell(stop: pb.TrainingStop, spec: pb.TrainSpec) -> str:
    """What people should know of an early end, the cool-down that it cut included. `spec` is the one in force."""
    words = f"training ends after step {stop.step} of {stop.planned_steps}: {stop.message}"
    shape = spec.schedule
    part = schedule.learning_rate_scale(
        stop.step + 1,
        total_steps=stop.planned_steps,
        warmup_steps=shape.warmup_steps,
        cooldown_fraction=shape.cooldown_fraction,
        final_fraction=shape.final_fraction,
    )
    if not shape.cooldown_fraction or part <= shape.final_fraction:
        return words
    steps = math.ceil(stop.step / (1 - _SHORT_COOLDOWN))
    return (
        f"{words}. The cool-down was cut: the learning rate is still at {part:.0%} of its peak. A fork from step "
        f"{stop.step} with steps {steps} and schedule.cooldown_fraction {_SHORT_COOLDOWN:g} cools down and is better"
    )
