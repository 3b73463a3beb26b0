"""From a train spec to the same spec with every field set, and what it comes to: parameters, memory, time, warnings.

A pure function of spec, text and machine: asking twice gives the same answer, and a worker resolves what the service
planned. Knows nothing of datasets as resources, nor of torch.
"""

from __future__ import annotations

import math

from octavo.errors import InvalidArgument
from octavo.formats.architecture import Architecture
from octavo.v1 import trainer_pb2 as pb
from octavo.v1.errors_pb2 import Reason
from services.trainer import recipe
from services.trainer.checks.finding import Case
from services.trainer.checks.table import NUMBERED, PLANNED, SHAPED, faults, mended, warnings
from services.trainer.configuration import configuration_id
from services.trainer.footprint import disk_bytes, memory_bytes
from services.trainer.machine import Machine
from services.trainer.surroundings import Surroundings
from services.trainer.text_facts import TextFacts
from services.trainer.time_estimate import estimated_step_s, estimated_times
from services.trainer.times import Times

# A run looks at itself about ten times, whatever its length.
_EVALUATIONS = 10
_CHECKPOINT_INTERVAL_S = 30.0


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
    full, wrong = _resolve(spec, text, machine, step_s, spent_s)
    if wrong:
        raise _invalid(wrong)
    return full


def _resolve(
    spec: pb.TrainSpec, text: TextFacts, machine: Machine, step_s: float | None, spent_s: float
) -> tuple[pb.TrainSpec, dict[str, str]]:
    """The resolved spec, and what was wrong with it: that is mended first, so that all of it is found at once."""
    wrong, change = faults(NUMBERED, spec)
    asked = mended(spec, change)
    full = _begun(asked, text, machine)
    misshapen, change = faults(SHAPED, full)
    if misshapen:
        wrong |= misshapen
        full = _begun(mended(asked, change), text, machine)
    architecture = architecture_of(full)
    full.architecture.mlp_width = architecture.mlp_width
    _fill_batch(full, architecture, text)
    _fill_stop(full, architecture, text, step_s, spent_s)
    _fill_rest(full, architecture, text, step_s or estimated_step_s(full, architecture, machine))
    return full, wrong


def _begun(spec: pb.TrainSpec, text: TextFacts, machine: Machine) -> pb.TrainSpec:
    """A spec with device and shape, which may still be impossible."""
    full = pb.TrainSpec()
    full.CopyFrom(spec)
    full.device = spec.device or machine.device
    if not full.HasField("processes"):
        full.processes = 1
    if not full.HasField("threads"):
        full.threads = max(1, machine.threads // full.processes)
    if not full.precision:
        full.precision = pb.TRAINING_PRECISION_BF16 if machine.has_bf16 else pb.TRAINING_PRECISION_FP32
    _fill_architecture(full, text)
    return full


def settled(job: pb.Job) -> pb.TrainSpec:
    """The spec of an accepted job with what its plan decided for good; the rest is resolved again from the tokens."""
    spec, accepted = pb.TrainSpec(), job.plan.train
    spec.CopyFrom(job.train)
    spec.dataset, spec.device, spec.threads = accepted.dataset, accepted.device, accepted.threads
    spec.tokenizer.CopyFrom(accepted.tokenizer)
    spec.precision = accepted.precision
    if accepted.HasField("data"):
        spec.data.CopyFrom(accepted.data)
    return spec


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
    spec: pb.TrainSpec,
    text: TextFacts,
    machine: Machine,
    *,
    around: Surroundings | None = None,
    step_s: float | None = None,
    spent_s: float = 0.0,
) -> pb.Plan:
    """What the spec comes to on this machine; see `resolve`. Without `step_s`, times are estimates from FLOPs."""
    resolved, wrong = _resolve(spec, text, machine, step_s, spent_s)
    shape = architecture_of(resolved)
    times = estimated_times(resolved, shape, text, machine, step_s)
    case = Case(
        asked=spec,
        plan=_counted(resolved, shape, text, times),
        shape=shape,
        text=text,
        machine=machine,
        around=around or Surroundings(),
        times=times,
    )
    _fill_time(case)
    obstacles, _ = faults((check for check in PLANNED if check.is_error), case)
    wrong = obstacles | wrong
    if wrong:
        raise _invalid(wrong)
    case.plan.warnings.extend(warnings(case))
    return case.plan


def _counted(resolved: pb.TrainSpec, shape: Architecture, text: TextFacts, times: Times) -> pb.Plan:
    """Everything of a plan that is counted rather than timed."""
    tokens_per_step = resolved.batch_size * shape.context_length
    total_steps = _total_steps(resolved, times.step_s)
    return pb.Plan(
        train=resolved,
        parameter_count=shape.parameters,
        dataset_tokens=text.train_tokens,
        tokens_per_step=tokens_per_step,
        total_steps=total_steps,
        epochs=total_steps * tokens_per_step / max(1, text.train_tokens),
        memory_bytes=memory_bytes(resolved, shape),
        disk_bytes=disk_bytes(resolved, shape, total_steps),
        step_flops=int(tokens_per_step * shape.flops_per_token(is_training=True)),
        configuration_id=configuration_id(resolved),
    )


def _fill_time(case: Case) -> None:
    """The time of each phase, their sum, and what it costs."""
    times, plan = case.times, case.plan
    saves = 1 + (plan.total_steps // interval if (interval := case.spec.checkpoints.interval_steps) else 0)
    looking_s = case.looks * times.look_s
    # A budget is for steps and looks together.
    training_s = case.training_s + (0.0 if case.has("time_budget") else looking_s) + saves * times.save_s
    phases = {
        pb.JOB_PHASE_PREPARE: times.setup_s,
        pb.JOB_PHASE_CALIBRATE: times.calibration_s,
        pb.JOB_PHASE_TRAIN: training_s,
        pb.JOB_PHASE_EXPORT: times.release_s,
    }
    for phase, seconds in phases.items():
        if seconds:
            plan.phases.add(phase=phase).duration.FromNanoseconds(int(seconds * 1e9))
    total_s = sum(phases.values())
    plan.estimated_duration.FromNanoseconds(int(total_s * 1e9))
    price = case.spec.price_per_hour if case.spec.HasField("price_per_hour") else case.around.price_per_hour
    if price:
        plan.estimated_cost = price * total_s / 3600


def _total_steps(resolved: pb.TrainSpec, step_s: float) -> int:
    if resolved.HasField("steps"):
        return resolved.steps
    return steps_within(resolved.time_budget.ToNanoseconds() / 1e9, step_s)


def steps_within(budget_s: float, step_s: float) -> int:
    """Whole steps of `step_s` seconds in a budget, at least one."""
    return max(1, int(budget_s / step_s))


def _fill_architecture(full: pb.TrainSpec, text: TextFacts) -> None:
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


def _fill_batch(full: pb.TrainSpec, architecture: Architecture, text: TextFacts) -> None:
    context = architecture.context_length
    if not full.HasField("batch_size"):
        batch = recipe.batch_size(architecture.layers, context, text.train_tokens)
        part = full.processes * max(1, full.microbatch_size)
        full.batch_size = max(1, round(batch / part)) * part
    if not full.HasField("microbatch_size"):
        share = full.batch_size // full.processes
        full.microbatch_size = recipe.microbatch_size(share, context, text.vocab_size)


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
