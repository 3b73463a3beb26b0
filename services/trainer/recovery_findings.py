"""What a run's own recoveries, and the error that ended it, say about it."""

from __future__ import annotations

from collections.abc import Iterator

from octavo.v1 import trainer_pb2 as pb
from services.trainer.finding import Finding


def find(job: pb.Job) -> Iterator[Finding]:
    """Divergence and want of memory."""
    rollbacks = [one for one in job.recoveries if one.cause == pb.RECOVERY_CAUSE_NOT_FINITE]
    splits = [one for one in job.recoveries if one.cause != pb.RECOVERY_CAUSE_NOT_FINITE]
    if "TRAINING_DIVERGED" in str(job.error):
        yield Finding.lower_rates(job, pb.DIAGNOSIS_VERDICT_UNSTABLE, job.error.message)
    elif rollbacks:
        last = rollbacks[-1]
        evidence = (
            f"step {last.failed_step} had the loss {last.loss:g} and a gradient of norm {last.gradient_norm:g}; the "
            f"run went back {len(rollbacks)} times, the last time to step {last.step}, and goes on with "
            f"{last.learning_rate_factor:g} of the planned learning rates"
        )
        yield Finding.lower_rates(job, pb.DIAGNOSIS_VERDICT_UNSTABLE, evidence, step=last.failed_step)
    if splits:
        last, planned = splits[-1], job.plan.train.microbatch_size
        yield Finding(
            pb.DIAGNOSIS_VERDICT_OUT_OF_MEMORY,
            f"memory did not suffice at step {last.failed_step}; the microbatch went from the planned {planned} to "
            f"{last.microbatch_size} sequences, the batch is the same",
            f"next time set microbatch_size to {last.microbatch_size}, or run fewer jobs at once",
            last.failed_step,
            {"microbatch_size": str(last.microbatch_size)},
        )
