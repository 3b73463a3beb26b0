"""The shape of a model: which tensors it has, how large they are, and the config.json that says so.

Knows nothing of weights, torch or ONNX. Names and layouts are Hugging Face's, so that a bundle loads
unchanged in transformers, vLLM and llama.cpp's converter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from octavo.errors import InvalidArgument
from octavo.formats.config_json import FAMILIES, read_config, write_config
from octavo.v1.errors_pb2 import Reason

Family = Literal["gpt2", "llama", "qwen3"]

# Far above anything a small GPT needs, low enough that a hostile config.json cannot ask for all memory.
_LIMITS: Final[Mapping[str, int]] = {
    "vocab_size": 1 << 20,
    "context_length": 1 << 20,
    "width": 1 << 16,
    "layers": 1 << 10,
    "heads": 1 << 10,
    "kv_heads": 1 << 10,
    "head_size": 1 << 10,
    "mlp_width": 1 << 18,
}


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One model's dimensions, valid by construction.

    `heads` query heads of `head_size` share `kv_heads` key-value heads. `rope_theta` is None exactly for
    gpt2, whose positions are learned. Raises InvalidArgument naming every wrong field when constructed.
    """

    family: Family
    vocab_size: int
    context_length: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    mlp_width: int
    norm_epsilon: float
    rope_theta: float | None
    tie_embeddings: bool

    def __post_init__(self) -> None:
        wrong = _violations(self)
        if wrong:
            raise InvalidArgument.fields(
                {f"architecture.{field}": text for field, text in wrong.items()},
                reason=Reason.REASON_INVALID_ARCHITECTURE,
            )

    @classmethod
    def derive(
        cls,
        family: Family,
        *,
        vocab_size: int,
        context_length: int,
        width: int,
        layers: int,
        heads: int,
        kv_heads: int | None = None,
        head_size: int | None = None,
        mlp_width: int | None = None,
        norm_epsilon: float | None = None,
        rope_theta: float | None = None,
        tie_embeddings: bool = True,
    ) -> Architecture:
        """Fill what is left out as the family does: MLP of 4x (gpt2) or 8/3x (SwiGLU), theta 10000."""
        learned_positions = family == "gpt2"
        return cls(
            family=family,
            vocab_size=vocab_size,
            context_length=context_length,
            width=width,
            layers=layers,
            heads=heads,
            kv_heads=heads if kv_heads is None else kv_heads,
            head_size=width // max(heads, 1) if head_size is None else head_size,
            mlp_width=_mlp_width(family, width) if mlp_width is None else mlp_width,
            norm_epsilon=(1e-5 if learned_positions else 1e-6) if norm_epsilon is None else norm_epsilon,
            rope_theta=10_000.0 if rope_theta is None and not learned_positions else rope_theta,
            tie_embeddings=tie_embeddings,
        )

    @property
    def has_rope(self) -> bool:
        return self.family != "gpt2"

    @property
    def attention_width(self) -> int:
        """Width of the concatenated query heads; differs from `width` where head_size is chosen freely."""
        return self.heads * self.head_size

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_size

    @property
    def parameters(self) -> int:
        """Number of trainable scalars; a tied head is counted once."""
        return sum(math.prod(shape) for shape in self.tensors().values())

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of model.safetensors by its Hugging Face name, in graph order, with its shape.

        gpt2's four projections are Conv1D, stored [in, out]; all others are Linear, stored [out, in].
        A tied head is absent.
        """
        shapes = _gpt2_tensors(self) if self.family == "gpt2" else _llama_tensors(self)
        if not self.tie_embeddings:
            shapes["lm_head.weight"] = (self.vocab_size, self.width)
        return shapes

    def flops_per_token(self, sequence_length: int | None = None, *, is_training: bool = False) -> float:
        """Floating-point operations per token, on average over `sequence_length` (default: context) tokens.

        Two per multiply-add of every matrix the token meets, plus scores and values over the mean causal
        span (T+1)/2; training is three forward passes (Kaplan et al. 2020, section 2.1).
        """
        length = self.context_length if sequence_length is None else sequence_length
        embeddings = {"transformer.wte.weight", "transformer.wpe.weight", "model.embed_tokens.weight"}
        matrices = sum(
            math.prod(shape) for name, shape in self.tensors().items() if len(shape) == 2 and name not in embeddings
        )
        head = self.vocab_size * self.width if self.tie_embeddings else 0
        attention = 2 * self.layers * self.attention_width * (length + 1) / 2
        forward = 2.0 * (matrices + head + attention)
        return 3 * forward if is_training else forward

    def kv_cache_bytes_per_token(self, *, element_bytes: int = 4) -> int:
        """Bytes of keys and values that one position of one sequence occupies over all layers."""
        return 2 * self.layers * self.kv_width * element_bytes

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values; `Architecture(**value)` is the way back."""
        return asdict(self)

    def to_config(
        self,
        *,
        bos_token_id: int | None = None,
        eos_token_id: int | None = None,
        pad_token_id: int | None = None,
        dropout: float = 0.0,
    ) -> dict[str, Any]:
        """The complete config.json.

        Token ids are always written, null included: gpt2's defaults of 50256 lie outside a small vocabulary.
        """
        token_ids = {"bos_token_id": bos_token_id, "eos_token_id": eos_token_id, "pad_token_id": pad_token_id}
        return write_config(self, token_ids=token_ids, dropout=dropout)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Architecture:
        """Read a Hugging Face config.json; InvalidArgument where it asks for what we do not compute."""
        return cls(**read_config(config))


