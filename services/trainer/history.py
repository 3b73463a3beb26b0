"""What a job's events say: the job as they left it. One fold, used by the service and by the worker alike."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

from octavo.v1 import trainer_pb2 as pb
from services.trainer.events import TERMINAL

ENDING: Final = frozenset({"cancel", "expire", "pause"})
"""The commands after which a worker is at the job no more."""


def fold(job: pb.Job, event: pb.JobEvent) -> None:
    """Bring `job` up to date with its next event; events already seen change nothing."""
    if event.sequence <= job.last_sequence:
        return
    job.last_sequence = event.sequence
    job.update_time.CopyFrom(event.create_time)
    match event.WhichOneof("event"):
        case "state_change":
            _fold_state(job, event)
        case "attempt_start":
            job.attempt_count = event.attempt_start.attempt
            job.environment.CopyFrom(event.attempt_start.environment)
            if not job.HasField("start_time"):
                job.start_time.CopyFrom(event.create_time)
        case "plan":
            job.plan.CopyFrom(event.plan)
            job.progress.total_steps = event.plan.total_steps
        case "progress":
            job.progress.CopyFrom(event.progress)
        case "metric":
            job.latest_metric.CopyFrom(event.metric)
            job.progress.step = event.metric.step
            job.progress.tokens = event.metric.tokens
        case _:
            _fold_rest(job, event)


def _fold_rest(job: pb.Job, event: pb.JobEvent) -> None:
    """What a training shows now and then, and what comes of a job."""
    match event.WhichOneof("event"):
        case "evaluation":
            _fold_evaluation(job, event.evaluation)
        case "checkpoint":
            job.latest_checkpoint.CopyFrom(event.checkpoint)
        case "output":
            if event.output.name not in job.outputs:
                job.outputs.append(event.output.name)
        case "recovery" | "replay_report":
            _fold_finding(job, event)
        case "resource_usage":
            job.latest_resource_usage.CopyFrom(event.resource_usage)


def valid(events: Iterable[pb.JobEvent]) -> list[pb.JobEvent]:
    """The events without what no longer holds: what they say of steps that a later recovery goes back behind."""
    kept: list[pb.JobEvent] = []
    for event in events:
        if event.HasField("recovery"):
            kept = [one for one in kept if _step_of(one) <= event.recovery.step]
        kept.append(event)
    return kept


def unfinished_recovery(events: Iterable[pb.JobEvent]) -> pb.Recovery | None:
    """The recovery after which no step was done yet: checkpoints of later steps than its own may still be there."""
    pending: pb.Recovery | None = None
    for event in events:
        if event.HasField("recovery"):
            pending = event.recovery
        elif event.HasField("metric"):
            pending = None
    return pending


def applied_commands(events: Iterable[pb.JobEvent]) -> dict[int, pb.CommandApplied]:
    """The commands that were applied, by sequence number.

    What ends or pauses a job is applied only once the change of state follows: a worker may be lost in between.
    """
    applied: dict[int, pb.CommandApplied] = {}
    tentative: list[pb.CommandApplied] = []
    for event in events:
        if event.HasField("command_applied"):
            command = event.command_applied.command
            if command.WhichOneof("command") in ENDING:
                tentative.append(event.command_applied)
            else:
                applied[command.sequence] = event.command_applied
        elif event.HasField("state_change"):
            applied |= {one.command.sequence: one for one in tentative}
            tentative = []
    return applied


def _fold_state(job: pb.Job, event: pb.JobEvent) -> None:
    change = event.state_change
    job.state, job.state_message = change.state, change.message
    job.ClearField("error")
    if change.HasField("error"):
        job.error.CopyFrom(change.error)
    if change.state in TERMINAL:
        job.end_time.CopyFrom(event.create_time)
        job.progress.ClearField("eta")
    if change.state == pb.JOB_STATE_SUCCEEDED:
        job.progress.fraction = 1.0


def _fold_finding(job: pb.Job, event: pb.JobEvent) -> None:
    if event.HasField("recovery"):
        _fold_recovery(job, event.recovery)
    else:
        job.replay_report.CopyFrom(event.replay_report)


def _fold_recovery(job: pb.Job, recovery: pb.Recovery) -> None:
    job.recoveries.append(recovery)
    job.progress.step = min(job.progress.step, recovery.step)
    for field in ("latest_metric", "latest_evaluation", "best_evaluation", "latest_checkpoint"):
        if getattr(job, field).step > recovery.step:
            job.ClearField(field)
    if recovery.HasField("checkpoint"):
        job.latest_checkpoint.CopyFrom(recovery.checkpoint)


def _step_of(event: pb.JobEvent) -> int:
    """The step whose outcome an event tells; 0 for what holds whatever becomes of a step."""
    kind = event.WhichOneof("event")
    return getattr(event, kind).step if kind in {"metric", "evaluation", "sample", "checkpoint"} else 0


def _fold_evaluation(job: pb.Job, evaluation: pb.Evaluation) -> None:
    job.latest_evaluation.CopyFrom(evaluation)
    best = job.best_evaluation
    is_better = not job.HasField("best_evaluation") or evaluation.validation_loss < best.validation_loss
    if is_better and math.isfinite(evaluation.validation_loss):
        job.best_evaluation.CopyFrom(evaluation)
