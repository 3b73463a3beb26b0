"""Rates, decays and averages of the optimizer."""

from __future__ import annotations

from octavo.v1 import trainer_pb2 as pb
from services.trainer import recipe
from services.trainer.checks.finding import Case, Finding, below_one, fault, tidy, warning, within

# How far from the recipe's a rate may be before it is more likely a slip than a choice.
_HIGH = 5.0
_LOW = 40.0
# Steps in which weight decay may halve a weight.
_HALVED_WITHIN = 50.0
_FIRM_CLIP = 0.05


def _usual(case: Case) -> pb.OptimizerSpec:
    usual = pb.OptimizerSpec()
    recipe.fill_optimizer(usual, case.shape)
    return usual


@fault("optimizer.learning_rate", "Something learns: not both rates are 0.")
def nothing_learns(spec: pb.TrainSpec) -> Finding | None:
    o = spec.optimizer
    are_set = o.HasField("learning_rate") and o.HasField("matrix_learning_rate")
    if not are_set or o.learning_rate or o.matrix_learning_rate:
        return None
    why = "0, as optimizer.matrix_learning_rate is: no weight would change"
    return Finding(why, {"optimizer.learning_rate": None, "optimizer.matrix_learning_rate": None})


def _high(case: Case, field: str, rate: float, usual: float) -> Finding | None:
    path = f"optimizer.{field}"
    if not case.has(path) or rate <= _HIGH * usual:
        return None
    return Finding(f"{rate:g} is {rate / usual:.0f} times the usual: the loss will jump", {path: tidy(usual)})


def _low(case: Case, field: str, rate: float, usual: float) -> Finding | None:
    path = f"optimizer.{field}"
    if not case.has(path) or case.spec.base_version or not 0 < rate < usual / _LOW:
        return None
    return Finding(
        f"{rate:g} is {usual / rate:.0f} times below the usual: hardly anything is learnt", {path: tidy(usual)}
    )


@warning("optimizer.matrix_learning_rate", "Muon's rate is not far above the recipe's.")
def matrix_rate_high(case: Case) -> Finding | None:
    usual = _usual(case).matrix_learning_rate
    return _high(case, "matrix_learning_rate", case.spec.optimizer.matrix_learning_rate, usual)


@warning("optimizer.matrix_learning_rate", "Muon's rate is not far below the recipe's.")
def matrix_rate_low(case: Case) -> Finding | None:
    usual = _usual(case).matrix_learning_rate
    return _low(case, "matrix_learning_rate", case.spec.optimizer.matrix_learning_rate, usual)


@warning("optimizer.learning_rate", "AdamW's rate is not far above the recipe's for the width.")
def rate_high(case: Case) -> Finding | None:
    return _high(case, "learning_rate", case.spec.optimizer.learning_rate, _usual(case).learning_rate)


@warning("optimizer.learning_rate", "AdamW's rate is not far below the recipe's for the width.")
def rate_low(case: Case) -> Finding | None:
    return _low(case, "learning_rate", case.spec.optimizer.learning_rate, _usual(case).learning_rate)


@warning("optimizer.matrix_learning_rate", "The blocks learn.")
def blocks_frozen(case: Case) -> Finding | None:
    if case.spec.optimizer.matrix_learning_rate or case.spec.base_version:
        return None
    why = "0 leaves the blocks as they were drawn at random; only embeddings and norms learn"
    return Finding(why, {"optimizer.matrix_learning_rate": None})


@warning("optimizer.learning_rate", "Embeddings and norms learn.")
def embeddings_frozen(case: Case) -> Finding | None:
    if case.spec.optimizer.learning_rate or case.spec.base_version:
        return None
    why = "0 leaves embeddings, norms and output as they were drawn at random"
    return Finding(why, {"optimizer.learning_rate": None})


@warning("optimizer.weight_decay", "Decay does not take weights away faster than they are learnt.")
def decay_strong(case: Case) -> Finding | None:
    o = case.spec.optimizer
    rate = max(o.matrix_learning_rate, o.learning_rate)
    if rate * o.weight_decay * _HALVED_WITHIN <= 0.7:
        return None
    why = f"{o.weight_decay:g} at a rate of {rate:g} halves every weight in {0.7 / (rate * o.weight_decay):.0f} steps"
    return Finding(why, {"optimizer.weight_decay": tidy(min(0.1, 0.001 / rate))})


