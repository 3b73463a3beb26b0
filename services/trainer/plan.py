"""From a train spec to the same spec with every field set, and what it comes to: parameters, memory, time, warnings.

A pure function of spec, text and machine: asking twice gives the same answer, and a worker resolves what the service
planned. Knows nothing of datasets as resources, nor of torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

from octavo.errors import InvalidArgument
from octavo.formats.architecture import Architecture
from octavo.v1 import trainer_pb2 as pb
from octavo.v1.errors_pb2 import Reason
from services.trainer import recipe
from services.trainer.configuration import configuration_id
from services.trainer.corpus import CorpusFacts
from services.trainer.machine import Machine
from services.trainer.plan_warnings import warnings
from services.trainer.spec_faults import faults

# A run looks at itself about ten times, whatever its length.
_EVALUATIONS = 10
_CHECKPOINT_INTERVAL_S = 30.0
# What a worker needs before it holds a model: Python, torch and its thread pools.
_PROCESS_BYTES = 400 << 20


@dataclass(frozen=True, kw_only=True)
class TextFacts:
    """How much text there is: tokens of the training and validation parts and the vocabulary that made them.

    `row_tokens` is the length that rows usually do not exceed; 0 for plain text.
    """

    train_tokens: int
    validation_tokens: int
    vocab_size: int
    row_tokens: int = 0

    @classmethod
    def of(cls, facts: CorpusFacts) -> Self:
        """What was counted."""
        return cls(
            train_tokens=facts.train_tokens,
            validation_tokens=facts.validation_tokens,
            vocab_size=facts.vocab_size,
            row_tokens=facts.usual_row,
        )


def estimate_text(size_bytes: int, spec: pb.TrainSpec) -> TextFacts:
    """What a text of `size_bytes` will come to, before there is a tokenizer; `resolve` it again when there is one.

    English has about 1 byte a character and 90 different ones; a trained vocabulary of 1024 entries takes about
    2 bytes a token, one of 16,384 about 4.
    """
    tokenizer = resolve_tokenizer(spec.tokenizer, size_bytes)
    fraction = spec.validation_fraction if spec.HasField("validation_fraction") else recipe.DEFAULT_VALIDATION_FRACTION
    is_character = tokenizer.kind == pb.TOKENIZER_KIND_CHARACTER
    bytes_per_token = 1.0 if is_character else 1.0 + 0.5 * math.log2(max(1.0, tokenizer.vocab_size / 256))
    tokens = int(size_bytes / bytes_per_token)
    train = int(tokens * (1 - fraction))
    vocab_size = 96 if is_character else tokenizer.vocab_size
    return TextFacts(train_tokens=train, validation_tokens=tokens - train, vocab_size=vocab_size)


def resolve_tokenizer(asked: pb.TokenizerSpec, size_bytes: int) -> pb.TokenizerSpec:
    """Kind and vocabulary for a text of `size_bytes`: characters below 4 MiB, else BPE with 1024 to 16,384 entries."""
    tokenizer = pb.TokenizerSpec()
    tokenizer.CopyFrom(asked)
    if not tokenizer.kind:
        is_small = size_bytes < recipe.CHARACTER_TEXT_LIMIT_BYTES and not asked.HasField("vocab_size")
        tokenizer.kind = pb.TOKENIZER_KIND_CHARACTER if is_small else pb.TOKENIZER_KIND_BYTE_BPE
    if tokenizer.kind == pb.TOKENIZER_KIND_BYTE_BPE and not tokenizer.HasField("vocab_size"):
        tokenizer.vocab_size = min(16_384, max(1024, 1 << max(0, (size_bytes >> 11).bit_length())))
    return tokenizer


def resolve(
    spec: pb.TrainSpec, text: TextFacts, machine: Machine, *, step_s: float | None = None, spent_s: float = 0.0
) -> pb.TrainSpec:
    """The spec, its tokenizer already resolved, with every other field set; what was set stays.

    A time budget stays one until `step_s`, the measured duration of a step, turns what is left of it after `spent_s`
    into `steps`: once, so that the schedule ends with the budget and a resumed run repeats it. InvalidArgument names
    every field that is wrong or impossible with the others.
    """
    wrong = faults(spec)
    if wrong:
        raise _invalid(wrong)
    full = pb.TrainSpec()
    full.CopyFrom(spec)
    full.device = spec.device or machine.device
    if not full.HasField("threads"):
        full.threads = machine.threads
    if not full.precision:
        full.precision = pb.TRAINING_PRECISION_BF16 if machine.has_bf16 else pb.TRAINING_PRECISION_FP32
    architecture = _fill_architecture(full, text)
    _fill_batch(full, architecture, text)
    _fill_stop(full, architecture, text, step_s, spent_s)
    _fill_rest(full, architecture, text, step_s or estimated_step_s(full, architecture, machine))
    return full


def architecture_of(resolved: pb.TrainSpec) -> Architecture:
    """The shape that a resolved spec says. InvalidArgument, by field, where it is impossible."""
    a = resolved.architecture
    try:
        return Architecture.derive(
            recipe.family(resolved),
            vocab_size=a.vocab_size,
            context_length=a.context_length,
            width=a.width,
            layers=a.layers,
            heads=a.heads,
            kv_heads=a.kv_heads,
            mlp_width=a.mlp_width if a.HasField("mlp_width") else None,
            tie_embeddings=a.tie_embeddings,
        )
    except InvalidArgument as error:
        raise _invalid(error.violations, reason=error.reason) from error


def plan(
    spec: pb.TrainSpec, text: TextFacts, machine: Machine, *, step_s: float | None = None, spent_s: float = 0.0
) -> pb.Plan:
    """What the spec comes to on this machine; see `resolve`. Without `step_s`, times are estimates from FLOPs."""
    resolved = resolve(spec, text, machine, step_s=step_s, spent_s=spent_s)
    architecture = architecture_of(resolved)
    tokens_per_step = resolved.batch_size * architecture.context_length
    seconds = step_s or estimated_step_s(resolved, architecture, machine)
    total_steps = _total_steps(resolved, seconds)
    answer = pb.Plan(
        train=resolved,
        parameter_count=architecture.parameters,
        dataset_tokens=text.train_tokens,
        tokens_per_step=tokens_per_step,
        total_steps=total_steps,
        epochs=total_steps * tokens_per_step / max(1, text.train_tokens),
        memory_bytes=memory_bytes(resolved, architecture),
        step_flops=int(tokens_per_step * architecture.flops_per_token(is_training=True)),
        configuration_id=configuration_id(resolved),
    )
    answer.estimated_duration.FromNanoseconds(int(total_steps * seconds * 1e9))
    answer.warnings.extend(warnings(answer, text.validation_tokens, machine))
    return answer


def estimated_step_s(resolved: pb.TrainSpec, architecture: Architecture, machine: Machine) -> float:
    """Duration of an optimizer step by its FLOPs, seconds; within a factor of two on machines we have measured."""
    tokens = resolved.batch_size * architecture.context_length
    forward_and_backward = tokens * architecture.flops_per_token(is_training=True)
    # Newton-Schulz: five iterations of three products over each block's 12 d^2 parameters, about 30 d multiply-adds.
    muon = 60.0 * architecture.width * architecture.layers * 12 * architecture.width**2
    is_bf16 = resolved.precision == pb.TRAINING_PRECISION_BF16
    # Python starts about 300 operations a block and step, at 5 microseconds each.
    overhead_s = 1.5e-3 * architecture.layers * (resolved.batch_size / resolved.microbatch_size)
    return (forward_and_backward + muon) / machine.flops(is_bf16=is_bf16) + overhead_s


def memory_bytes(resolved: pb.TrainSpec, architecture: Architecture) -> int:
    """Peak of the worker: process, weights with gradients and optimizer state, and one microbatch's activations."""
    a = architecture
    element = 2 if resolved.precision == pb.TRAINING_PRECISION_BF16 else 4
    copies = 4 + (1 if resolved.ema_decay else 0)
    tokens = resolved.microbatch_size * a.context_length
    block = 12 * a.width + 3 * (a.attention_width + 2 * a.kv_width) + 5 * a.mlp_width
    scores = 2 * a.heads * min(a.context_length, 512)
    logits = tokens * a.vocab_size * (4 * 3 + element)
    return int(_PROCESS_BYTES + 4 * copies * a.parameters + tokens * a.layers * (block + scores) * element + logits)


