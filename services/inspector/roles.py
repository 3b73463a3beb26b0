"""What a tensor does in a model, told from its name: Hugging Face's for GPT-2, Llama and Qwen, and nanoGPT's.

Knows nothing of shapes or files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from octavo.v1 import inspector_pb2 as pb

Role = pb.TensorRole

_BLOCK: Final = re.compile(r"(?:^|[./])(?:h|layers|blocks)[./](\d{1,6})[./](.+)$")
_ADAPTER: Final = re.compile(r"[./]lora_(?:A|B|embedding_A|embedding_B)(?:[./]|$)")
_QUANTIZATION: Final = re.compile(r"(?:[._/])(?:scales?|zero_points?|zeros|qzeros|scales_and_zeros|g_idx|zp)$")
_BUFFER: Final = re.compile(r"(?:^|[./])(?:attn\.bias|masked_bias|inv_freq|cos_cache|sin_cache|position_ids)$")

_IN_BLOCK: Final[Mapping[str, pb.TensorRole.ValueType]] = MappingProxyType(
    {
        "attn.c_attn": Role.TENSOR_ROLE_ATTENTION_QUERY_KEY_VALUE,
        "attn.c_proj": Role.TENSOR_ROLE_ATTENTION_OUTPUT,
        "ln_1": Role.TENSOR_ROLE_ATTENTION_NORM,
        "ln_2": Role.TENSOR_ROLE_FEED_FORWARD_NORM,
        "mlp.c_fc": Role.TENSOR_ROLE_FEED_FORWARD_UP,
        "mlp.c_proj": Role.TENSOR_ROLE_FEED_FORWARD_DOWN,
        "self_attn.q_proj": Role.TENSOR_ROLE_ATTENTION_QUERY,
        "self_attn.k_proj": Role.TENSOR_ROLE_ATTENTION_KEY,
        "self_attn.v_proj": Role.TENSOR_ROLE_ATTENTION_VALUE,
        "self_attn.qkv_proj": Role.TENSOR_ROLE_ATTENTION_QUERY_KEY_VALUE,
        "self_attn.o_proj": Role.TENSOR_ROLE_ATTENTION_OUTPUT,
        "self_attn.q_norm": Role.TENSOR_ROLE_ATTENTION_QUERY_NORM,
        "self_attn.k_norm": Role.TENSOR_ROLE_ATTENTION_KEY_NORM,
        "input_layernorm": Role.TENSOR_ROLE_ATTENTION_NORM,
        "post_attention_layernorm": Role.TENSOR_ROLE_FEED_FORWARD_NORM,
        "mlp.gate_proj": Role.TENSOR_ROLE_FEED_FORWARD_GATE,
        "mlp.up_proj": Role.TENSOR_ROLE_FEED_FORWARD_UP,
        "mlp.down_proj": Role.TENSOR_ROLE_FEED_FORWARD_DOWN,
    }
)
_OUTSIDE: Final[Mapping[str, pb.TensorRole.ValueType]] = MappingProxyType(
    {
        "wte": Role.TENSOR_ROLE_TOKEN_EMBEDDING,
        "embed_tokens": Role.TENSOR_ROLE_TOKEN_EMBEDDING,
        "wpe": Role.TENSOR_ROLE_POSITION_EMBEDDING,
        "embed_positions": Role.TENSOR_ROLE_POSITION_EMBEDDING,
        "ln_f": Role.TENSOR_ROLE_OUTPUT_NORM,
        "norm": Role.TENSOR_ROLE_OUTPUT_NORM,
        "lm_head": Role.TENSOR_ROLE_OUTPUT,
    }
)


def role_of(name: str) -> pb.TensorRole.ValueType:
    """The role, or OTHER when the name follows no convention known here."""
    if _ADAPTER.search(name):
        return Role.TENSOR_ROLE_ADAPTER
    if _BUFFER.search(name):
        return Role.TENSOR_ROLE_BUFFER
    if _QUANTIZATION.search(name):
        return Role.TENSOR_ROLE_QUANTIZATION
    place = _BLOCK.search(name)
    if place:
        owner = re.sub(r"[./](?:weight|bias)$", "", place.group(2)).replace("/", ".")
        return _IN_BLOCK.get(owner, Role.TENSOR_ROLE_OTHER)
    owner = re.split(r"[./]", re.sub(r"[./](?:weight|bias)$", "", name))[-1]
    return _OUTSIDE.get(owner, Role.TENSOR_ROLE_OTHER)


def block_of(name: str) -> int | None:
    """Index of the transformer block that the tensor belongs to, from 0; None outside the blocks."""
    place = _BLOCK.search(name)
    return int(place.group(1)) if place else None