@warning("optimizer.beta2", "The second moment remembers longer than the first.")
def moments_reversed(case: Case) -> Finding | None:
    o = case.spec.optimizer
    if o.beta2 >= o.beta1:
        return None
    why = f"{o.beta2:g} forgets faster than beta1 = {o.beta1:g}: steps are scaled by less than they are made of"
    return Finding(why, {"optimizer.beta1": None, "optimizer.beta2": None})


@warning("optimizer.beta2", "The second moment is an average over a part of the run.")
def second_moment_beyond_run(case: Case) -> Finding | None:
    steps, beta2 = case.plan.total_steps, case.spec.optimizer.beta2
    if not case.has("optimizer.beta2") or steps < 40 or steps * (1 - beta2) >= 1:
        return None
    why = f"{beta2:g} averages over {1 / (1 - beta2):,.0f} steps; there are {steps:,}"
    return Finding(why, {"optimizer.beta2": tidy_below_one(1 - 4 / steps)})


@warning("optimizer.momentum", "Momentum is an average over a small part of the run.")
def momentum_beyond_run(case: Case) -> Finding | None:
    steps, momentum = case.plan.total_steps, case.spec.optimizer.momentum
    if not case.has("optimizer.momentum") or steps < 40 or steps * (1 - momentum) >= 5:
        return None
    why = f"{momentum:g} averages over {1 / (1 - momentum):,.0f} of {steps:,} steps: it turns too late"
    return Finding(why, {"optimizer.momentum": tidy_below_one(1 - 10 / steps)})


@warning("optimizer.gradient_clip", "Clipping is for the exceptional step.")
def clips_every_step(case: Case) -> Finding | None:
    clip = case.spec.optimizer.gradient_clip
    if not 0 < clip < _FIRM_CLIP:
        return None
    why = f"{clip:g} is below the gradient of nearly every step, so that all of them are scaled to it"
    return Finding(why, {"optimizer.gradient_clip": 1.0})


@warning("ema_decay", "The average of the weights reaches over a part of the run.")
def average_beyond_run(case: Case) -> Finding | None:
    steps, decay = case.plan.total_steps, case.spec.ema_decay
    if not decay or steps * (1 - decay) >= 2:
        return None
    why = f"{decay:g} averages over {1 / (1 - decay):,.0f} of {steps:,} steps: much of the random start is left"
    return Finding(why, {"ema_decay": tidy_below_one(1 - 10 / steps) if steps >= 40 else 0.0})


@warning("ema_decay", "The average of the weights is one of several steps.")
def average_of_one_step(case: Case) -> Finding | None:
    decay = case.spec.ema_decay
    if not 0 < decay < 0.5:
        return None
    return Finding(f"{decay:g} averages fewer than two steps and costs a copy of the weights", {"ema_decay": 0.0})


def tidy_below_one(value: float) -> float:
    """A decay with as many digits as say how far from 1 it is."""
    return float(f"{1 - tidy(1 - value):.6g}")


ASKED = (
    within("optimizer.matrix_learning_rate", 0, 10, "0.02 is usual for Muon"),
    within("optimizer.learning_rate", 0, 10, "0.001 to 0.01 is usual for AdamW"),
    within("optimizer.weight_decay", 0, 100, "0 to 0.2 is usual"),
    below_one("optimizer.beta1", 0.8, "0.8 to 0.9 is usual"),
    below_one("optimizer.beta2", 0.95, "0.95 to 0.999 is usual"),
    below_one("optimizer.momentum", 0.95, "0.95 is usual"),
    within("optimizer.gradient_clip", 0, 1e6, "0 clips nothing, 1 is usual"),
    below_one("ema_decay", 0.99, "0 averages nothing, 0.99 the last hundred steps"),
    nothing_learns,
)
PLANNED = (
    matrix_rate_high,
    matrix_rate_low,
    rate_high,
    rate_low,
    blocks_frozen,
    embeddings_frozen,
    decay_strong,
    moments_reversed,
    second_moment_beyond_run,
    momentum_beyond_run,
    clips_every_step,
    average_beyond_run,
    average_of_one_step,
)
