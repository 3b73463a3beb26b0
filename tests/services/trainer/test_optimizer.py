"""Muon orthogonalizes each projection by itself; AdamW is torch's."""

from __future__ import annotations

import torch

from services.trainer.optimizer import Matrix, Optimizer, Rates, orthogonalized

RATES = Rates(matrix_learning_rate=0.1, learning_rate=0.01, momentum=0.9, weight_decay=0.0)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def muon(name_to_matrix: dict[str, tuple[torch.Tensor, list[int]]]) -> Optimizer:
    matrices = [Matrix(name, tensor, rows) for name, (tensor, rows) in name_to_matrix.items()]
    other = torch.zeros(1)
    other.grad = torch.zeros(1)
    return Optimizer(matrices, {"other": other}, betas=(0.9, 0.99), dtype=torch.float32)


def test_newton_schulz_brings_every_singular_value_near_one() -> None:
    singular = torch.linalg.svdvals(orthogonalized(random(4, 32, 80), torch.float32))
    assert singular.min() > 0.6
    assert singular.max() < 1.3


def test_a_packed_matrix_moves_as_its_parts_would_by_themselves() -> None:
    packed, gradient = random(96, 32), random(96, 33)[:, :32].clone()
    packed.grad = gradient
    parts = {f"part{n}": (packed[32 * n : 32 * n + 32].clone(), [32]) for n in range(3)}
    for n, (part, _) in enumerate(parts.values()):
        part.grad = gradient[32 * n : 32 * n + 32].clone()
    muon({"packed": (packed, [32, 32, 32])}).step(RATES)
    muon(parts).step(RATES)
    torch.testing.assert_close(packed, torch.cat([part for part, _ in parts.values()]))


def test_a_tall_matrix_moves_as_the_transpose_of_a_wide_one_but_further() -> None:
    tall, wide = torch.zeros(128, 32), torch.zeros(32, 128)
    tall.grad = random(128, 32)
    wide.grad = tall.grad.t().contiguous()
    muon({"tall": (tall, [128]), "wide": (wide, [32])}).step(RATES)
    torch.testing.assert_close(tall, wide.t() * 2, atol=1e-5, rtol=1e-4)


def test_weight_decay_shrinks_matrices_by_rate_times_decay() -> None:
    matrix = torch.ones(8, 8)
    matrix.grad = torch.zeros(8, 8)
    muon({"m": (matrix, [8])}).step(Rates(0.1, 0.01, 0.9, weight_decay=0.5))
    torch.testing.assert_close(matrix, torch.full((8, 8), 0.95))


def test_everything_else_moves_as_under_torch_adamw() -> None:
    ours, theirs = random(10), random(10)
    matrix = torch.zeros(8, 8)
    matrix.grad = torch.zeros(8, 8)
    optimizer = Optimizer([Matrix("m", matrix, [8])], {"x": ours}, betas=(0.8, 0.95), dtype=torch.float32)
    adam = torch.optim.AdamW([theirs], lr=0.01, betas=(0.8, 0.95), eps=1e-10, weight_decay=0.0)
    for step in range(3):
        ours.grad = theirs.grad = random(10) + step
        optimizer.step(RATES)
        adam.step()
    torch.testing.assert_close(ours, theirs)


def test_the_state_names_every_tensor_that_the_next_step_depends_on() -> None:
    matrix = torch.zeros(8, 8)
    optimizer = muon({"blocks.0.qkv": (matrix, [8])})
    assert set(optimizer.state()) == {
        "momentum.blocks.0.qkv",
        "first_moment.other",
        "second_moment.other",
        "steps.other",
    }