def _total_steps(resolved: pb.TrainSpec, step_s: float) -> int:
    if resolved.HasField("steps"):
        return resolved.steps
    return steps_within(resolved.time_budget.ToNanoseconds() / 1e9, step_s)


def steps_within(budget_s: float, step_s: float) -> int:
    """Whole steps of `step_s` seconds in a budget, at least one."""
    return max(1, int(budget_s / step_s))


def _fill_architecture(full: pb.TrainSpec, text: TextFacts) -> Architecture:
    if not full.HasField("size"):
        full.size = recipe.DEFAULT_SIZE
    full.family = full.family or pb.MODEL_FAMILY_QWEN3
    a = full.architecture
    a.vocab_size = text.vocab_size
    if not a.HasField("layers"):
        a.layers = full.size
    if not a.HasField("width"):
        a.width = recipe.width(full.size)
    if not a.HasField("heads"):
        a.heads = recipe.heads(a.width)
    if not a.HasField("kv_heads"):
        a.kv_heads = a.heads
    if not a.HasField("context_length"):
        a.context_length = recipe.context_length(full.size, text.train_tokens, text.row_tokens)
    if not a.HasField("tie_embeddings"):
        tie = full.family == pb.MODEL_FAMILY_GPT2 or recipe.tie_embeddings(text.vocab_size, a.width, a.layers)
        a.tie_embeddings = tie
    _check_heads(a)
    architecture = architecture_of(full)
    a.mlp_width = architecture.mlp_width
    if not text.row_tokens and a.context_length >= text.train_tokens:
        most = max(1, text.train_tokens - 1)
        raise _invalid(
            {
                "architecture.context_length": f"{a.context_length} is longer than the training part of the text, "
                f"{text.train_tokens} tokens; try at most {most}, or give more text"
            }
        )
    return architecture


