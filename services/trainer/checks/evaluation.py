"""When the run is looked at, on how much text, and when it stops for what it sees."""

from __future__ import annotations

import math

from octavo.v1 import trainer_pb2 as pb
from services.trainer.checks.finding import Case, Finding, fault, tidy, warning, within

_FEWEST_TOKENS = 2000
_LARGE_PART = 0.3
_MOST_LOOKING = 0.5
_LOOKING = 0.1
_LARGE_DELTA = 0.1


def _fraction(case: Case, tokens: int) -> float | None:
    """The validation part that holds at least `tokens`; None where half of the text is too little."""
    total = case.text.train_tokens + case.text.validation_tokens
    fraction = (math.ceil(tokens / max(1, total) * 1000) + 1) / 1000
    return fraction if fraction <= 0.5 else None


@fault("early_stopping.patience", "From 1 to 10,000: the evaluations to wait for an improvement.")
def patience_range(spec: pb.TrainSpec) -> Finding | None:
    patience = spec.early_stopping.patience
    if not spec.HasField("early_stopping") or 1 <= patience <= 10_000:
        return None
    return Finding(f"{patience} is not from 1 to 10000 evaluations", {"early_stopping.patience": 3})


@fault("early_stopping.min_delta", "From 0 to 100, in the unit of the metric.")
def min_delta_range(spec: pb.TrainSpec) -> Finding | None:
    delta = spec.early_stopping.min_delta
    if 0 <= delta <= 100:
        return None
    return Finding(f"{delta:g} is not from 0 to 100", {"early_stopping.min_delta": 0.001})


@fault("early_stopping.metric", "A metric that evaluations have.")
def stopping_metric(spec: pb.TrainSpec) -> Finding | None:
    metric = spec.early_stopping.metric
    if metric in pb.StoppingMetric.values():
        return None
    known = ", ".join(pb.StoppingMetric.keys()[1:])
    return Finding(f"{metric} is none that is known; {known} are", {"early_stopping.metric": None})


@fault("evaluation_interval_steps", "A run that may stop early is evaluated on its way.")
def early_stopping_never_looks(spec: pb.TrainSpec) -> Finding | None:
    is_never = spec.HasField("evaluation_interval_steps") and spec.evaluation_interval_steps == 0
    if not (spec.HasField("early_stopping") and is_never):
        return None
    why = "0 evaluates only at the end, where early_stopping has nothing left to stop"
    return Finding(why, {"evaluation_interval_steps": None})


@warning("early_stopping.patience", "The run is long enough for its patience to end.")
def early_stopping_cannot_fire(case: Case) -> Finding | None:
    steps, patience = case.plan.total_steps, case.spec.early_stopping.patience
    interval = case.spec.evaluation_interval_steps
    if not case.has("early_stopping") or patience * interval < steps:
        return None
    why = f"{patience} evaluations without improvement take {patience * interval:,} steps; there are {steps:,}"
    fitting = steps // (3 * patience)
    return Finding(why, {"evaluation_interval_steps": fitting} if fitting else {}, "have less patience")


@warning("evaluation_interval_steps", "A target is looked for before the end.")
def target_never_looked_for(case: Case) -> Finding | None:
    if not case.spec.target_loss or case.looks > 1:
        return None
    why = f"the only evaluation is at the end, where target_loss {case.spec.target_loss:g} has nothing left to stop"
    change = max(1, case.plan.total_steps // 10)
    return Finding(why, {"evaluation_interval_steps": change}) if case.plan.total_steps > 1 else None


@warning("target_loss", "A target is below the loss of a guess.")
def target_trivial(case: Case) -> Finding | None:
    target, guess = case.spec.target_loss, math.log(case.shape.vocab_size)
    if target < guess:
        return None
    why = f"{target:g} is no less than {guess:.2f}, the loss of guessing among {case.shape.vocab_size:,} tokens"
    return Finding(why, {"target_loss": tidy(guess / 2)})


@warning("early_stopping.min_delta", "An improvement that counts is one that evaluations show.")
def improvement_too_large(case: Case) -> Finding | None:
    delta = case.spec.early_stopping.min_delta
    if delta <= _LARGE_DELTA:
        return None
    why = f"{delta:g} nats between two evaluations are rare after the first: the run would stop while it learns"
    return Finding(why, {"early_stopping.min_delta": 0.001})


@warning("evaluation_interval_steps", "The run is evaluated before it ends.")
def evaluation_beyond_end(case: Case) -> Finding | None:
    interval, steps = case.spec.evaluation_interval_steps, case.plan.total_steps
    if not case.has("evaluation_interval_steps") or interval <= steps:
        return None
    why = f"every {interval:,} steps is never in {steps:,}: only the end is evaluated"
    return Finding(why, {"evaluation_interval_steps": max(1, steps // 10)})


@warning("evaluation_interval_steps", "Looking at the run takes less time than the run.")
def evaluations_costly(case: Case) -> Finding | None:
    looking_s = case.looks * case.times.look_s
    if case.has("time_budget") or case.looks < 2 or looking_s <= max(1.0, _MOST_LOOKING * case.training_s):
        return None
    looks = max(1, int(_LOOKING * case.training_s / case.times.look_s))
    interval = 0 if looks == 1 else math.ceil(case.plan.total_steps / looks)
    why = f"{case.looks} evaluations take about {looking_s:.0f} s beside {case.training_s:.0f} s of training"
    return Finding(why, {"evaluation_interval_steps": interval})


@warning("validation_fraction", "There is enough validation text for its loss to mean something.")
def little_validation_text(case: Case) -> Finding | None:
    tokens = case.text.validation_tokens
    if tokens >= _FEWEST_TOKENS:
        return None
    fraction = _fraction(case, _FEWEST_TOKENS)
    change = {} if fraction is None else {"validation_fraction": fraction}
    return Finding(f"{tokens} validation tokens make a noisy loss", change, "give more text")


@warning("validation_fraction", "The validation text holds a whole context.")
def validation_below_context(case: Case) -> Finding | None:
    tokens, context = case.text.validation_tokens, case.shape.context_length
    if tokens > context:
        return None
    fraction = _fraction(case, context + 1)
    change = {} if fraction is None else {"validation_fraction": fraction}
    why = f"{tokens} validation tokens are less than one context of {context}: its far end is never measured"
    return Finding(why, change, "give more text or a shorter context")


@warning("validation_fraction", "Most of the text is there to learn from.")
def large_validation_part(case: Case) -> Finding | None:
    fraction = case.spec.validation_fraction
    if not case.has("validation_fraction") or fraction <= _LARGE_PART or _fraction(case, 2 * _FEWEST_TOKENS) is None:
        return None
    needed = max(0.1, _fraction(case, 2 * _FEWEST_TOKENS) or 0.0)
    if needed >= fraction:
        return None
    why = f"{fraction:.0%} of the text is never learnt from; {needed:.1%} measure as well"
    return Finding(why, {"validation_fraction": min(needed, _LARGE_PART)})


ASKED = (
    within("evaluation_interval_steps", 0, 1 << 40, "0 evaluates only at the end"),
    within("validation_fraction", 1e-4, 0.5, "0.1 is usual"),
    within("target_loss", 0, 100, "a loss in nats per token, such as 1.5; 0 stops at none"),
    patience_range,
    min_delta_range,
    stopping_metric,
    early_stopping_never_looks,
)
PLANNED = (
    early_stopping_cannot_fire,
    target_never_looked_for,
    target_trivial,
    improvement_too_large,
    evaluation_beyond_end,
    evaluations_costly,
    little_validation_text,
    validation_below_context,
    large_validation_part,
)
