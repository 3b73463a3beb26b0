"""Layers with a hand-written backward pass: fewer passes over memory than autograd would make.

Eager PyTorch on a CPU is bound by element-wise passes, not by its matrix products (which oneDNN runs at 800 GFLOP/s
in bf16 on two cores), so each layer here keeps what its backward needs and nothing else. Knows nothing of parameters.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

# Above this length the T x T score matrices cost more memory than the blocked kernel costs time.
_LONGEST_DENSE_ATTENTION = 512


def inverse_rms(x: Tensor, epsilon: float) -> Tensor:
    """1 / sqrt(mean(x^2) + epsilon) over the last axis, kept, in x's dtype; the sum of squares is taken in fp32."""
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    return norm.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_().to(x.dtype)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, epsilon: float) -> Tensor:
        scale = inverse_rms(x, epsilon)
        y = x * scale
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        y, scale = ctx.saved_tensors
        mean = (dy * y).sum(-1, keepdim=True).mul_(-1.0 / y.shape[-1])
        return torch.addcmul(dy, y, mean).mul_(scale), None


def rms_norm(x: Tensor, epsilon: float) -> Tensor:
    """RMSNorm over the last axis without a gain: the caller folds the gain into the next matrix, [out, in]."""
    return _RmsNorm.apply(x, epsilon)  # type: ignore[no-any-return,no-untyped-call]


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        activated = functional.silu(gate)
        ctx.save_for_backward(gate, up, activated)
        return activated * up

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        gate, up, activated = ctx.saved_tensors
        d_gate = torch.ops.aten.silu_backward(dy * up, gate)
        return d_gate, dy * activated


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up."""
    return _SwiGlu.apply(gate, up)  # type: ignore[no-any-return,no-untyped-call]


def rotary_tables(length: int, head_size: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and signed sin, each [length, head_size] in fp32, for `rotate_halves`: x * cos + swap(x) * sin.

    Rotary positions as Su et al. 2021 in the half-split layout of GPT-NeoX, which Hugging Face uses.
    """
    frequencies = theta ** (-torch.arange(0, head_size, 2, dtype=torch.float32) / head_size)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)


def _swap_halves(x: Tensor) -> Tensor:
    return x.view(*x.shape[:-1], 2, -1).flip(-2).view(x.shape)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return (x * cos).addcmul_(_swap_halves(x), sin)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return torch.addcmul(_swap_halves(dy * sin), dy, cos), None, None


def rotate_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on x [..., T, head_size]; the tables are [T, head_size] or [B, T, head_size] in x's dtype."""
    return _Rotate.apply(x, cos, sin)  # type: ignore[no-any-return,no-untyped-call]


class _NormalizeAndRotate(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917  autograd passes arguments by position only
        ctx: Any, x: Tensor, gain: Tensor, cos: Tensor, sin: Tensor, epsilon: float
    ) -> Tensor:
        scale = inverse_rms(x, epsilon)
        normal = x * scale
        ctx.save_for_backward(normal, scale, gain, cos, sin)
        scaled = normal * gain
        return (scaled * cos).addcmul_(_swap_halves(scaled), sin)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        normal, scale, gain, cos, sin = ctx.saved_tensors
        d_scaled = _swap_halves(dy * sin).addcmul_(dy, cos)
        d_gain = None
        if ctx.needs_input_grad[1]:
            d_gain = (d_scaled * normal).sum((1, 2), keepdim=True, dtype=torch.float32).to(gain.dtype)
        d_normal = d_scaled.mul_(gain)
        mean = (d_normal * normal).sum(-1, keepdim=True).mul_(-1.0 / normal.shape[-1])
        return d_normal.addcmul_(normal, mean).mul_(scale), d_gain, None, None, None


def normalize_and_rotate(x: Tensor, gain: Tensor, cos: Tensor, sin: Tensor, epsilon: float) -> Tensor:
    """QK-norm and rotary positions on x [heads, B, T, head_size]; gain [heads, 1, 1, head_size], tables as above.

    One layer for queries and keys together: the head axis carries both, each with its own gain.
    """
    return _NormalizeAndRotate.apply(x, gain, cos, sin, epsilon)  # type: ignore[no-any-return,no-untyped-call]


class _DenseAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        scale = q.shape[-1] ** -0.5
        scores = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=scale)
        weights = scores.softmax(-1)
        ctx.save_for_backward(q, k, v, weights)
        return weights @ v

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, weights = ctx.saved_tensors
        scale = q.shape[-1] ** -0.5
        d_v = weights.transpose(1, 2) @ dy
        d_weights = dy @ v.transpose(1, 2)
        d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
        d_q = torch.baddbmm(q, d_scores, k, beta=0, alpha=scale)
        d_k = torch.baddbmm(k, d_scores.transpose(1, 2), q, beta=0, alpha=scale)
        return d_q, d_k, d_v, None


def causal_mask(length: int) -> Tensor:
    """[1, length, length] in fp32: 0 where a position may look, minus infinity where it may not."""
    return torch.full((1, length, length), float("-inf")).triu_(1)


def packed_mask(positions: Tensor, heads: int, dtype: torch.dtype) -> Tensor:
    """The mask of sequences that hold several rows, for `causal_attention`: no position sees another row's.

    `positions` [B, T] count from 0 in each row. As the kernel of this device and length reads it: one matrix for each
    of `heads` x B products, or [1, B, T, T] for all heads.
    """
    batch, length = positions.shape
    rows = (positions == 0).cumsum(1)
    may_look = (rows[:, :, None] == rows[:, None, :]).tril_()
    mask = torch.zeros(batch, length, length, dtype=dtype, device=positions.device)
    mask.masked_fill_(~may_look, float("-inf"))
    return mask.repeat(heads, 1, 1) if _is_dense(positions.device, length) else mask[None]


def causal_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Causal attention of q, k, v [heads, B, T, head_size], in whose dtype `mask` is.

    It is `causal_mask` for T or more, or `packed_mask`. On a CPU, dense matrix products beat the blocked kernel 5 to 1
    in bf16 (1.2 against 6.4 ms forward and backward for 16 x 2 heads of 64 over 128 tokens), up to the length where the
    scores no longer fit in the cache.
    """
    heads, batch, length, size = q.shape
    if not _is_dense(q.device, length):
        if mask.dim() == 4:
            return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    flat = [x.reshape(heads * batch, length, size) for x in (q, k, v)]
    dense = _DenseAttention.apply(*flat, mask[:, :length, :length])  # type: ignore[no-untyped-call]
    return dense.view(heads, batch, length, size)  # type: ignore[no-any-return]


def _is_dense(device: torch.device, length: int) -> bool:
    return device.type == "cpu" and length <= _LONGEST_DENSE_ATTENTION
