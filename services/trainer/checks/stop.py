"""How long a run goes on."""

from __future__ import annotations

import math

from octavo.v1 import trainer_pb2 as pb
from services.trainer.checks.finding import Case, Finding, below_one, fault, warning, within

# A month: longer work should be several jobs.
_MOST_BUDGET_S = 31 * 86_400
_FEWEST_STEPS = 100
# Twice as many passes as the recipe's own limit.
_MOST_EPOCHS = 20.0
_MOST_TOKENS_PER_PARAMETER = 200
_LONG_S = 3 * 86_400.0
_HOUR_S = 3600.0


@fault("time_budget", "From 1 s to 31 days.")
def time_budget_range(spec: pb.TrainSpec) -> Finding | None:
    if not spec.HasField("time_budget"):
        return None
    budget_s = spec.time_budget.ToNanoseconds() / 1e9
    if 1 <= budget_s <= _MOST_BUDGET_S:
        return None
    nearest = 1 if budget_s < 1 else _MOST_BUDGET_S
    return Finding(f"{budget_s:g} s is out of range; 1 s to 31 days", {"time_budget": f"{nearest}s"})


@warning("steps", "There are enough steps to get past the frequency of letters.")
def few_steps(case: Case) -> Finding | None:
    steps = case.plan.total_steps
    if steps >= _FEWEST_STEPS:
        return None
    stop = case.asked.WhichOneof("stop") or "steps"
    why = f"{steps} steps are few; the model will hardly get past the frequency of letters"
    return Finding(why, {"steps": _FEWEST_STEPS}, "choose a smaller size", stop)


@warning("dropout", "A text that is seen many times is not learnt by heart.")
def learnt_by_heart(case: Case) -> Finding | None:
    if case.plan.epochs <= _MOST_EPOCHS or case.spec.dropout >= 0.2:
        return None
    why = f"the text is seen {case.plan.epochs:.0f} times and will be learnt by heart"
    return Finding(why, {"dropout": 0.2}, "give more text or train for fewer steps")


@warning("dropout", "A text that is hardly seen twice is not made harder to learn.")
def dropout_of_fresh_text(case: Case) -> Finding | None:
    if not case.has("dropout") or case.spec.dropout < 0.1 or case.plan.epochs > 2:
        return None
    why = f"the text is seen {case.plan.epochs:.1f} times: {case.spec.dropout:g} only slows it down"
    return Finding(why, {"dropout": 0.0})


@warning("steps", "A run that has the time sees all of its text.")
def text_unseen(case: Case) -> Finding | None:
    steps = math.ceil(case.text.train_tokens / case.plan.tokens_per_step)
    if not case.has("steps") or case.plan.epochs >= 0.5 or steps * case.times.step_s > _HOUR_S:
        return None
    why = f"{1 - case.plan.epochs:.0%} of the text is never seen"
    return Finding(why, {"steps": steps})


@warning("time_budget", "The work around the training is short beside it.")
def budget_below_setup(case: Case) -> Finding | None:
    around_s = case.times.setup_s + case.times.calibration_s + case.times.release_s
    budget_s = case.asked.time_budget.ToNanoseconds() / 1e9
    if not case.has("time_budget") or budget_s >= around_s:
        return None
    why = f"{budget_s:g} s of training have about {around_s:.0f} s of preparing, proving and registering around them"
    return Finding(why, {"time_budget": f"{math.ceil(2 * around_s)}s"})


@warning("steps", "The run ends within days.")
def very_long(case: Case) -> Finding | None:
    seconds = case.plan.estimated_duration.ToNanoseconds() / 1e9
    stop = case.asked.WhichOneof("stop") or "steps"
    if stop == "time_budget" or seconds <= _LONG_S:
        return None
    why = f"{case.plan.total_steps:,} steps take about {seconds / 86_400:.0f} days here"
    return Finding(why, {"time_budget": "86400s"}, "choose a smaller size or a faster device", stop)


@warning("steps", "A model is not trained long after a larger one would learn more.")
def model_outgrown(case: Case) -> Finding | None:
    plan = case.plan
    tokens = plan.total_steps * plan.tokens_per_step
    if not case.has("steps") or tokens <= _MOST_TOKENS_PER_PARAMETER * plan.parameter_count or plan.total_steps < 1000:
        return None
    why = f"{tokens / plan.parameter_count:,.0f} tokens a parameter: a larger size would make more of the time"
    most = _MOST_TOKENS_PER_PARAMETER * plan.parameter_count // plan.tokens_per_step
    return Finding(why, {"steps": max(999, most)}, "choose a larger size")


@warning("recovery.learning_rate_factor", "What goes back to a checkpoint goes on at lower rates.")
def rollback_in_vain(case: Case) -> Finding | None:
    recovery = case.spec.recovery
    if not case.has("recovery.learning_rate_factor") or recovery.learning_rate_factor < 0.99:
        return None
    why = f"{recovery.learning_rate_factor:g} goes back and does the same again, with the same end"
    return Finding(why, {"recovery.learning_rate_factor": 0.5})


ASKED = (
    within("steps", 1, 1 << 40, "leave it out to have it derived"),
    time_budget_range,
    within("recovery.max_rollbacks", 0, 100, "3 is usual, 0 fails at the first step that is not finite"),
    within("recovery.learning_rate_factor", 1e-3, 1, "0.5 is usual"),
    below_one("dropout", 0.1, "0 for fresh text, 0.1 to 0.2 for many epochs"),
)
PLANNED = (
    few_steps,
    learnt_by_heart,
    dropout_of_fresh_text,
    text_unseen,
    budget_below_setup,
    very_long,
    model_outgrown,
    rollback_in_vain,
)
