"""The transformer that is trained: three families in one module, packed for speed, Hugging Face's names outside.

Weights are fp32; the forward pass computes in the dtype it is asked for. Knows nothing of optimizers, data or files.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from octavo.errors import InvalidArgument
from octavo.formats.architecture import Architecture
from octavo.v1.errors_pb2 import Reason
from services.trainer.batches import IGNORED
from services.trainer.fused_layers import (
    causal_attention,
    causal_mask,
    normalize_and_rotate,
    packed_mask,
    rms_norm,
    rotary_tables,
    rotate_halves,
    swiglu,
)

_LEAST_INT64 = -(1 << 63)


@dataclass(frozen=True)
class Dropout:
    """Dropout of the embedding and of what each branch adds, drawn from `generator` alone: replayable by its seed."""

    probability: float
    generator: torch.Generator

    def __call__(self, x: Tensor) -> Tensor:
        # Four lots of 16 bits from each number drawn. One number for each lot, as bernoulli_ has it, took a third of a
        # step of a small model: a generator runs on one thread.
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device)
        words.random_(_LEAST_INT64, None, generator=self.generator)
        lots = words.view(torch.int16)[: x.numel()].view(x.shape)
        kept = lots >= round(self.probability * (1 << 16)) - (1 << 15)
        return x * kept.to(x.dtype).mul_(1.0 / (1.0 - self.probability))


@dataclass(frozen=True)
class _Pass:
    """What one forward pass shares among its blocks: tables in the compute dtype, the batch's shape, dropout."""

    dtype: torch.dtype
    mask: Tensor
    cos: Tensor | None
    sin: Tensor | None
    dropout: Dropout | None

    def dropped(self, x: Tensor) -> Tensor:
        return x if self.dropout is None else self.dropout(x)


