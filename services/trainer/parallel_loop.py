"""A training that several processes share: each takes its part of the microbatches of every batch.

All of them hold the whole model and do every update, Muon's included, from the same sums of gradients, so they stay
the same to the last bit; and since the sums are those that one process would come to, so does the run: losses,
states and checkpoints do not tell how many processes there were.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from octavo.errors import FailedPrecondition, OctavoError, ResourceExhausted
from octavo.v1 import trainer_pb2 as pb
from octavo.v1.errors_pb2 import Reason
from services.trainer.batches import Batch
from services.trainer.control import Leaving
from services.trainer.loop import Training, configure_torch
from services.trainer.memory_shortage import is_out_of_memory
from services.trainer.model import Transformer
from services.trainer.ordered_sum import OrderedSum
from services.trainer.plan import architecture_of
from services.trainer.process_group import ProcessGroup

Result = TypeVar("Result")


@dataclass(frozen=True)
class BeginOrder:
    """A run begins, by this resolved spec; the state follows."""

    spec: bytes


@dataclass(frozen=True)
class StepOrder:
    """Do a step of this batch, by the spec in force and what may change at a step boundary."""

    step: int
    batch: Batch
    spec: bytes
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class StateOrder:
    """The state follows, tensor by tensor."""


_NOTHING = np.zeros(0, np.uint16)
# What may change at a step boundary beside the spec.
_SETTINGS = ("learning_rate_factor", "microbatch_size")


class HandedBatches:
    """The batches of a run, handed over step by step."""

    def __init__(self) -> None:
        self.batches: dict[int, Batch] = {}

    def batch(self, step: int) -> Batch:
        """That of a step, which was handed over before."""
        return self.batches[step]


class _Loss(nn.Module):
    """The loss of a model as a module: DistributedDataParallel sees what goes through `forward` only."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, targets: Tensor, **options: Any) -> Tensor:
        return self.model.loss(tokens, targets, **options)


class ParallelTraining(Training):
    """One process's part of a training."""

    def __init__(self, spec: pb.TrainSpec, *arguments: Any, group: ProcessGroup, **data: Any) -> None:
        super().__init__(spec, *arguments, **data)
        self._group = group
        self._sum = OrderedSum(group)
        self._loss = DistributedDataParallel(_Loss(self.model), process_group=group.gradients, broadcast_buffers=False)
        # A lambda: torch compares annotations of hooks, which here are strings.
        self._loss.register_comm_hook(None, lambda _, bucket: self._sum.exchange(bucket))

    def _gradients(self, step: int) -> tuple[Tensor, int]:
        """The sums over all processes, in the order of microbatches, as one process would have them."""
        batch = self._batches.batch(step).to(self._device)
        parts = list(batch.split(self.microbatch_size))
        self._sum.begin()
        losses = torch.zeros(len(parts) // self._group.size, device=self._device)
        for turn in range(len(losses)):
            index = turn * self._group.size + self._group.rank
            tokens, targets, positions = parts[index]
            for parameter in self._parameters.values():
                parameter.grad = None
            dropout = self._dropout(step, index)
            loss = self._loss(tokens, targets, positions=positions, dtype=self._dtype, dropout=dropout)
            (loss / batch.target_count).backward()
            losses[turn] = loss.detach()
        return self._total(losses), batch.target_count

    def _total(self, losses: Tensor) -> Tensor:
        """The sum of the losses of all microbatches, one after the other."""
        everybodys = [torch.empty_like(losses) for _ in range(self._group.size)]
        dist.all_gather(everybodys, losses, group=self._group.gradients)
        total = torch.zeros((), device=self._device)
        for loss in torch.stack(everybodys, 1).flatten():
            total += loss
        return total

    def share_state(self) -> None:
        """Take over the state of the first process."""
        for tensor in self._state().values():
            self._group.share(tensor.detach())


class LeadingTraining(ParallelTraining):
    """The first process's part: a Training like any other, whose steps the others do with it."""

    def __init__(self, spec: pb.TrainSpec, *arguments: Any, group: ProcessGroup, **data: Any) -> None:
        _check_size(spec, group)

        def together() -> None:
            group.tell(BeginOrder(spec.SerializeToString()))
            super(LeadingTraining, self).__init__(spec, *arguments, group=group, **data)
            self.share_state()

        _unless_lost(together)

    def step(self, step: int) -> pb.TrainingMetric:
        """Do a step together. Leaving where another process was lost: the run goes on from its last checkpoint."""
        settings = {name: getattr(self, name) for name in _SETTINGS}
        order = StepOrder(step, self._batches.batch(step), self.spec.SerializeToString(), settings)

        def together() -> pb.TrainingMetric:
            self._group.tell(order)
            return super(LeadingTraining, self).step(step)

        return _unless_lost(together)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over a `state_dict`, and have the others do so."""
        super().load_state_dict(state)
        _unless_lost(self._spread)

    def restart(self) -> None:
        """Go back to before the first step, with the others."""
        super().restart()
        _unless_lost(self._spread)

    def _spread(self) -> None:
        self._group.tell(StateOrder())
        self.share_state()


def follow(group: ProcessGroup) -> None:
    """Do what the first process orders, until it sends this one home."""
    training: ParallelTraining | None = None
    handed = HandedBatches()
    while (order := group.hear()) is not None:
        if isinstance(order, BeginOrder):
            training = _follower(pb.TrainSpec.FromString(order.spec), handed, group)
            training.share_state()
        elif training is None:
            raise RuntimeError(f"{type(order).__name__} came before a run was begun")
        elif isinstance(order, StateOrder):
            training.share_state()
        else:
            _do(order, training, handed)


def _follower(spec: pb.TrainSpec, handed: HandedBatches, group: ProcessGroup) -> ParallelTraining:
    configure_torch(threads=spec.threads)
    spec.device = _own_device(spec.device, group.rank)
    # Evaluating is the first process's work: no validation text here.
    return ParallelTraining(
        spec, architecture_of(spec), group=group, training_tokens=handed, validation_tokens=_NOTHING, validation_bytes=0
    )


def _do(order: StepOrder, training: ParallelTraining, handed: HandedBatches) -> None:
    spec = pb.TrainSpec.FromString(order.spec)
    spec.device = training.spec.device
    training.spec = spec
    for name, value in order.settings.items():
        setattr(training, name, value)
    handed.batches = {order.step: order.batch}
    try:
        training.step(order.step)
    except OctavoError as error:
        # All processes come to the same figures, so the first knows it, too, and decides.
        print(f"step {order.step}: {error.message}", flush=True)


def _own_device(device: str, rank: int) -> str:
    return f"cuda:{rank % torch.cuda.device_count()}" if device.startswith("cuda") else device


def _check_size(spec: pb.TrainSpec, group: ProcessGroup) -> None:
    devices = torch.cuda.device_count() if spec.device.startswith("cuda") else group.size
    if devices < group.size:
        raise FailedPrecondition(
            Reason.REASON_SPEC_NOT_SUPPORTED,
            f"train.processes is {group.size}, and this machine has {devices} CUDA devices: one for each is needed",
        )


def _unless_lost(work: Callable[[], Result]) -> Result:
    """What `work` answers. Where this process fails alone the others wait for it in vain, so nothing can go on."""
    try:
        return work()
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise ResourceExhausted(
                Reason.REASON_OUT_OF_MEMORY,
                "the first of the processes did not have the memory for its part; set train.microbatch_size to half "
                "of what the plan says",
            ) from error
        words = str(error).strip().splitlines() or [type(error).__name__]
        raise Leaving(None, f"another process of this training was lost: {words[0]}") from error
