"""The processes of one training as torchrun starts them: who they are, and how the first tells the others what to do.

The first process leads: it has the job, its events and its checkpoints. The others follow orders until they are told
to leave; they know neither files nor events. Knows nothing of models.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import torch
import torch.distributed as dist

# Between orders the first process evaluates, exports and waits for the registry, for as long as that takes; a lost
# process is noticed by its closed connection.
_ORDER_PATIENCE: Final = timedelta(days=31)
# Within a step all processes are at the same work.
_STEP_PATIENCE: Final = timedelta(minutes=10)


@dataclass(frozen=True)
class ProcessGroup:
    """What this process is in its group. `gradients` is where tensors of the device are exchanged."""

    rank: int
    size: int
    gradients: dist.ProcessGroup

    def tell(self, order: Any) -> None:
        """The first process to all others: an order, or None to leave."""
        dist.broadcast_object_list([order], src=0)

    def hear(self) -> Any:
        """What the first process orders; waits for it."""
        heard: list[Any] = [None]
        dist.broadcast_object_list(heard, src=0)
        return heard[0]

    def share(self, tensor: torch.Tensor) -> None:
        """Give the first process's tensor to all."""
        dist.broadcast(tensor, src=0, group=self.gradients)

    def leave(self) -> None:
        """End it; called by the first process, it sends the others home, so far as they are still there."""
        with contextlib.suppress(RuntimeError):
            if self.rank == 0:
                self.tell(None)
            dist.destroy_process_group()


def join(*, is_cuda: bool) -> ProcessGroup:
    """Meet the other processes that torchrun started; it says in the environment where."""
    dist.init_process_group("gloo", timeout=_ORDER_PATIENCE)
    gradients = dist.new_group(backend="nccl" if is_cuda else "gloo", timeout=_STEP_PATIENCE)
    return ProcessGroup(dist.get_rank(), dist.get_world_size(), gradients)
