"""Hugging Face's config.json, written from an Architecture and read back into one.

Knows nothing of files or weights. Refuses a config that asks for what our graphs do not compute.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from octavo.errors import InvalidArgument
from octavo.v1.errors_pb2 import Reason

if TYPE_CHECKING:
    from octavo.formats.architecture import Architecture

_CLASSES: Final[Mapping[str, str]] = {
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
FAMILIES: Final[tuple[str, ...]] = tuple(_CLASSES)


def write_config(a: Architecture, *, token_ids: Mapping[str, int | None], dropout: float) -> dict[str, Any]:
    """The complete config.json; `token_ids` are its bos, eos and pad entries, null where None."""
    shared = {
        "architectures": [_CLASSES[a.family]],
        "model_type": a.family,
        "vocab_size": a.vocab_size,
        **token_ids,
        "tie_word_embeddings": a.tie_embeddings,
        "initializer_range": 0.02,
        "use_cache": True,
        "dtype": "float32",
    }
    return shared | (_gpt2_config(a, dropout) if a.family == "gpt2" else _llama_config(a, dropout))


def read_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """An Architecture's fields; InvalidArgument where the config asks for what our graphs do not compute."""
    family = config.get("model_type")
    if family not in FAMILIES:
        raise InvalidArgument.field(
            "config.model_type",
            f"{family!r} is not a family we know; use one of {', '.join(FAMILIES)}",
            reason=Reason.REASON_INVALID_ARCHITECTURE,
        )
    _refuse_variants(config, _GPT2_FIXED if family == "gpt2" else _LLAMA_FIXED)
    return {"family": family} | (_from_gpt2(config) if family == "gpt2" else _from_llama(config))


def _gpt2_config(a: Architecture, dropout: float) -> dict[str, Any]:
    return {
        "n_positions": a.context_length,
        # transformers ignores n_ctx; llama.cpp's converter requires it.
        "n_ctx": a.context_length,
        "n_embd": a.width,
        "n_layer": a.layers,
        "n_head": a.heads,
        "n_inner": None if a.mlp_width == 4 * a.width else a.mlp_width,
        "activation_function": "gelu_new",
        "resid_pdrop": dropout,
        "embd_pdrop": dropout,
        "attn_pdrop": dropout,
        "layer_norm_epsilon": a.norm_epsilon,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
    }


def _llama_config(a: Architecture, dropout: float) -> dict[str, Any]:
    config: dict[str, Any] = {
        "hidden_size": a.width,
        "intermediate_size": a.mlp_width,
        "num_hidden_layers": a.layers,
        "num_attention_heads": a.heads,
        "num_key_value_heads": a.kv_heads,
        "head_dim": a.head_size,
        "hidden_act": "silu",
        "rms_norm_eps": a.norm_epsilon,
        "max_position_embeddings": a.context_length,
        "attention_bias": False,
        "attention_dropout": dropout,
        # transformers 5 reads rope_parameters; 4 and most converters read rope_theta.
        "rope_parameters": {"rope_type": "default", "rope_theta": a.rope_theta},
        "rope_theta": a.rope_theta,
    }
    if a.family == "llama":
        return config | {"mlp_bias": False}
    return config | {"use_sliding_window": False, "layer_types": ["full_attention"] * a.layers}


def _from_gpt2(config: Mapping[str, Any]) -> dict[str, Any]:
    width, heads = _whole(config, "n_embd"), _whole(config, "n_head")
    inner = config.get("n_inner")
    return {
        "vocab_size": _whole(config, "vocab_size"),
        "context_length": _whole(config, "n_positions"),
        "width": width,
        "layers": _whole(config, "n_layer"),
        "heads": heads,
        "kv_heads": heads,
        "head_size": width // max(heads, 1),
        "mlp_width": 4 * width if inner is None else _whole(config, "n_inner"),
        "norm_epsilon": _real(config, "layer_norm_epsilon", 1e-5),
        "rope_theta": None,
        "tie_embeddings": config.get("tie_word_embeddings", True) is True,
    }


