"""The shape of the model."""

from __future__ import annotations

import math

from octavo.v1 import trainer_pb2 as pb
from services.trainer import recipe
from services.trainer.checks.finding import Case, Finding, fault, obstacle, warning, within

_HEAD_SIZE = 64
# Four-bit weights are rounded in blocks of so many inputs.
_BLOCK = 32


def _divisors(whole: int, most: int = 1024) -> list[int]:
    return [n for n in range(1, min(whole, most) + 1) if whole % n == 0]


def _nearest(choices: list[int], wanted: int) -> int:
    return min(choices, key=lambda n: (abs(n - wanted), n))


def _multiple(of: int, near: int) -> int:
    return max(of, round(near / of) * of)


def _step(spec: pb.TrainSpec) -> int:
    """What the size of a head is a multiple of, by the family: rotary positions turn pairs of vectors of 8."""
    return 8 if spec.family == pb.MODEL_FAMILY_GPT2 else 16


def _fitting_heads(spec: pb.TrainSpec) -> Finding:
    """The number of heads, or where none will do the width, that gives heads of a whole size."""
    a, step = spec.architecture, _step(spec)
    fitting = [n for n in _divisors(a.width) if a.width // n % step == 0]
    if fitting:
        return Finding("", {"architecture.heads": _nearest(fitting, a.heads), "architecture.kv_heads": None})
    return Finding("", {"architecture.width": _multiple(step * a.heads, a.width)})


@fault("architecture.heads", "Heads divide the width.")
def heads_divide_width(spec: pb.TrainSpec) -> Finding | None:
    a = spec.architecture
    if a.width % a.heads == 0:
        return None
    return Finding(f"{a.heads} does not divide the width {a.width}", _fitting_heads(spec).change)


@fault("architecture.heads", "Heads have a size that is a multiple of 16, of 8 for gpt2, as the kernels need.")
def head_size_multiple(spec: pb.TrainSpec) -> Finding | None:
    a, step = spec.architecture, _step(spec)
    if a.width % a.heads or a.width // a.heads % step == 0:
        return None
    why = f"heads of {a.width} / {a.heads} = {a.width // a.heads}, which is no multiple of {step}"
    return Finding(why, _fitting_heads(spec).change)


@fault("architecture.kv_heads", "Heads of keys and values divide the heads.")
def kv_heads_divide_heads(spec: pb.TrainSpec) -> Finding | None:
    a = spec.architecture
    if a.heads % a.kv_heads == 0:
        return None
    near = _nearest(_divisors(a.heads), a.kv_heads)
    return Finding(f"{a.kv_heads} does not divide heads = {a.heads}", {"architecture.kv_heads": near})


@fault("architecture.kv_heads", "gpt2 has as many heads of keys and values as heads.")
def gpt2_groups_no_heads(spec: pb.TrainSpec) -> Finding | None:
    a = spec.architecture
    if spec.family != pb.MODEL_FAMILY_GPT2 or a.kv_heads == a.heads:
        return None
    why = f"{a.kv_heads} is not heads = {a.heads}; only llama and qwen3 group heads"
    return Finding(why, {"architecture.kv_heads": None}, "choose the family qwen3")


@obstacle("architecture.context_length", "The training text is longer than one context.")
def context_beyond_text(case: Case) -> Finding | None:
    context, tokens = case.shape.context_length, case.text.train_tokens
    if context < tokens or case.text.row_tokens:
        return None
    most = max(1, tokens - 1)
    return Finding(
        f"{context} is longer than the training part of the text, {tokens:,} tokens; at most {most} fits",
        {"architecture.context_length": most},
        "give more text",
    )


@warning("architecture.heads", "Heads of 64 train as well as smaller ones and need fewer score matrices.")
def heads_not_of_64(case: Case) -> Finding | None:
    a = case.shape
    if not case.has("architecture.heads") or a.head_size == _HEAD_SIZE or a.width % _HEAD_SIZE:
        return None
    change = {"architecture.heads": a.width // _HEAD_SIZE, "architecture.kv_heads": None}
    return Finding(f"{a.heads} heads of {a.head_size}; heads of {_HEAD_SIZE} are what kernels are made for", change)


@warning("architecture.width", "Widths are multiples of 64, in which kernels and heads are laid out.")
def width_ragged(case: Case) -> Finding | None:
    width = case.shape.width
    if not case.has("architecture.width") or width <= _HEAD_SIZE or width % _HEAD_SIZE == 0:
        return None
    change = {
        "architecture.width": _multiple(_HEAD_SIZE, width),
        "architecture.heads": None,
        "architecture.kv_heads": None,
    }
    return Finding(f"{width} is no multiple of {_HEAD_SIZE}: heads are odd and kernels work on padding", change)


@warning("architecture.width", "The width grows with the depth, about 32 a block.")
def width_too_narrow(case: Case) -> Finding | None:
    a = case.shape
    if not (case.has("architecture.width") or case.has("architecture.layers")) or a.width >= 8 * a.layers:
        return None
    change = {
        "architecture.width": recipe.width(a.layers),
        "architecture.heads": None,
        "architecture.kv_heads": None,
    }
    return Finding(f"{a.layers} blocks of width {a.width}: so deep and narrow a model trains slowly", change)


@warning("architecture.layers", "The depth grows with the width, about a block for each 32.")
def too_few_layers(case: Case) -> Finding | None:
    a = case.shape
    if not (case.has("architecture.width") or case.has("architecture.layers")) or a.width <= 256 * a.layers:
        return None
    layers = math.ceil(a.width / 128)
    return Finding(
        f"{a.layers} blocks of width {a.width}: so wide and shallow a model wastes its width",
        {"architecture.layers": layers},
    )


@warning("architecture.mlp_width", "The feed-forward part is a multiple of 32 wide, so that blocks of weights fill it.")
def mlp_width_ragged(case: Case) -> Finding | None:
    width = case.shape.mlp_width
    if not case.has("architecture.mlp_width") or width % _BLOCK == 0:
        return None
    nearest = math.ceil(width / _BLOCK) * _BLOCK
    return Finding(
        f"{width} is no multiple of {_BLOCK}: its last block of weights is padding",
        {"architecture.mlp_width": nearest},
    )


@warning("architecture.mlp_width", "The feed-forward part is wider than the model: 8/3 of it, 4 for gpt2.")
def mlp_width_narrow(case: Case) -> Finding | None:
    a = case.shape
    if not case.has("architecture.mlp_width") or a.mlp_width >= a.width:
        return None
    why = f"{a.mlp_width} inside blocks of width {a.width} is a bottleneck"
    return Finding(why, {"architecture.mlp_width": None})


@warning("architecture.mlp_width", "The feed-forward part is not so wide that it takes nearly all parameters.")
def mlp_width_wide(case: Case) -> Finding | None:
    a = case.shape
    if not case.has("architecture.mlp_width") or a.mlp_width <= 8 * a.width:
        return None
    why = f"{a.mlp_width} inside blocks of width {a.width} takes nearly all parameters; more blocks would learn more"
    return Finding(why, {"architecture.mlp_width": None})


@warning("size", "The dial and the depth agree where both are set.")
def size_without_effect(case: Case) -> Finding | None:
    size, layers = case.spec.size, case.shape.layers
    if not (case.has("size") and case.has("architecture.layers")) or size == layers:
        return None
    why = f"the model has {layers} blocks; size {size} only chooses what is left out beside them"
    return Finding(why, {"size": layers} if layers <= 48 else {"size": None})


@warning("architecture.tie_embeddings", "Two matrices train better than one while they are small beside the blocks.")
def small_vocabulary_tied(case: Case) -> Finding | None:
    a = case.shape
    is_large = recipe.tie_embeddings(a.vocab_size, a.width, a.layers)
    if not case.has("architecture.tie_embeddings") or not a.tie_embeddings or a.family == "gpt2" or is_large:
        return None
    why = f"{a.vocab_size} entries of width {a.width} are few: a matrix of their own for the output learns more"
    return Finding(why, {"architecture.tie_embeddings": False})


@warning("architecture.tie_embeddings", "A large vocabulary is stored once, for input and output.")
def large_vocabulary_untied(case: Case) -> Finding | None:
    a = case.shape
    is_large = recipe.tie_embeddings(a.vocab_size, a.width, a.layers)
    if not case.has("architecture.tie_embeddings") or a.tie_embeddings or a.family == "gpt2" or not is_large:
        return None
    why = f"a second matrix of {a.vocab_size:,} x {a.width} is {a.vocab_size * a.width / a.parameters:.0%} of the model"
    return Finding(why, {"architecture.tie_embeddings": True})


@warning("architecture.context_length", "The text holds at least eight contexts.")
def few_contexts(case: Case) -> Finding | None:
    a, tokens = case.shape, case.text.train_tokens
    usual = recipe.context_length(a.layers, tokens)
    if case.text.row_tokens or tokens >= 8 * a.context_length or a.context_length <= usual:
        return None
    why = f"{tokens:,} tokens are only {tokens // a.context_length} windows of {a.context_length}"
    return Finding(why, {"architecture.context_length": usual}, "give more text")


@warning("size", "A model sees at least one token for each of its parameters.")
def parameters_beyond_tokens(case: Case) -> Finding | None:
    plan = case.plan
    tokens = plan.total_steps * plan.tokens_per_step
    if tokens >= plan.parameter_count or plan.total_steps < 100:
        return None
    why = f"{plan.parameter_count:,} parameters see only {tokens:,} tokens; a smaller model would learn more"
    steps = math.ceil(plan.parameter_count / plan.tokens_per_step)
    return Finding(why, {"steps": steps}, f"choose a size below {case.spec.size}")


ASKED = (
    within("size", 1, 48, "4 is a good beginning"),
    within("architecture.layers", 1, 1024, "4 to 24 is usual"),
    within("architecture.heads", 1, 1024, "leave it out to have heads of 64"),
    within("architecture.kv_heads", 1, 1024, "leave it out to have as many as heads"),
    within("architecture.width", 1, 1 << 16, "leave it out to have 32 for each block"),
    within("architecture.mlp_width", 1, 1 << 18, "leave it out to have it derived from the width"),
    within("architecture.context_length", 1, 1 << 20, "128 to 1024 is usual"),
)
SHAPED = (heads_divide_width, head_size_multiple, kv_heads_divide_heads, gpt2_groups_no_heads)
PLANNED = (
    context_beyond_text,
    heads_not_of_64,
    width_ragged,
    width_too_narrow,
    too_few_layers,
    mlp_width_ragged,
    mlp_width_narrow,
    mlp_width_wide,
    size_without_effect,
    small_vocabulary_tied,
    large_vocabulary_untied,
    few_contexts,
    parameters_beyond_tokens,
)
