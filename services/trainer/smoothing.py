"""SmoothQuant: channels of an activation made smaller and the matrix rows that read them larger, in exact exchange.

The factors are folded into what makes the activation (a norm's gain and bias, the up projection, the values of
attention), so nothing is computed anew (Xiao et al. 2022, "SmoothQuant"). Pure functions of tensors by their Hugging
Face names; in exact arithmetic the folded model is the same function. Knows nothing of graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from octavo.formats.architecture import Architecture
from services.trainer.quantization import Floats

Tensors = Mapping[str, Floats]
Loss = Callable[[Floats, Floats], float]
"""Squared error of a product, quantized, of samples [n, inputs] and a matrix [inputs, outputs]."""

# Share of the difficulty that goes over to the weights; 0.5 is the paper's, best values differ from layer to layer.
ALPHAS: Final = (0.25, 0.4, 0.5, 0.6, 0.75)
# Beyond it a channel is dead or a norm's gain would become so small that fp32 loses it.
_MOST: Final = 1e3


@dataclass(frozen=True, kw_only=True)
class Site:
    """An activation and the linear layers that read it, side by side.

    `name` is the layer's in the graph, such as `layer.0.qkv`; `weights` are tensors; `makers` are tensors of what
    makes the activation, each with the slice of its channels along the last axis of [in, out] matrices and vectors;
    none where there is no exact fold. `is_shared` where each channel of the makers is read by a group of heads.
    """

    name: str
    weights: tuple[str, ...]
    makers: tuple[tuple[str, slice], ...] = ()
    is_shared: bool = False


def sites(a: Architecture) -> list[Site]:
    """Every activation that a linear layer reads, in graph order, the head last."""
    sites_of = _gpt2_sites if a.family == "gpt2" else _llama_sites
    found = [site for layer in range(a.layers) for site in sites_of(a, layer)]
    embedding = "transformer.wte.weight" if a.family == "gpt2" else "model.embed_tokens.weight"
    # The final norm is not folded: what it gives is the embedding that people ask for.
    return [*found, Site(name="head", weights=(embedding if a.tie_embeddings else "lm_head.weight",))]


def matrix(a: Architecture, tensors: Tensors, site: Site) -> Floats:
    """The weights of a site side by side, [inputs, outputs]."""
    return side_by_side(a, tensors, site.weights)


def side_by_side(a: Architecture, tensors: Tensors, names: Sequence[str]) -> Floats:
    """Weights of linear layers as one matrix, [inputs, outputs]."""
    parts = [tensors[name] if is_turned(a, name) else tensors[name].T for name in names]
    return np.ascontiguousarray(np.concatenate(parts, axis=1), np.float32)


def is_turned(a: Architecture, name: str) -> bool:
    """Whether a weight is stored [in, out], as gpt2's Conv1D layers are, rather than [out, in]."""
    return a.family == "gpt2" and name.startswith("transformer.h.")


def search(a: Architecture, site: Site, x: Floats, weight: Floats, loss: Loss) -> Floats | None:
    """The factors [channels of the makers] of least loss for samples `x` [n, inputs]; None where none is better."""
    if not site.makers:
        return None
    reach = np.abs(x).max(axis=0)
    rows = np.abs(weight).max(axis=1)
    if site.is_shared:
        reach, rows = _per_maker(a, reach), _per_maker(a, rows)
    least, best = loss(x, weight), None
    for alpha in ALPHAS:
        factors = _factors(reach, rows, alpha)
        spread = spread_over_inputs(a, site, factors)
        found = loss(x / spread, weight * spread[:, None])
        if found < least:
            least, best = found, factors
    return best


def fold(a: Architecture, tensors: Tensors, factors: Mapping[str, Floats]) -> dict[str, Floats]:
    """The tensors with each site's activation divided by its factors and its weights multiplied, by site name."""
    folded = dict(tensors)
    for site in sites(a):
        if site.name not in factors:
            continue
        spread = spread_over_inputs(a, site, factors[site.name])
        for name in site.weights:
            folded[name] = folded[name] * (spread[:, None] if is_turned(a, name) else spread[None, :])
        for name, part in site.makers:
            folded[name] = _divided(a, name, folded[name], part, factors[site.name])
    return folded


def spread_over_inputs(a: Architecture, site: Site, factors: Floats) -> Floats:
    """The factors of a site by input of its matrix: those of shared heads repeated."""
    if not site.is_shared:
        return factors
    grouped = factors.reshape(a.kv_heads, 1, a.head_size)
    return np.repeat(grouped, a.heads // a.kv_heads, axis=1).reshape(-1)


def _divided(a: Architecture, name: str, tensor: Floats, part: slice, factors: Floats) -> Floats:
    result = np.array(tensor)
    if tensor.ndim == 1 or is_turned(a, name):
        result[..., part] /= factors
    else:
        result[part] /= factors[:, None]
    return result


def _factors(reach: Floats, rows: Floats, alpha: float) -> Floats:
    raw = np.power(np.maximum(reach, 1e-5), alpha) / np.power(np.maximum(rows, 1e-5), 1 - alpha)
    centred = raw / np.exp(np.log(raw).mean())
    factors: Floats = np.clip(centred, 1 / _MOST, _MOST).astype(np.float32)
    return factors


def _per_maker(a: Architecture, by_input: Floats) -> Floats:
    """The largest over the query heads that share a key-value head: [attention width] to [kv width]."""
    grouped = by_input.reshape(a.kv_heads, a.heads // a.kv_heads, a.head_size)
    largest: Floats = grouped.max(axis=1).reshape(-1)
    return largest


def _gpt2_sites(a: Architecture, layer: int) -> Sequence[Site]:
    block, at = f"transformer.h.{layer}.", f"layer.{layer}."
    whole, values = slice(None), slice(2 * a.width, 3 * a.width)
    return (
        Site(
            name=at + "qkv",
            weights=(block + "attn.c_attn.weight",),
            makers=((block + "ln_1.weight", whole), (block + "ln_1.bias", whole)),
        ),
        Site(
            name=at + "attention_out",
            weights=(block + "attn.c_proj.weight",),
            makers=((block + "attn.c_attn.weight", values), (block + "attn.c_attn.bias", values)),
            is_shared=True,
        ),
        Site(
            name=at + "mlp_in",
            weights=(block + "mlp.c_fc.weight",),
            makers=((block + "ln_2.weight", whole), (block + "ln_2.bias", whole)),
        ),
        Site(name=at + "mlp_out", weights=(block + "mlp.c_proj.weight",)),
    )


def _llama_sites(a: Architecture, layer: int) -> Sequence[Site]:
    block, at, whole = f"model.layers.{layer}.", f"layer.{layer}.", slice(None)
    attention, mlp = block + "self_attn.", block + "mlp."
    return (
        Site(
            name=at + "qkv",
            weights=tuple(f"{attention}{part}_proj.weight" for part in "qkv"),
            makers=((block + "input_layernorm.weight", whole),),
        ),
        Site(
            name=at + "attention_out",
            weights=(attention + "o_proj.weight",),
            makers=((attention + "v_proj.weight", whole),),
            is_shared=True,
        ),
        Site(
            name=at + "mlp_in",
            weights=(mlp + "gate_proj.weight", mlp + "up_proj.weight"),
            makers=((block + "post_attention_layernorm.weight", whole),),
        ),
        Site(
            name=at + "mlp_out",
            weights=(mlp + "down_proj.weight",),
            makers=((mlp + "up_proj.weight", whole),),
        ),
    )
