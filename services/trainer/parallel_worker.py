"""A job in several processes: the worker that holds its lock is torchrun's agent, and the first it starts leads.

Whatever process is lost, the attempt is: the agent ends the others, and the supervisor starts the job again from its
last checkpoint, as after any loss.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Final

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from services.trainer.executor import EXIT_PREEMPTED
from services.trainer.job_directory import JobDirectory
from services.trainer.parallel_loop import follow
from services.trainer.process_group import ProcessGroup, join

# Enough to end a step and save; what takes longer goes on from the checkpoint before.
_LEAVING_S: Final = 60


def launch(directory: JobDirectory, processes: int) -> int:
    """Have torchrun start the processes of a job and see them through; returns the exit status."""
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=directory.path.name,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        shutdown_timeout=_LEAVING_S,
    )
    try:
        start = elastic_launch(config, sys.executable)
        start("-m", "services.trainer.worker", str(directory.path), "--agent", str(os.getpid()))
    except SignalException:
        return EXIT_PREEMPTED
    except ChildFailedError as error:
        # The one that was lost rather than those that left on its account.
        left = (EXIT_PREEMPTED, -signal.SIGTERM)
        rank, failure = min(error.failures.items(), key=lambda one: one[1].exitcode in left)
        print(f"process {rank} of {processes} ended with {failure.exitcode}", file=sys.stderr)
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    return 0


def take_part(directory: JobDirectory, lead: Callable[[JobDirectory, ProcessGroup], int]) -> int:
    """Be one of the processes: the first does the job, the others what it orders; returns the exit status."""
    group = join(is_cuda=directory.read_job().plan.train.device.startswith("cuda"))
    if group.rank:
        # The first process hears signals, and sends this one home when it leaves.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        follow(group)
        group.leave()
        return 0
    with directory.leading():
        try:
            return lead(directory, group)
        finally:
            group.leave()
