"""How much of the text one step sees, and in how many passes."""

from __future__ import annotations

import math

from octavo.v1 import trainer_pb2 as pb
from services.trainer import recipe
from services.trainer.checks.finding import Case, Finding, fault, warning, within

_FEWEST_TOKENS = 256
_MOST_PASSES = 16
_MOST_LOGITS = 1 << 28


def _derived(case: Case) -> int:
    a = case.shape
    return recipe.batch_size(a.layers, a.context_length, case.text.train_tokens)


@fault("microbatch_size", "Passes divide the batch.")
def microbatch_divides_batch(spec: pb.TrainSpec) -> Finding | None:
    batch, micro = spec.batch_size, spec.microbatch_size
    if not (spec.HasField("batch_size") and spec.HasField("microbatch_size")) or micro < 1 or batch % micro == 0:
        return None
    nearest = min((n for n in range(1, min(batch, 4096) + 1) if batch % n == 0), key=lambda n: (abs(n - micro), n))
    return Finding(f"{micro} does not divide batch_size {batch}", {"microbatch_size": nearest})


@warning("batch_size", "A step sees at most the whole text.")
def batch_beyond_text(case: Case) -> Finding | None:
    seen, tokens = case.plan.tokens_per_step, case.text.train_tokens
    if not case.has("batch_size") or case.spec.batch_size == 1 or seen <= tokens:
        return None
    why = f"a step of {seen:,} tokens sees the text of {tokens:,} {seen / tokens:.1f} times"
    return Finding(why, {"batch_size": _derived(case), "microbatch_size": None})


@warning("batch_size", "An epoch takes more than a few steps.")
def few_steps_an_epoch(case: Case) -> Finding | None:
    seen, tokens, derived = case.plan.tokens_per_step, case.text.train_tokens, _derived(case)
    if not case.has("batch_size") or not tokens / 4 < seen <= tokens or derived >= case.spec.batch_size:
        return None
    why = f"an epoch of {tokens:,} tokens is {tokens / seen:.1f} steps: most of a batch says the same"
    return Finding(why, {"batch_size": derived, "microbatch_size": None})


@warning("batch_size", "A step sees enough tokens that their gradient points somewhere.")
def batch_small(case: Case) -> Finding | None:
    seen, context = case.plan.tokens_per_step, case.shape.context_length
    batch = math.ceil(_FEWEST_TOKENS / context)
    if not case.has("batch_size") or seen >= _FEWEST_TOKENS or case.text.train_tokens < 16 * batch * context:
        return None
    why = f"a gradient of {seen} tokens is mostly noise, and starting a step costs more than its arithmetic"
    return Finding(why, {"batch_size": batch, "microbatch_size": None})


@warning("microbatch_size", "A batch is not cut into more passes than memory asks for.")
def many_passes(case: Case) -> Finding | None:
    spec, a = case.spec, case.shape
    passes = spec.batch_size // spec.microbatch_size
    derived = recipe.microbatch_size(spec.batch_size, a.context_length, a.vocab_size)
    if not case.has("microbatch_size") or passes <= _MOST_PASSES or derived < 4 * spec.microbatch_size:
        return None
    why = f"{passes} passes a step start every operation {passes} times; {derived} sequences fit into one"
    return Finding(why, {"batch_size": spec.batch_size, "microbatch_size": derived})


@warning("microbatch_size", "The logits of one pass fit into memory with ease.")
def large_logits(case: Case) -> Finding | None:
    spec, a = case.spec, case.shape
    logits = spec.microbatch_size * a.context_length * a.vocab_size
    derived = recipe.microbatch_size(spec.batch_size, a.context_length, a.vocab_size)
    if not case.has("microbatch_size") or logits <= _MOST_LOGITS or derived >= spec.microbatch_size:
        return None
    why = f"a pass makes {logits:,} logits, {4 * logits / 2**30:.1f} GiB, several times over"
    return Finding(why, {"batch_size": spec.batch_size, "microbatch_size": derived}, "the gradients stay the same")


ASKED = (
    within("batch_size", 1, 1 << 20, "leave it out to have it derived"),
    within("microbatch_size", 1, 1 << 20, "leave it out to have it derived"),
    microbatch_divides_batch,
)
PLANNED = (batch_beyond_text, few_steps_an_epoch, batch_small, many_passes, large_logits)
