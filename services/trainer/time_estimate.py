"""How long a train job will take, from the arithmetic of its parts and what a processor was seen to do in a second."""

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
# Floating-point operations a second of one thread, in bf16 and fp32: fitted to steps of 0.1 to 6.5 M parameters on a
# Zen 5 EPYC, which it meets within 5 % (docs/log.md). Newton-Schulz works on squares, faster than the model does.
_THREAD_FLOPS: Final = {True: 2.76e11, False: 9e10}
_MUON_SPEED: Final = 1.4
# Norms, activations and starting operations: seconds a block of one thread, of a step and of a pass without gradient.
_BLOCK_S: Final = 5.4e-3
_FORWARD_BLOCK_S: Final = 3e-3
_TOKEN_BLOCK_S: Final = 6e-4
# Two threads do 1.9 times the work of one.
_SCALING: Final = 0.93
# A small model on a GPU is bound by starting kernels.
_CUDA_BLOCK_S: Final = 1.5e-3
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
    passes = resolved.batch_size / resolved.microbatch_size
    rate = _rate(resolved, machine)
    shared_s = forward_and_backward / rate + passes * _blocks_s(resolved, a, machine, _BLOCK_S)
    return shared_s / _sharing(resolved, machine) + muon / _MUON_SPEED / rate


def estimated_times(
    resolved: pb.TrainSpec, a: Architecture, text: TextFacts, machine: Machine, step_s: float | None
) -> Times:
    """The parts of a train job on this machine; `step_s` where it has been measured."""
    step = step_s or estimated_step_s(resolved, a, machine)
    rate = _rate(resolved, machine)
    passes = math.ceil(text.validation_tokens / 4096)
    pass_s, token_s = (_blocks_s(resolved, a, machine, each) for each in (_FORWARD_BLOCK_S, _TOKEN_BLOCK_S))
    evaluation_s = text.validation_tokens * a.flops_per_token() / rate + passes * pass_s
    sampled = resolved.sample.length * max(1, len(resolved.sample.prompts))
    sample_s = sampled * (a.context_length * a.flops_per_token() / rate + token_s)
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
    """Floating-point operations a second of the worker."""
    is_bf16 = resolved.precision == pb.TRAINING_PRECISION_BF16
    if resolved.device.startswith("cuda"):
        return machine.flops(is_bf16=is_bf16, device=resolved.device)
    return _THREAD_FLOPS[is_bf16 and machine.has_bf16] * _threads(resolved, machine)


def _blocks_s(resolved: pb.TrainSpec, a: Architecture, machine: Machine, each_s: float) -> float:
    """What all blocks take beside their products, at `each_s` of one thread."""
    if resolved.device.startswith("cuda"):
        return _CUDA_BLOCK_S * a.layers
    return each_s * a.layers / _threads(resolved, machine)


def _sharing(resolved: pb.TrainSpec, machine: Machine) -> float:
    """How many processes get on with a batch at once; every one of them makes the whole update."""
    cores = machine.cores or machine.threads
    most = math.inf if resolved.device.startswith("cuda") else cores / max(1, resolved.threads)
    return max(1.0, min(resolved.processes, most))


def _threads(resolved: pb.TrainSpec, machine: Machine) -> float:
    """How many times the work of one thread those of the worker do."""
    return float(max(1, min(resolved.threads, machine.cores or machine.threads)) ** _SCALING)
