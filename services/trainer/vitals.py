"""The vital signs of a model in training: norms of gradients, weights and updates, part by part.

Taken every `INTERVAL_STEPS` steps: they read every weight three times, which at each step would cost more than it
tells.
Changes nothing that is computed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from octavo.v1 import trainer_pb2 as pb

INTERVAL_STEPS: Final = 50


def is_due(step: int) -> bool:
    """Whether the signs are taken at `step`."""
    return step % INTERVAL_STEPS == 0


class Vitals:
    """The signs of one step: made before the update, read after it. `parameters` are updated in place in between.

    `gradient_norms` [n] are those before clipping, in the order of `parameters`. Holds a copy of the weights until it
    is read; the activations, which take more, are gone by then.
    """

    @torch.no_grad()
    def __init__(self, parameters: Mapping[str, Tensor], gradient_norms: Sequence[Tensor]) -> None:
        self._parameters = parameters
        self._gradient_norms = gradient_norms
        self._before = [parameter.detach().clone() for parameter in parameters.values()]

    @torch.no_grad()
    def read(self) -> list[pb.PartVitals]:
        """The parts of the model in their order: embedding, blocks, head."""
        weights = [parameter.detach() for parameter in self._parameters.values()]
        torch._foreach_sub_(self._before, weights)
        norms = [*self._gradient_norms, *torch._foreach_norm(weights), *torch._foreach_norm(self._before)]
        # One wait for the device, whatever the size of the model.
        values = torch.stack(norms).tolist()
        count = len(weights)
        rows = zip(self._parameters, values[:count], values[count : 2 * count], values[2 * count :], strict=True)
        parts: dict[str, list[tuple[str, float, float, float]]] = {}
        for name, *signs in rows:
            parts.setdefault(_part(name), []).append((name, *signs))
        return [_vitals(part, parts[part]) for part in sorted(parts, key=_place)]


def update_ratio(parts: Sequence[pb.PartVitals]) -> float:
    """The norm of the update of all parts together over that of their weights."""
    update = math.hypot(*(one.update_ratio * one.weight_norm for one in parts))
    return update / max(math.hypot(*(one.weight_norm for one in parts)), 1e-30)


def _vitals(part: str, rows: Sequence[tuple[str, float, float, float]]) -> pb.PartVitals:
    _, *columns = zip(*rows, strict=True)
    gradient, weight, update = (math.hypot(*column) for column in columns)
    return pb.PartVitals(
        part=part,
        gradient_norm=gradient,
        weight_norm=weight,
        update_ratio=update / max(weight, 1e-30),
        dead_parameters=[name for name, norm, *_ in rows if norm == 0.0],
    )


def _place(part: str) -> tuple[int, int]:
    if part.startswith("blocks."):
        return 1, int(part.removeprefix("blocks."))
    return (0 if part == "embedding" else 2), 0


def _part(name: str) -> str:
    """`blocks.3` for `blocks.3.qkv`; `embedding` and `head` for what lies before and behind the blocks."""
    if name.startswith("blocks."):
        return ".".join(name.split(".")[:2])
    return "embedding" if name in {"embedding", "positions"} else "head"