def _check_heads(a: pb.Architecture) -> None:
    """Heads that do not divide the width are refused here: head size is derived from both and not in the spec."""
    if a.width > 0 and a.heads > 0 and a.width % a.heads:
        fitting = [n for n in range(1, a.width // 16 + 1) if a.width % (16 * n) == 0] or [1]
        near = sorted(sorted(fitting, key=lambda n: abs(n - a.heads))[:2])
        choices = " or ".join(map(str, near))
        raise _invalid({"architecture.heads": f"{a.heads} does not divide the width {a.width}; try {choices}"})


def _fill_batch(full: pb.TrainSpec, architecture: Architecture, text: TextFacts) -> None:
    context = architecture.context_length
    if not full.HasField("batch_size"):
        batch = recipe.batch_size(architecture.layers, context, text.train_tokens)
        if full.HasField("microbatch_size"):
            batch = max(1, round(batch / full.microbatch_size)) * full.microbatch_size
        full.batch_size = batch
    if not full.HasField("microbatch_size"):
        full.microbatch_size = recipe.microbatch_size(full.batch_size, context, text.vocab_size)


def _fill_stop(
    full: pb.TrainSpec, architecture: Architecture, text: TextFacts, step_s: float | None, spent_s: float
) -> None:
    if full.WhichOneof("stop") is None:
        tokens_per_step = full.batch_size * architecture.context_length
        full.steps = recipe.steps(architecture.parameters, text.train_tokens, tokens_per_step)
    elif full.HasField("time_budget") and step_s is not None:
        full.steps = steps_within(full.time_budget.ToNanoseconds() / 1e9 - spent_s, step_s)


def _fill_rest(full: pb.TrainSpec, architecture: Architecture, text: TextFacts, step_s: float) -> None:
    total_steps = _total_steps(full, step_s)
    epochs = total_steps * full.batch_size * architecture.context_length / max(1, text.train_tokens)
    recipe.fill_optimizer(full.optimizer, architecture)
    recipe.fill_schedule(full.schedule, total_steps)
    defaults = {
        "dropout": recipe.dropout(epochs),
        "seed": recipe.DEFAULT_SEED,
        "evaluation_interval_steps": max(1, total_steps // _EVALUATIONS),
        "validation_fraction": recipe.DEFAULT_VALIDATION_FRACTION,
        "ema_decay": 0.0,
    }
    recipe.fill_unset(full, defaults)
    interval_steps = max(1, round(_CHECKPOINT_INTERVAL_S / step_s))
    policy = {"interval_steps": interval_steps, "keep_latest": 3, "keep_best": True, "milestone_interval_steps": 0}
    recipe.fill_unset(full.checkpoints, policy)
    recipe.fill_recovery(full.recovery)
    recipe.fill_unset(full.sample, {"length": 200, "temperature": 0.8})


def _invalid(wrong: dict[str, str], *, reason: Reason.ValueType = Reason.REASON_INVALID_FIELD) -> InvalidArgument:
    return InvalidArgument.fields({f"job.train.{path}": text for path, text in wrong.items()}, reason=reason)
