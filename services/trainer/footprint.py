"""How much memory and disk a train job takes: counted from its resolved spec, before anything runs."""

from __future__ import annotations

from octavo.formats.architecture import Architecture
from octavo.v1 import trainer_pb2 as pb

# What a worker needs before it holds a model: Python, torch and its thread pools.
_PROCESS_BYTES = 400 << 20
# fp32, which checkpoints keep and bundles hold whatever was trained in.
_ELEMENT_BYTES = 4
# Tokenizer, graph, card and manifest.
_FILES_BYTES = 4 << 20


def memory_bytes(resolved: pb.TrainSpec, architecture: Architecture) -> int:
    """Peak of the worker: process, weights with gradients and optimizer state, and one microbatch's activations."""
    a = architecture
    element = 2 if resolved.precision == pb.TRAINING_PRECISION_BF16 else 4
    copies = 4 + (1 if resolved.ema_decay else 0)
    tokens = resolved.microbatch_size * a.context_length
    block = 12 * a.width + 3 * (a.attention_width + 2 * a.kv_width) + 5 * a.mlp_width
    scores = 2 * a.heads * min(a.context_length, 512)
    logits = tokens * a.vocab_size * (4 * 3 + element)
    process = (
        _PROCESS_BYTES
        + _ELEMENT_BYTES * copies * a.parameters
        + tokens * a.layers * (block + scores) * element
        + logits
    )
    # On CUDA each process has a device, and with it a memory, of its own.
    sharing = 1 if resolved.device.startswith("cuda") else max(1, resolved.processes)
    return int(sharing * process)


def checkpoint_bytes(resolved: pb.TrainSpec, architecture: Architecture) -> int:
    """One checkpoint: weights, a momentum for matrices or two moments for the rest, and averages where there are."""
    a = architecture
    outside = a.vocab_size * a.width * (1 if a.tie_embeddings else 2)
    copies = 2 + (1 if resolved.ema_decay else 0)
    return _ELEMENT_BYTES * (copies * a.parameters + min(outside, a.parameters))


def disk_bytes(resolved: pb.TrainSpec, architecture: Architecture, total_steps: int) -> int:
    """The job's files at their most: the checkpoints that are kept, the one being written, and the bundle."""
    policy = resolved.checkpoints
    written = 1 + (total_steps // policy.interval_steps if policy.interval_steps else 0)
    kept = min(policy.keep_latest + (1 if policy.keep_best else 0), written) + 1
    if policy.milestone_interval_steps:
        kept += total_steps // policy.milestone_interval_steps
    bundle = _ELEMENT_BYTES * architecture.parameters + _FILES_BYTES
    return kept * checkpoint_bytes(resolved, architecture) + bundle