def _from_llama(config: Mapping[str, Any]) -> dict[str, Any]:
    width, heads = _whole(config, "hidden_size"), _whole(config, "num_attention_heads")
    rope = config.get("rope_parameters") or config
    is_qwen3 = config["model_type"] == "qwen3"
    # Left out, transformers takes 128 for qwen3 and width / heads for llama; kv heads default likewise.
    default_head_size = 128 if is_qwen3 else width // max(heads, 1)
    return {
        "vocab_size": _whole(config, "vocab_size"),
        "context_length": _whole(config, "max_position_embeddings"),
        "width": width,
        "layers": _whole(config, "num_hidden_layers"),
        "heads": heads,
        "kv_heads": _whole(config, "num_key_value_heads", 32 if is_qwen3 else heads),
        "head_size": _whole(config, "head_dim", default_head_size),
        "mlp_width": _whole(config, "intermediate_size"),
        "norm_epsilon": _real(config, "rms_norm_eps", 1e-6),
        "rope_theta": _real(rope, "rope_theta", 10_000.0),
        "tie_embeddings": config.get("tie_word_embeddings", False) is True,
    }


def _whole(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    value = default if value is None else value
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise InvalidArgument.field(
        f"config.{key}", f"{value!r} is not a whole number", reason=Reason.REASON_INVALID_ARCHITECTURE
    )


def _real(config: Mapping[str, Any], key: str, default: float) -> float:
    value = config.get(key)
    value = default if value is None else value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    raise InvalidArgument.field(
        f"config.{key}", f"{value!r} is not a number", reason=Reason.REASON_INVALID_ARCHITECTURE
    )


def _is_plain_rope(value: Any) -> bool:
    if value is None:
        return True
    if not isinstance(value, Mapping):
        return False
    partial = value.get("partial_rotary_factor", 1.0)
    return bool(value.get("rope_type", value.get("type", "default")) == "default" and partial == 1.0)


def _is_full_attention(value: Any) -> bool:
    return isinstance(value, list) and all(kind == "full_attention" for kind in value)


# What a config may say only in this way, because neither our graphs nor our trainer compute the other way.
_Check = tuple[str, Callable[[Any], bool], str]
_GPT2_FIXED: Final[tuple[_Check, ...]] = (
    ("activation_function", lambda v: v in (None, "gelu_new", "gelu_pytorch_tanh"), "gelu_new"),
    ("scale_attn_weights", lambda v: v in (None, True), "true"),
    ("scale_attn_by_inverse_layer_idx", lambda v: v in (None, False), "false"),
    ("add_cross_attention", lambda v: v in (None, False), "false"),
)
_LLAMA_FIXED: Final[tuple[_Check, ...]] = (
    ("hidden_act", lambda v: v in (None, "silu", "swish"), "silu"),
    ("attention_bias", lambda v: v in (None, False), "false"),
    ("mlp_bias", lambda v: v in (None, False), "false"),
    ("use_sliding_window", lambda v: v in (None, False), "false"),
    ("layer_types", lambda v: v is None or _is_full_attention(v), 'all "full_attention"'),
    ("rope_scaling", _is_plain_rope, "null"),
    ("rope_parameters", _is_plain_rope, 'rope_type "default" over the whole head'),
    ("partial_rotary_factor", lambda v: v in (None, 1, 1.0), "1.0"),
)


def _refuse_variants(config: Mapping[str, Any], fixed: tuple[_Check, ...]) -> None:
    wrong = {
        f"config.{key}": f"{config[key]!r} is not something our graphs compute; only {right} is"
        for key, is_right, right in fixed
        if key in config and not is_right(config[key])
    }
    if wrong:
        raise InvalidArgument.fields(wrong, reason=Reason.REASON_INVALID_ARCHITECTURE)
