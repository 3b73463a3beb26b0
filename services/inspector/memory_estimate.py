"""Estimates what a model needs in memory, from its architecture alone: weights, cache, activations, optimizer.

Closed forms over the table of tensors; nothing is loaded or run. All sizes in bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Final

from octavo.errors import InvalidArgument
from octavo.formats.architecture import Architecture
from octavo.v1 import inspector_pb2 as pb
from services.inspector import findings
from services.inspector.roles import role_of

Precision = pb.ServingPrecision

_LARGEST_BATCH: Final = 65_536
_GIB: Final = 1 << 30
_FP32: Final = 4
# The engine takes prompts in by chunks of at most so many tokens.
_PREFILL_TOKENS: Final = 512
_INT4_BLOCK: Final = 32
_DENSE_ATTENTION_TOKENS: Final = 512

# Embeddings are looked up, not multiplied: they stay as they are.
_EMBEDDINGS: Final = frozenset({pb.TENSOR_ROLE_TOKEN_EMBEDDING, pb.TENSOR_ROLE_POSITION_EMBEDDING})


def estimate(architecture: Architecture, request: pb.EstimateMemoryRequest, available_bytes: int) -> pb.MemoryEstimate:
    """What serving and training need; InvalidArgument for lengths and batches that cannot be."""
    length, batch = _sequence_length(architecture, request), _batch_size(request)
    precision = request.precision or Precision.SERVING_PRECISION_FLOAT32
    element_bytes = 2 if precision == Precision.SERVING_PRECISION_FLOAT16 else _FP32
    result = pb.MemoryEstimate(
        parameter_count=architecture.parameters,
        weights_bytes=weights_bytes(architecture, precision),
        cache_bytes_per_token=architecture.kv_cache_bytes_per_token(element_bytes=element_bytes),
        serving_activation_bytes=_serving_activations(architecture, length, batch) * element_bytes,
        gradient_bytes=_FP32 * architecture.parameters,
        optimizer_bytes=2 * _FP32 * architecture.parameters,
        training_activation_bytes=_training_activations(architecture, length, batch) * _FP32,
        available_bytes=available_bytes,
    )
    result.cache_bytes = result.cache_bytes_per_token * length * batch
    result.serving_bytes = result.weights_bytes + result.cache_bytes + result.serving_activation_bytes
    result.training_bytes = (
        _FP32 * architecture.parameters
        + result.gradient_bytes
        + result.optimizer_bytes
        + result.training_activation_bytes
    )
    left = available_bytes - result.weights_bytes - result.serving_activation_bytes
    result.sequence_capacity = max(left, 0) // (result.cache_bytes_per_token * length)
    result.findings.extend(_judge(result, batch, length))
    return result


def weights_bytes(architecture: Architecture, precision: pb.ServingPrecision.ValueType) -> int:
    """The weights as served: matrices rounded with their scales, embeddings and vectors as they are."""
    if precision == Precision.SERVING_PRECISION_FLOAT16:
        return 2 * architecture.parameters
    if precision == Precision.SERVING_PRECISION_FLOAT32:
        return _FP32 * architecture.parameters
    shapes = architecture.tensors()
    matrices = {name: shape for name, shape in shapes.items() if len(shape) == 2 and role_of(name) not in _EMBEDDINGS}
    plain = sum(math.prod(shape) for name, shape in shapes.items() if name not in matrices)
    if architecture.tie_embeddings:
        # The output needs rounded weights of its own; the embedding stays to be looked up.
        matrices["lm_head.weight"] = (architecture.vocab_size, architecture.width)
    return _FP32 * plain + _rounded_bytes(architecture, matrices, precision)


def _rounded_bytes(
    architecture: Architecture,
    matrices: Mapping[str, tuple[int, ...]],
    precision: pb.ServingPrecision.ValueType,
) -> int:
    count = sum(math.prod(shape) for shape in matrices.values())
    if precision == Precision.SERVING_PRECISION_INT4:
        return count // 2 + count // _INT4_BLOCK * _FP32
    # gpt2's projections are stored [in, out], all other matrices [out, in].
    is_turned = architecture.family == "gpt2"
    columns = sum(shape[1] if is_turned and name != "lm_head.weight" else shape[0] for name, shape in matrices.items())
    return count + columns * _FP32


def _serving_activations(architecture: Architecture, length: int, batch: int) -> int:
    """Numbers alive at once in the widest place of one step, and the scores over the vocabulary."""
    tokens = max(batch, min(length, _PREFILL_TOKENS))
    attention = architecture.attention_width + 2 * architecture.kv_width
    feed_forward = architecture.mlp_width * (1 if architecture.family == "gpt2" else 2)
    return tokens * (2 * architecture.width + max(attention, feed_forward)) + batch * architecture.vocab_size


def _training_activations(architecture: Architecture, length: int, batch: int) -> int:
    """Numbers kept for the backward pass of one microbatch.

    Counted like Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models", section
    4.1: the inputs of every norm, product and activation function. Measured against the trainer's own layers.
    """
    a = architecture
    is_gpt2 = a.family == "gpt2"
    attention = 2 * a.attention_width + 2 * a.kv_width
    if a.family == "qwen3":
        attention += a.attention_width + a.kv_width
    # Up to this length the trainer's attention keeps its scores; a longer one is computed in blocks.
    scores = a.heads * length if length <= _DENSE_ATTENTION_TOKENS else 0
    block = 4 * a.width + attention + scores + a.mlp_width * (2 if is_gpt2 else 4)
    # Scores over the vocabulary and their gradient, beside the input of the last norm and product.
    tokens = length * batch * (a.layers * block + 2 * a.width + 2 * a.vocab_size)
    # Gains are folded into the matrices that follow them, which makes a copy of each.
    matrices = a.width * (a.attention_width + 2 * a.kv_width + 2 * a.mlp_width)
    return tokens + (0 if is_gpt2 else a.layers * matrices)


def _sequence_length(architecture: Architecture, request: pb.EstimateMemoryRequest) -> int:
    length = request.sequence_length or architecture.context_length
    if not 1 <= length <= architecture.context_length:
        raise InvalidArgument.field(
            "sequence_length", f"{length} is not from 1 to the model's context of {architecture.context_length}"
        )
    return length


def _batch_size(request: pb.EstimateMemoryRequest) -> int:
    batch = request.batch_size or 1
    if not 1 <= batch <= _LARGEST_BATCH:
        raise InvalidArgument.field("batch_size", f"{batch} is not from 1 to {_LARGEST_BATCH}")
    return batch


def _judge(result: pb.MemoryEstimate, batch: int, length: int) -> Iterator[pb.InspectionFinding]:
    free = f"{result.available_bytes / _GIB:.2f} GiB are free here"
    if result.serving_bytes > result.available_bytes:
        if result.sequence_capacity:
            advice = f"serve {result.sequence_capacity} sequences of {length} tokens at once, or shorter ones"
        else:
            advice = "serve a smaller precision, or use a machine with more memory"
        yield findings.error(
            "serving-does-not-fit", "serving", f"{result.serving_bytes / _GIB:.2f} GiB are needed, {free}", advice
        )
    if result.training_bytes > result.available_bytes:
        fixed = result.training_bytes - result.training_activation_bytes
        fitting = max(result.available_bytes - fixed, 0) * batch // max(result.training_activation_bytes, 1)
        yield findings.warning(
            "training-does-not-fit",
            "training",
            f"{result.training_bytes / _GIB:.2f} GiB are needed, {free}",
            f"use microbatches of {fitting}" if fitting else "train a smaller model, or adapters only",
        )
