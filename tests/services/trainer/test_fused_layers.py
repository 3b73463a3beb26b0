"""Hand-written backward passes are those of autograd."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from services.trainer import fused_layers


def random(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float32).requires_grad_()


def assert_same(ours: Tensor, theirs: Tensor, *inputs: Tensor) -> None:
    """Same values, and the same gradients of a random projection of them."""
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    weight = torch.randn(ours.shape, generator=torch.Generator().manual_seed(9))
    mine = torch.autograd.grad((ours * weight).sum(), inputs)
    expected = torch.autograd.grad((theirs * weight).sum(), inputs)
    for a, b in zip(mine, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_rms_norm() -> None:
    x = random(3, 5, 32)
    assert_same(fused_layers.rms_norm(x, 1e-6), functional.rms_norm(x, (32,), eps=1e-6), x)


def test_swiglu() -> None:
    gate, up = random(7, 24), random(7, 25)[:, :24]
    assert_same(fused_layers.swiglu(gate, up), functional.silu(gate) * up, gate, up)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions as transformers writes them; our sin carries the sign of the first half."""
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), -1)
    return x * cos + turned * sin.abs().copysign(torch.cat((-sin[..., :half], sin[..., half:]), -1))


def test_rotation() -> None:
    cos, sin = fused_layers.rotary_tables(6, 16, 10_000.0)
    x = random(4, 2, 6, 16)
    assert_same(fused_layers.rotate_halves(x, cos, sin), rotated(x, cos, sin), x)


def test_normalization_with_rotation() -> None:
    cos, sin = fused_layers.rotary_tables(6, 16, 10_000.0)
    x, gain = random(4, 2, 6, 16), random(4, 1, 1, 16)
    ours = fused_layers.normalize_and_rotate(x, gain, cos, sin, 1e-6)
    assert_same(ours, rotated(functional.rms_norm(x, (16,), eps=1e-6) * gain, cos, sin), x, gain)


def test_causal_attention() -> None:
    q, k, v = (random(2, 3, 9, n)[..., :16] for n in (16, 17, 18))
    mask = fused_layers.causal_mask(12)
    ours = fused_layers.causal_attention(q, k, v, mask)
    assert_same(ours, functional.scaled_dot_product_attention(q, k, v, is_causal=True), q, k, v)
