"""Muon for the matrices inside the blocks, AdamW for everything else, with a state of plain named tensors.

Muon (Jordan et al. 2024) replaces a matrix's momentum by the nearest orthogonal matrix. It is written anew because
torch.optim.Muon works on one tensor at a time; here all matrices of one shape are orthogonalized in one batched
product. Knows nothing of schedules: every step is told its learning rates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Quintic Newton-Schulz coefficients: steepest at zero for five steps (Jordan et al. 2024, "Muon").
_QUINTIC = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_ADAM_EPSILON = 1e-10


@dataclass(frozen=True)
class Rates:
    """What one optimizer step uses: rates of the matrices and of the rest, momentum, decoupled weight decay."""

    matrix_learning_rate: float
    learning_rate: float
    momentum: float
    weight_decay: float


@dataclass(frozen=True)
class Matrix:
    """A packed parameter [rows, columns] and the row counts of the logical matrices inside it."""

    name: str
    parameter: Tensor
    rows: list[int]


def orthogonalized(stack: Tensor, dtype: torch.dtype) -> Tensor:
    """The nearest semi-orthogonal matrices, roughly, of a stack [n, rows, columns] with rows <= columns.

    Five Newton-Schulz steps in `dtype` take every singular value to about 1 (0.7 to 1.2).
    """
    linear, cubic, quintic = _QUINTIC
    x = stack.to(dtype)
    x = x / (torch.linalg.matrix_norm(x.float(), keepdim=True) + 1e-7).to(dtype)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=cubic, alpha=quintic)
        x = torch.baddbmm(x, polynomial, x, beta=linear)
    return x


class Optimizer:
    """One step for all parameters of a model; the gradients are read from `.grad` and left as they are."""

    def __init__(
        self,
        matrices: Sequence[Matrix],
        others: Mapping[str, Tensor],
        *,
        betas: tuple[float, float],
        dtype: torch.dtype,
    ) -> None:
        """`dtype` is that of the Newton-Schulz products."""
        self._matrices = list(matrices)
        self._others = dict(others)
        self._dtype = dtype
        self._momenta = [torch.zeros_like(m.parameter) for m in self._matrices]
        self._adam = torch.optim.AdamW(others.values(), betas=betas, eps=_ADAM_EPSILON, fused=True)
        for parameter in others.values():
            self._adam.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    @torch.no_grad()
    def step(self, rates: Rates) -> None:
        """Apply the present gradients once."""
        group = self._adam.param_groups[0]
        group["lr"], group["weight_decay"] = rates.learning_rate, rates.weight_decay
        self._adam.step()
        parameters = [m.parameter for m in self._matrices]
        gradients = [_gradient(m) for m in self._matrices]
        torch._foreach_lerp_(self._momenta, gradients, 1.0 - rates.momentum)
        # Nesterov: look ahead along the momentum.
        updates = torch._foreach_lerp(gradients, self._momenta, rates.momentum)
        if rates.weight_decay:
            torch._foreach_mul_(parameters, 1.0 - rates.matrix_learning_rate * rates.weight_decay)
        targets = [part for m in self._matrices for part in torch.split(m.parameter, m.rows)]
        directions = [part for m, u in zip(self._matrices, updates, strict=True) for part in torch.split(u, m.rows)]
        self._apply(targets, directions, rates.matrix_learning_rate)

    def _apply(self, targets: Sequence[Tensor], directions: Sequence[Tensor], rate: float) -> None:
        groups: dict[tuple[int, ...], list[int]] = {}
        wide = [d.mT if d.shape[0] > d.shape[1] else d for d in directions]
        for index, direction in enumerate(wide):
            groups.setdefault(tuple(direction.shape), []).append(index)
        for indices in groups.values():
            orthogonal = orthogonalized(torch.stack([wide[i] for i in indices]), self._dtype).float()
            for index, update in zip(indices, orthogonal, strict=True):
                rows, columns = targets[index].shape
                # A tall matrix gets a larger step, so that its outputs move as far as a square one's.
                scale = max(1.0, rows / columns) ** 0.5
                targets[index].add_(update.mT if rows > columns else update, alpha=-rate * scale)

    def state(self) -> dict[str, Tensor]:
        """Every tensor of the state by name; the live ones, not copies."""
        state = {f"momentum.{m.name}": v for m, v in zip(self._matrices, self._momenta, strict=True)}
        for name, parameter in self._others.items():
            moments = self._adam.state[parameter]
            state[f"first_moment.{name}"] = moments["exp_avg"]
            state[f"second_moment.{name}"] = moments["exp_avg_sq"]
            state[f"steps.{name}"] = moments["step"]
        return state


def _gradient(matrix: Matrix) -> Tensor:
    gradient = matrix.parameter.grad
    if gradient is None:
        raise RuntimeError(f"{matrix.name} has no gradient: the model did not use it")
    return gradient