class Block(nn.Module):
    """Attention and feed-forward, pre-norm. Projections that read the same input are one matrix, [out, in]."""

    def __init__(self, a: Architecture) -> None:
        super().__init__()
        self.a = a
        has_bias = a.family == "gpt2"
        packed_heads = (a.heads + 2 * a.kv_heads) * a.head_size
        packed_mlp = a.mlp_width if has_bias else 2 * a.mlp_width
        self.attention_gain = nn.Parameter(torch.ones(a.width))
        self.qkv = nn.Parameter(torch.empty(packed_heads, a.width))
        self.output = nn.Parameter(torch.empty(a.width, a.attention_width))
        self.mlp_gain = nn.Parameter(torch.ones(a.width))
        self.up = nn.Parameter(torch.empty(packed_mlp, a.width))
        self.down = nn.Parameter(torch.empty(a.width, a.mlp_width))
        if a.family == "qwen3":
            self.q_gain = nn.Parameter(torch.ones(a.head_size))
            self.k_gain = nn.Parameter(torch.ones(a.head_size))
        if has_bias:
            self.attention_bias = nn.Parameter(torch.zeros(a.width))
            self.qkv_bias = nn.Parameter(torch.zeros(packed_heads))
            self.output_bias = nn.Parameter(torch.zeros(a.width))
            self.mlp_bias = nn.Parameter(torch.zeros(a.width))
            self.up_bias = nn.Parameter(torch.zeros(packed_mlp))
            self.down_bias = nn.Parameter(torch.zeros(a.width))

    def forward(self, x: Tensor, shared: _Pass) -> Tensor:
        """[B, T, width] to [B, T, width]."""
        x = x + shared.dropped(self._attention(x, shared))
        return x + shared.dropped(self._feed_forward(x, shared))

    def _attention(self, x: Tensor, shared: _Pass) -> Tensor:
        a, (batch, length, _) = self.a, x.shape
        packed = self._projected(x, "attention", "qkv", shared.dtype)
        # Heads first, so that each head's rows lie together for the batched products.
        heads = packed.view(batch, length, -1, a.head_size).permute(2, 0, 1, 3).contiguous()
        queries_and_keys = self._positioned(heads[: a.heads + a.kv_heads], shared)
        q, k, v = queries_and_keys[: a.heads], queries_and_keys[a.heads :], heads[a.heads + a.kv_heads :]
        if a.kv_heads != a.heads:
            k, v = (z.repeat_interleave(a.heads // a.kv_heads, 0) for z in (k, v))
        mixed = causal_attention(q, k, v, shared.mask)
        merged = mixed.permute(1, 2, 0, 3).reshape(batch, length, a.attention_width)
        bias = self.output_bias.to(shared.dtype) if a.family == "gpt2" else None
        return functional.linear(merged, self.output.to(shared.dtype), bias)

    def _positioned(self, heads: Tensor, shared: _Pass) -> Tensor:
        a = self.a
        if shared.cos is None or shared.sin is None:
            return heads
        if a.family == "llama":
            return rotate_halves(heads, shared.cos, shared.sin)
        gains = torch.cat((self.q_gain.expand(a.heads, -1), self.k_gain.expand(a.kv_heads, -1)))
        gain = gains.to(shared.dtype).view(-1, 1, 1, a.head_size)
        return normalize_and_rotate(heads, gain, shared.cos, shared.sin, a.norm_epsilon)

    def _feed_forward(self, x: Tensor, shared: _Pass) -> Tensor:
        dtype = shared.dtype
        if self.a.family == "gpt2":
            hidden = functional.gelu(self._projected(x, "mlp", "up", dtype), approximate="tanh")
            return functional.linear(hidden, self.down.to(dtype), self.down_bias.to(dtype))
        normal = rms_norm(x, self.a.norm_epsilon)
        gate, up = (self.up * self.mlp_gain).to(dtype).chunk(2)
        hidden = swiglu(functional.linear(normal, gate), functional.linear(normal, up))
        return functional.linear(hidden, self.down.to(dtype))

    def _projected(self, x: Tensor, norm: str, matrix: str, dtype: torch.dtype) -> Tensor:
        weight, gain = getattr(self, matrix), getattr(self, f"{norm}_gain")
        if self.a.family != "gpt2":
            # Scaling the columns of a small matrix costs nothing beside scaling every token.
            return functional.linear(rms_norm(x, self.a.norm_epsilon), (weight * gain).to(dtype))
        shift = getattr(self, f"{norm}_bias")
        normal = functional.layer_norm(x, (self.a.width,), gain.to(dtype), shift.to(dtype), self.a.norm_epsilon)
        return functional.linear(normal, weight.to(dtype), getattr(self, f"{matrix}_bias").to(dtype))


class Transformer(nn.Module):
    """A causal language model of any of the families, from token ids to logits or to a sum of losses.

    `cos`, `sin` and `mask` are constants of the architecture, no part of its weights.
    """

    mask: Tensor
    cos: Tensor | None
    sin: Tensor | None

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = a = architecture
        self.embedding = nn.Parameter(torch.empty(a.vocab_size, a.width))
        self.positions = nn.Parameter(torch.empty(a.context_length, a.width)) if not a.has_rope else None
        self.blocks = nn.ModuleList(Block(a) for _ in range(a.layers))
        self.final_gain = nn.Parameter(torch.ones(a.width))
        self.final_bias = nn.Parameter(torch.zeros(a.width)) if a.family == "gpt2" else None
        self.head = None if a.tie_embeddings else nn.Parameter(torch.empty(a.vocab_size, a.width))
        cos, sin = None, None
        if a.rope_theta is not None:
            cos, sin = rotary_tables(a.context_length, a.head_size, a.rope_theta)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.register_buffer("mask", causal_mask(min(a.context_length, 512)), persistent=False)

    def initialize(self, seed: int) -> None:
        """Fresh weights, the same for the same seed: normal matrices, zero branch outputs, gains of one.

        Zero-initialized branch outputs (and head, when it is not tied) make every block start as the identity,
        which trains fastest at this size (modded-nanogpt, "zero-init projections").
        """
        generator = torch.Generator().manual_seed(seed)
        width = self.architecture.width
        for name, parameter in self.named_parameters():
            leaf = name.rpartition(".")[2]
            if leaf in ("output", "down", "head"):
                fresh = torch.zeros(parameter.shape)
            elif leaf in ("qkv", "up"):
                fresh = torch.randn(parameter.shape, generator=generator) * (0.5 / math.sqrt(width))
            elif leaf == "embedding":
                std = 0.02 if self.head is None else 1.0
                fresh = torch.randn(parameter.shape, generator=generator) * std
            elif leaf == "positions":
                fresh = torch.randn(parameter.shape, generator=generator) * 0.02
            else:
                fresh = torch.ones(parameter.shape) if leaf.endswith("gain") else torch.zeros(parameter.shape)
            parameter.data.copy_(fresh)

    def forward(
        self,
        tokens: Tensor,
        *,
        positions: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
        dropout: Dropout | None = None,
    ) -> Tensor:
        """Logits [B, T, vocab_size] in `dtype` for token ids [B, T], T at most the context length.

        With `positions` [B, T], which count from 0 in each row, a sequence holds several rows that do not see one
        another: the logits of each are those it has alone.
        """
        hidden = self._hidden(tokens, positions, dtype, dropout)
        matrix = self.embedding if self.head is None else self.head
        if self.final_bias is None:
            normal = rms_norm(hidden, self.architecture.norm_epsilon)
            return functional.linear(normal, (matrix * self.final_gain).to(dtype))
        shape, epsilon = (self.architecture.width,), self.architecture.norm_epsilon
        gain, bias = self.final_gain.to(dtype), self.final_bias.to(dtype)
        return functional.linear(functional.layer_norm(hidden, shape, gain, bias, epsilon), matrix.to(dtype))

    def _hidden(self, tokens: Tensor, positions: Tensor | None, dtype: torch.dtype, dropout: Dropout | None) -> Tensor:
        length = tokens.shape[1]
        x = functional.embedding(tokens, self.embedding)
        if self.positions is not None:
            x = x + (self.positions[:length] if positions is None else functional.embedding(positions, self.positions))
        at = slice(length) if positions is None else positions
        cos, sin = (None if t is None else t[at].to(dtype) for t in (self.cos, self.sin))
        mask = self.mask.to(dtype) if positions is None else packed_mask(positions, self.architecture.heads, dtype)
        shared = _Pass(dtype, mask, cos, sin, dropout)
        x = shared.dropped(x.to(dtype))
        for block in self.blocks:
            x = block(x, shared)
        return x

    def loss(
        self,
        tokens: Tensor,
        targets: Tensor,
        *,
        positions: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
        dropout: Dropout | None = None,
    ) -> Tensor:
        """Sum of the cross-entropies, nats, fp32, over the targets [B, T] that are not IGNORED; see `forward`."""
        logits = self(tokens, positions=positions, dtype=dtype, dropout=dropout).float()
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")

    def weights(self) -> dict[str, Tensor]:
        """Copies of the weights as Hugging Face names and lays them out: contiguous, fp32, on the CPU."""
        parts = self.named_views(dict(self.named_parameters()))
        return {
            name: parts[name].detach().float().cpu().clone(memory_format=torch.contiguous_format)
            for name in self.architecture.tensors()
        }

    def packed_rows(self) -> dict[str, list[int]]:
        """The matrices inside the blocks by parameter name, with the row counts of the projections packed in each."""
        a = self.architecture
        rows = {
            "qkv": [a.attention_width, a.kv_width, a.kv_width],
            "output": [a.width],
            "up": [a.mlp_width] if a.family == "gpt2" else [a.mlp_width, a.mlp_width],
            "down": [a.width],
        }
        return {f"blocks.{n}.{leaf}": split for n in range(a.layers) for leaf, split in rows.items()}

    def named_views(self, packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Views of tensors shaped like the parameters (such as momenta), by Hugging Face name."""
        return dict(self._named_parts(packed))

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Take over weights by Hugging Face name; InvalidArgument where a name or shape is not the architecture's."""
        shapes = self.architecture.tensors()
        wrong = {f"weights.{name}": "is missing" for name in shapes.keys() - weights.keys()}
        wrong |= {f"weights.{name}": "is not of this architecture" for name in weights.keys() - shapes.keys()}
        for name in shapes.keys() & weights.keys():
            if tuple(weights[name].shape) != shapes[name]:
                wrong[f"weights.{name}"] = f"has shape {list(weights[name].shape)}, not {list(shapes[name])}"
        if wrong:
            raise InvalidArgument.fields(wrong, reason=Reason.REASON_INVALID_ARCHITECTURE)
        with torch.no_grad():
            for name, part in self.named_views(dict(self.named_parameters())).items():
                part.copy_(weights[name])

    def _named_parts(self, packed: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Each parameter of `packed` taken apart into views, under Hugging Face's names."""
        for name, tensor in packed.items():
            path, _, leaf = name.rpartition(".")
            layer = path.removeprefix("blocks.")
            yield from (
                _gpt2_parts(layer, leaf, tensor)
                if self.architecture.family == "gpt2"
                else _llama_parts(self.architecture, layer, leaf, tensor)
            )


_GPT2_NAMES = {
    "embedding": "wte.weight",
    "positions": "wpe.weight",
    "final_gain": "ln_f.weight",
    "final_bias": "ln_f.bias",
    "attention_gain": "ln_1.weight",
    "attention_bias": "ln_1.bias",
    "qkv": "attn.c_attn.weight",
    "qkv_bias": "attn.c_attn.bias",
    "output": "attn.c_proj.weight",
    "output_bias": "attn.c_proj.bias",
    "mlp_gain": "ln_2.weight",
    "mlp_bias": "ln_2.bias",
    "up": "mlp.c_fc.weight",
    "up_bias": "mlp.c_fc.bias",
    "down": "mlp.c_proj.weight",
    "down_bias": "mlp.c_proj.bias",
}

_LLAMA_NAMES = {
    "embedding": "embed_tokens.weight",
    "final_gain": "norm.weight",
    "attention_gain": "input_layernorm.weight",
    "q_gain": "self_attn.q_norm.weight",
    "k_gain": "self_attn.k_norm.weight",
    "output": "self_attn.o_proj.weight",
    "mlp_gain": "post_attention_layernorm.weight",
    "down": "mlp.down_proj.weight",
}


def _gpt2_parts(layer: str, leaf: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    if leaf == "head":
        yield "lm_head.weight", tensor
        return
    prefix = f"transformer.h.{layer}." if layer else "transformer."
    # Conv1D stores [in, out].
    yield prefix + _GPT2_NAMES[leaf], tensor.t() if leaf in ("qkv", "output", "up", "down") else tensor


def _llama_parts(a: Architecture, layer: str, leaf: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    prefix = f"model.layers.{layer}." if layer else "model."
    if leaf == "head":
        yield "lm_head.weight", tensor
    elif leaf == "qkv":
        parts = torch.split(tensor, [a.attention_width, a.kv_width, a.kv_width])
        yield from ((f"{prefix}self_attn.{n}_proj.weight", p) for n, p in zip("qkv", parts, strict=True))
    elif leaf == "up":
        yield from ((f"{prefix}mlp.{n}_proj.weight", p) for n, p in zip(("gate", "up"), tensor.chunk(2), strict=True))
    else:
        yield prefix + _LLAMA_NAMES[leaf], tensor
