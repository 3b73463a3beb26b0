"""What may disappoint in a plan that is possible, each with its fix."""

from __future__ import annotations

from collections.abc import Iterator

from octavo.v1 import trainer_pb2 as pb
from services.trainer.machine import Machine

_FEWEST_STEPS = 100
_FEWEST_VALIDATION_TOKENS = 2000
# Twice as many passes as the recipe's own limit.
_MOST_EPOCHS = 20.0
_FEWEST_TOKENS_PER_PARAMETER = 1.0
_MOST_MEMORY = 0.8


def warnings(plan: pb.Plan, validation_tokens: int, machine: Machine) -> list[pb.PlanWarning]:
    """In the order of what matters most."""
    return [
        pb.PlanWarning(field=f"train.{field}", description=description, fix=fix)
        for field, description, fix in (*_resources(plan, machine), *_learning(plan, validation_tokens))
    ]


def _resources(plan: pb.Plan, machine: Machine) -> Iterator[tuple[str, str, str]]:
    spec = plan.train
    if machine.memory_bytes and plan.memory_bytes > _MOST_MEMORY * machine.memory_bytes:
        yield (
            "microbatch_size",
            f"needs about {plan.memory_bytes / 2**30:.1f} GiB of {machine.memory_bytes / 2**30:.1f} GiB",
            f"set microbatch_size to {max(1, spec.microbatch_size // 2)}: the gradients stay the same",
        )
    if spec.device == "cpu" and spec.threads > machine.threads:
        yield (
            "threads",
            f"{spec.threads} threads on {machine.threads} cores wait for one another",
            f"set threads to {machine.threads} or leave it out",
        )
    if spec.device == "cpu" and spec.precision == pb.TRAINING_PRECISION_BF16 and not machine.has_bf16:
        yield (
            "precision",
            "this processor has no bf16 instructions and emulates them, several times slower than fp32",
            "leave precision out",
        )


def _learning(plan: pb.Plan, validation_tokens: int) -> Iterator[tuple[str, str, str]]:
    spec, tokens = plan.train, plan.total_steps * plan.tokens_per_step
    stop = spec.WhichOneof("stop") or "steps"
    if plan.total_steps < _FEWEST_STEPS:
        yield (
            stop,
            f"{plan.total_steps} steps are few; the model will hardly get past the frequency of letters",
            f"allow at least {_FEWEST_STEPS} steps, or choose a smaller size",
        )
    elif tokens < _FEWEST_TOKENS_PER_PARAMETER * plan.parameter_count:
        yield (
            "size",
            f"{plan.parameter_count:,} parameters see only {tokens:,} tokens; a smaller model would learn more",
            f"choose a size below {spec.size} or train longer",
        )
    if plan.epochs > _MOST_EPOCHS and spec.dropout < 0.2:
        yield (
            "dropout",
            f"the text is seen {plan.epochs:.0f} times and will be learnt by heart",
            "set dropout to 0.2, give more text, or train for fewer steps",
        )
    if validation_tokens < _FEWEST_VALIDATION_TOKENS:
        yield (
            "validation_fraction",
            f"{validation_tokens} validation tokens make a noisy loss",
            "give more text or a larger validation_fraction",
        )
