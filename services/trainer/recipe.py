"""The recipe behind the one dial: what `size` and the amount of text say about everything that was left out.

Every number was measured at size 4 on Tiny Shakespeare (docs/log.md) and is carried to other sizes by the rules
beside it. Knows nothing of validity or of time.
"""

from __future__ import annotations

from collections.abc import Mapping

from google.protobuf.message import Message

from octavo.formats.architecture import Architecture, Family
from octavo.v1 import trainer_pb2 as pb

DEFAULT_SIZE = 4
DEFAULT_SEED = 1337
DEFAULT_VALIDATION_FRACTION = 0.1
CHARACTER_TEXT_LIMIT_BYTES = 4 << 20
FAMILIES: dict[int, Family] = {
    pb.MODEL_FAMILY_GPT2: "gpt2",
    pb.MODEL_FAMILY_LLAMA: "llama",
    pb.MODEL_FAMILY_QWEN3: "qwen3",
}


def family(spec: pb.TrainSpec) -> Family:
    """qwen3 unless the spec says otherwise: QK-norm lets Muon use the highest rates."""
    return FAMILIES[spec.family or pb.MODEL_FAMILY_QWEN3]


def width(size: int) -> int:
    """32 a block, in whole heads of 64: 128 at 4 blocks, 256 at 8, 768 at 24."""
    return max(64, -(-32 * size // 64) * 64)


def heads(model_width: int) -> int:
    """Of 64 where they divide the width: half as many score matrices as heads of 32, at the same loss."""
    for size in (64, 32, 48, 80, 96, 16):
        if model_width % size == 0:
            return model_width // size
    return max(1, model_width // 32)


def context_length(size: int, train_tokens: int, row_tokens: int = 0) -> int:
    """128 for small models, longer for larger ones, never more than an eighth of the text.

    For rows of usually `row_tokens`, as long as they are (the last token of a row is only predicted), in powers of two
    up to 2048.
    """
    if row_tokens:
        return min(2048, max(32, 1 << (row_tokens - 2).bit_length()))
    wanted = 128 if size <= 4 else 256 if size <= 8 else 512
    while wanted > 16 and wanted * 8 > train_tokens:
        wanted //= 2
    return wanted


def tie_embeddings(vocab_size: int, model_width: int, layers: int) -> bool:
    """Two matrices train better while they are small beside the blocks (12 d^2 parameters each)."""
    return vocab_size * model_width > 12 * layers * model_width**2 // 8


def batch_size(size: int, model_context: int, train_tokens: int) -> int:
    """2048 tokens a step at 4 blocks, growing with the square of the depth, at least 16 steps an epoch."""
    tokens = min(2048 * max(1.0, size / DEFAULT_SIZE) ** 2, 1 << 17, max(train_tokens / 16, model_context))
    return max(1, round(tokens / model_context))


def microbatch_size(batch: int, model_context: int, vocab_size: int) -> int:
    """The largest divisor of the batch with at most 16,384 tokens and 2^26 logits in one pass."""
    limit = max(1, min(16_384 // model_context, (1 << 26) // (model_context * vocab_size)))
    return max(n for n in range(1, batch + 1) if batch % n == 0 and n <= limit)


def steps(parameters: int, train_tokens: int, tokens_per_step: int) -> int:
    """Eight tokens a parameter, at most 10 epochs: beyond, a small text is learnt by heart."""
    tokens = min(8 * parameters, 10 * train_tokens)
    return max(20, round(tokens / tokens_per_step))


def dropout(epochs: float) -> float:
    """None while the text is fresh: up to 8 epochs it costs a small model more than it saves (docs/log.md)."""
    return 0.0 if epochs <= 8 else 0.1 if epochs <= 20 else 0.2


def fill_unset(message: Message, values: Mapping[str, float]) -> None:
    """Set the fields of `message` that are not set."""
    for field, value in values.items():
        if not message.HasField(field):
            setattr(message, field, value)


def fill_optimizer(spec: pb.OptimizerSpec, architecture: Architecture) -> None:
    """Peak rates and decays; AdamW's rate falls with the root of the width, Muon's needs no change."""
    defaults = {
        "matrix_learning_rate": 0.02,
        "learning_rate": 0.004 * (128 / architecture.width) ** 0.5,
        "weight_decay": 0.0,
        "beta1": 0.8,
        "beta2": 0.95,
        "momentum": 0.95,
        "gradient_clip": 0.0,
    }
    fill_unset(spec, defaults)


def fill_schedule(spec: pb.ScheduleSpec, total_steps: int) -> None:
    """A short warm-up, then down to zero over the last 60 %."""
    defaults = {
        "warmup_steps": min(10, total_steps // 10),
        "cooldown_fraction": 0.6,
        "final_fraction": 0.0,
    }
    fill_unset(spec, defaults)


def fill_recovery(policy: pb.RecoveryPolicy) -> None:
    """Three rollbacks at half the rates each: an eighth of a rate that diverges is one that does not."""
    fill_unset(policy, {"max_rollbacks": 3, "learning_rate_factor": 0.5, "split_microbatch": True})
