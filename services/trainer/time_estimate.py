"""How long a train job will take, from the arithmetic of its parts and what the machine does in a second."""

from __future__ import annotations

import math
from typing import Final

from octavo.formats.architecture import Architecture
from octavo.v1 import trainer_pb2 as pb
from services.trainer.footprint import checkpoint_bytes
from services.trainer.machine import Machine
from services.trainer.text_facts import TextFacts
from services.trainer.times import Times

# Python with torch, its thread pools and the first kernels.
_START_S: Final = 4.0
# Seconds that a byte of text takes to be fetched, verified and made into tokens.
_TOKENIZING_S: Final = 1.5e-7
_TRAINING_BPE_S: Final = 6e-7
# Bytes a second that are written and synced.
_DISK_BYTES_PER_S: Final = 3e8
# Python starts about 300 operations a block and pass, at 5 microseconds each; two thirds of them going backward.
_PASS_S: Final = 1.5e-3
_FORWARD_PART: Final = 1 / 3
# Building the ONNX graph, loading it, proving it; then once more for every precision beside fp32.
_RELEASE_S: Final = 2.0
_PROVED_TOKENS: Final = 6
_PRECISION_TOKENS: Final = 150_000


def estimated_step_s(resolved: pb.TrainSpec, a: Architecture, machine: Machine) -> float:
    """Duration of an optimizer step, seconds."""
    tokens = resolved.batch_size * a.context_length
    forward_and_backward = tokens * a.flops_per_token(is_training=True)
    # Newton-Schulz: five iterations of three products over each block's 12 d^2 parameters, about 30 d multiply-adds.
    muon = 60.0 * a.width * a.layers * 12 * a.width**2
    overhead_s = _PASS_S * a.layers * (resolved.batch_size / resolved.microbatch_size)
    return (forward_and_backward + muon) / _rate(resolved, machine) + overhead_s


def estimated_times(
    resolved: pb.TrainSpec, a: Architecture, text: TextFacts, machine: Machine, step_s: float | None
) -> Times:
    """The parts of a train job on this machine; `step_s` where it has been measured."""
    step = step_s or estimated_step_s(resolved, a, machine)
    rate = _rate(resolved, machine)
    passes = math.ceil(text.validation_tokens / 4096)
    pass_s = _FORWARD_PART * _PASS_S * a.layers
    evaluation_s = text.validation_tokens * a.flops_per_token() / rate + passes * pass_s
    sample_s = resolved.sample.length * (a.context_length * a.flops_per_token() / rate + pass_s)
    size = text.size_bytes or 2 * text.train_tokens
    is_bpe = resolved.tokenizer.kind == pb.TOKENIZER_KIND_BYTE_BPE
    return Times(
        step_s=step,
        evaluation_s=evaluation_s,
        sample_s=sample_s,
        save_s=checkpoint_bytes(resolved, a) / _DISK_BYTES_PER_S,
        setup_s=_START_S + size * (_TOKENIZING_S + (_TRAINING_BPE_S if is_bpe else 0.0)),
        calibration_s=1.0 + 4 * step + evaluation_s if resolved.HasField("time_budget") else 0.0,
        release_s=_release_s(resolved, a, machine, evaluation_s),
    )


def _release_s(resolved: pb.TrainSpec, a: Architecture, machine: Machine, evaluation_s: float) -> float:
    fp32 = machine.flops(is_bf16=False, device="cpu") * min(resolved.threads, machine.threads) / machine.threads
    proof_s = _PROVED_TOKENS * a.context_length * a.flops_per_token() / fp32
    precisions = len(set(resolved.export_precisions) - {"fp32"})
    return _RELEASE_S + 2 * evaluation_s + proof_s + precisions * _PRECISION_TOKENS * a.flops_per_token() / fp32


def _rate(resolved: pb.TrainSpec, machine: Machine) -> float:
    is_bf16 = resolved.precision == pb.TRAINING_PRECISION_BF16
    return machine.flops(is_bf16=is_bf16, device=resolved.device) * _share(resolved, machine)


def _share(resolved: pb.TrainSpec, machine: Machine) -> float:
    """The part of the machine's threads that the worker has; a device of its own has all of itself."""
    if resolved.device.startswith("cuda"):
        return 1.0
    return min(resolved.threads, machine.cores or machine.threads) / machine.threads