def _mlp_width(family: Family, width: int) -> int:
    """4x for gpt2; for SwiGLU's three matrices 8/3x, rounded up to 32 so that int4 blocks divide it."""
    return 4 * width if family == "gpt2" else math.ceil(8 * width / 3 / 32) * 32


def _violations(a: Architecture) -> dict[str, str]:
    if a.family not in FAMILIES:
        return {"family": f"{a.family!r} is not a family we know; use one of {', '.join(FAMILIES)}"}
    wrong: dict[str, str] = {}
    tie: object = a.tie_embeddings
    if not isinstance(tie, bool):
        wrong["tie_embeddings"] = f"{tie!r} is not true or false"
    for field, most in _LIMITS.items():
        value: object = getattr(a, field)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            wrong[field] = f"{value!r} is not a whole number from 1 to {most}"
    if not (_is_number(a.norm_epsilon) and 0 < a.norm_epsilon < 1):
        wrong["norm_epsilon"] = f"{a.norm_epsilon!r} is not between 0 and 1; 1e-5 is usual"
    return wrong or (_gpt2_violations(a) if a.family == "gpt2" else _rope_violations(a))


def _gpt2_violations(a: Architecture) -> dict[str, str]:
    wrong: dict[str, str] = {}
    if a.width % a.heads:
        wrong["heads"] = f"{a.heads} does not divide the width {a.width}; try {_divisors_near(a.width, a.heads)}"
    elif a.head_size != a.width // a.heads:
        wrong["head_size"] = f"{a.head_size} is not width / heads = {a.width // a.heads}, as gpt2 requires"
    elif a.head_size % 8:
        # The GroupQueryAttention kernels refuse other sizes.
        wrong["head_size"] = f"{a.head_size} is not a multiple of 8; width / heads must be, best 64"
    if a.kv_heads != a.heads:
        wrong["kv_heads"] = f"{a.kv_heads} is not heads = {a.heads}; only llama and qwen3 group heads"
    if a.rope_theta is not None:
        wrong["rope_theta"] = "gpt2 has learned positions; leave it out or use llama or qwen3"
    return wrong


def _rope_violations(a: Architecture) -> dict[str, str]:
    wrong: dict[str, str] = {}
    if a.heads % a.kv_heads:
        near = _divisors_near(a.heads, a.kv_heads)
        wrong["kv_heads"] = f"{a.kv_heads} does not divide heads = {a.heads}; try {near}"
    if a.family == "llama" and a.width % a.heads:
        # transformers refuses to load such a config, although head_dim makes it meaningful.
        near = _divisors_near(a.width, a.heads)
        wrong["heads"] = f"{a.heads} does not divide the width {a.width}, as llama requires; try {near}"
    if a.head_size % 16:
        # The rotary kernel works on halves of 8-element vectors.
        nearest = max(16, round(a.head_size / 16) * 16)
        wrong["head_size"] = f"{a.head_size} is not a multiple of 16, as rotary positions need; try {nearest} or 64"
    if not (_is_number(a.rope_theta) and a.rope_theta is not None and a.rope_theta > 1):
        wrong["rope_theta"] = f"{a.rope_theta!r} is not a finite number above 1; 10000 is usual"
    return wrong


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _divisors_near(whole: int, wanted: int) -> str:
    divisors = [d for d in range(1, min(whole, 1 << 10) + 1) if whole % d == 0]
    nearest = sorted(sorted(divisors, key=lambda d: abs(d - wanted))[:2])
    return " or ".join(map(str, nearest))


def _gpt2_tensors(a: Architecture) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (a.vocab_size, a.width),
        "transformer.wpe.weight": (a.context_length, a.width),
    }
    for layer in range(a.layers):
        block = f"transformer.h.{layer}."
        shapes |= {
            block + "ln_1.weight": (a.width,),
            block + "ln_1.bias": (a.width,),
            block + "attn.c_attn.weight": (a.width, 3 * a.width),
            block + "attn.c_attn.bias": (3 * a.width,),
            block + "attn.c_proj.weight": (a.width, a.width),
            block + "attn.c_proj.bias": (a.width,),
            block + "ln_2.weight": (a.width,),
            block + "ln_2.bias": (a.width,),
            block + "mlp.c_fc.weight": (a.width, a.mlp_width),
            block + "mlp.c_fc.bias": (a.mlp_width,),
            block + "mlp.c_proj.weight": (a.mlp_width, a.width),
            block + "mlp.c_proj.bias": (a.width,),
        }
    return shapes | {"transformer.ln_f.weight": (a.width,), "transformer.ln_f.bias": (a.width,)}


def _llama_tensors(a: Architecture) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (a.vocab_size, a.width)}
    for layer in range(a.layers):
        block = f"model.layers.{layer}."
        shapes |= {
            block + "input_layernorm.weight": (a.width,),
            block + "self_attn.q_proj.weight": (a.attention_width, a.width),
            block + "self_attn.k_proj.weight": (a.kv_width, a.width),
            block + "self_attn.v_proj.weight": (a.kv_width, a.width),
        }
        if a.family == "qwen3":
            shapes |= {
                block + "self_attn.q_norm.weight": (a.head_size,),
                block + "self_attn.k_norm.weight": (a.head_size,),
            }
        shapes |= {
            block + "self_attn.o_proj.weight": (a.width, a.attention_width),
            block + "post_attention_layernorm.weight": (a.width,),
            block + "mlp.gate_proj.weight": (a.mlp_width, a.width),
            block + "mlp.up_proj.weight": (a.mlp_width, a.width),
            block + "mlp.down_proj.weight": (a.width, a.mlp_width),
        }
    return shapes | {"model.norm.weight": (a.width,)}
