"""What is wrong with the numbers of a train spec: the field, what is wrong and what would be right.

Checks fields as they were given, before anything is derived from them; the shape of the model is checked by
Architecture itself. Knows nothing of names of resources.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from google.protobuf.message import Message

from octavo.v1 import trainer_pb2 as pb

Fault = Callable[[float], str | None]


def _within(least: float, most: float, hint: str) -> Fault:
    def fault(value: float) -> str | None:
        if math.isfinite(value) and least <= value <= most:
            return None
        return f"{value:g} is not from {least:g} to {most:g}; {hint}"

    return fault


def _below_one(hint: str) -> Fault:
    def fault(value: float) -> str | None:
        return None if 0 <= value < 1 else f"{value:g} is not from 0 to below 1; {hint}"

    return fault


_TRAIN: dict[str, Fault] = {
    "size": _within(1, 48, "4 is a good beginning"),
    "dropout": _below_one("0 for fresh text, 0.1 to 0.2 for many epochs"),
    "batch_size": _within(1, 1 << 20, "leave it out to have it derived"),
    "microbatch_size": _within(1, 1 << 20, "leave it out to have it derived"),
    "seed": _within(-(1 << 63), (1 << 63) - 1, "any whole number of 64 bits"),
    "evaluation_interval_steps": _within(0, 1 << 40, "0 evaluates only at the end"),
    "validation_fraction": _within(1e-4, 0.5, "0.1 is usual"),
    "threads": _within(1, 1024, "leave it out to use those of the machine"),
    "ema_decay": _below_one("0 averages nothing, 0.99 the last hundred steps"),
    "steps": _within(1, 1 << 40, "leave it out to have it derived"),
    "target_loss": _within(0, 100, "a loss in nats per token, such as 1.5; 0 stops at none"),
}
_OPTIMIZER: dict[str, Fault] = {
    "matrix_learning_rate": _within(0, 10, "0.02 is usual for Muon"),
    "learning_rate": _within(0, 10, "0.001 to 0.01 is usual for AdamW"),
    "weight_decay": _within(0, 100, "0 to 0.2 is usual"),
    "beta1": _below_one("0.8 to 0.9 is usual"),
    "beta2": _below_one("0.95 to 0.999 is usual"),
    "momentum": _below_one("0.95 is usual"),
    "gradient_clip": _within(0, 1e6, "0 clips nothing, 1 is usual"),
}
_SCHEDULE: dict[str, Fault] = {
    "warmup_steps": _within(0, 1 << 40, "10 to 1000 is usual"),
    "cooldown_fraction": _within(0, 1, "0.6 is usual"),
    "final_fraction": _within(0, 1, "0 is usual"),
}
_CHECKPOINTS: dict[str, Fault] = {
    "interval_steps": _within(0, 1 << 40, "0 saves only when asked and at the end"),
    "keep_latest": _within(2, 1000, "the older is the fallback when the newest is damaged"),
    "milestone_interval_steps": _within(0, 1 << 40, "0 keeps none for good"),
}
_RECOVERY: dict[str, Fault] = {
    "max_rollbacks": _within(0, 100, "3 is usual, 0 fails at the first step that is not finite"),
    "learning_rate_factor": _within(1e-3, 1, "0.5 is usual"),
}
_SAMPLE: dict[str, Fault] = {
    "length": _within(0, 10_000, "200 is usual, 0 samples nothing"),
    "temperature": _within(0, 100, "0 takes the likeliest token, 0.8 is usual"),
}
MAX_PROMPTS: Final = 16
MAX_PROMPT: Final = 10_000
_TOKENIZER: dict[str, Fault] = {"vocab_size": _within(256, 65_536, "1024 to 8192 suits small texts")}


def faults(spec: pb.TrainSpec) -> dict[str, str]:
    """Every wrong number by its path below the spec; empty when all can be honoured."""
    groups: dict[str, tuple[Message, dict[str, Fault]]] = {
        "": (spec, _TRAIN),
        "optimizer.": (spec.optimizer, _OPTIMIZER),
        "schedule.": (spec.schedule, _SCHEDULE),
        "checkpoints.": (spec.checkpoints, _CHECKPOINTS),
        "recovery.": (spec.recovery, _RECOVERY),
        "tokenizer.": (spec.tokenizer, _TOKENIZER),
    }
    wrong: dict[str, str] = {}
    for prefix, (message, checks) in groups.items():
        for field, check in checks.items():
            if fault := _set_fault(message, field, check):
                wrong[prefix + field] = fault
    wrong |= {f"sample.{field}": fault for field, fault in sample_faults(spec.sample).items()}
    if spec.HasField("early_stopping"):
        stopping = early_stopping_faults(spec.early_stopping)
        wrong |= {f"early_stopping.{field}": fault for field, fault in stopping.items()}
    batch, micro = spec.batch_size, spec.microbatch_size
    if spec.HasField("batch_size") and spec.HasField("microbatch_size") and micro > 0 and batch % micro:
        divisors = [n for n in range(1, min(batch, 4096) + 1) if batch % n == 0]
        nearest = min(divisors, key=lambda n: abs(n - micro))
        wrong["microbatch_size"] = f"{micro} does not divide batch_size {batch}; try {nearest}"
    if spec.device and not _is_device(spec.device):
        wrong["device"] = f"{spec.device[:40]!r} is not a device; use cpu, cuda or cuda:1, or leave it out"
    return wrong


def spec_fault(path: str, value: float) -> str | None:
    """What is wrong with a number, by its path in a train spec."""
    group, _, field = path.rpartition(".")
    return (_OPTIMIZER if group == "optimizer" else _TRAIN)[field](value)


def sample_faults(sample: pb.SampleSpec) -> dict[str, str]:
    """What is wrong with what is sampled, by field."""
    wrong = {field: fault for field, check in _SAMPLE.items() if (fault := _set_fault(sample, field, check))}
    if len(sample.prompt) > MAX_PROMPT:
        wrong["prompt"] = f"has {len(sample.prompt)} characters; at most {MAX_PROMPT}"
    if sample.prompt and sample.prompts:
        wrong["prompt"] = "excludes prompts; put it among them"
    if len(sample.prompts) > MAX_PROMPTS:
        wrong["prompts"] = f"has {len(sample.prompts)} prompts; at most {MAX_PROMPTS}"
    for index, prompt in enumerate(sample.prompts):
        if not 0 < len(prompt) <= MAX_PROMPT:
            wrong[f"prompts[{index}]"] = f"has {len(prompt)} characters; 1 to {MAX_PROMPT}"
        elif prompt in sample.prompts[:index]:
            wrong[f"prompts[{index}]"] = "is there twice"
    return wrong


def early_stopping_faults(stopping: pb.EarlyStopping) -> dict[str, str]:
    """What is wrong with when to stop, by field."""
    wrong = {}
    if not 1 <= stopping.patience <= 10_000:
        wrong["patience"] = f"{stopping.patience} is not from 1 to 10000 evaluations; 3 is usual"
    if not 0 <= stopping.min_delta <= 100:
        wrong["min_delta"] = f"{stopping.min_delta:g} is not from 0 to 100; 0.001 is usual"
    if stopping.metric not in pb.StoppingMetric.values():
        known = ", ".join(pb.StoppingMetric.keys()[1:])
        wrong["metric"] = f"{stopping.metric} is none that is known; {known} are"
    return wrong


def _set_fault(message: Message, field: str, check: Fault) -> str | None:
    return check(getattr(message, field)) if message.HasField(field) else None


def _is_device(name: str) -> bool:
    return name in ("cpu", "cuda") or (name.startswith("cuda:") and name[5:].isdecimal() and len(name) < 9)
