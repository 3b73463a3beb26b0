"""How a job is doing: findings with the figures they rest on and what to change, from what its events say alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Final

from octavo.v1 import trainer_pb2 as pb
from services.trainer import gradient_findings, memory_findings, readiness, recovery_findings
from services.trainer.finding import Finding, mean_loss

_WINDOW: Final = 50
_FEWEST_STEPS: Final = 20
_LEARNT_BY_STEP: Final = 1000
_HARDLY_BELOW_GUESS: Final = 0.9
# 4 nats a character of ASCII text.
_NOT_LEARNT_BITS: Final = 4.0 / math.log(2)
_OVERFIT_GAP: Final = 0.3
_OVERFIT_RISE: Final = 0.02
_PLATEAU_STEPS: Final = 1000
_PLATEAU_GAIN: Final = 0.005
_RISE: Final = 2.0
# Robust standard deviations above the median of the window, and nats: both, since a smooth curve has no deviation.
_SPIKE_SCORE: Final = 8.0
_SPIKE_NATS: Final = 0.2
_MAD_TO_DEVIATION: Final = 1.4826


def diagnose(job: pb.Job, metrics: Sequence[pb.TrainingMetric], evaluations: Sequence[pb.Evaluation]) -> pb.Diagnosis:
    """The findings about a job, worst first; LEARNING where nothing else is found, none while there is too little."""
    diagnosis = pb.Diagnosis(name=job.name, step=metrics[-1].step if metrics else 0)
    found = list(_findings(job, metrics, evaluations)) if metrics or job.recoveries else []
    if not found and len(metrics) >= _FEWEST_STEPS:
        found = [_learning(metrics)]
    diagnosis.findings.extend(one.to_message() for one in found)
    if found:
        diagnosis.verdict = found[0].verdict
    if evaluations:
        diagnosis.readiness.CopyFrom(readiness.judge(job, metrics, evaluations))
    return diagnosis


def _findings(
    job: pb.Job, metrics: Sequence[pb.TrainingMetric], evaluations: Sequence[pb.Evaluation]
) -> Iterator[Finding]:
    yield from recovery_findings.find(job)
    if metrics:
        yield from _rising(job, metrics)
        yield from _spikes(job, metrics)
        yield from gradient_findings.find(job, metrics)
        yield from memory_findings.find(job, metrics)
        yield from _not_learning(job, metrics, evaluations)
    yield from _overfitting(job, evaluations)
    level = list(readiness.find(job, metrics, evaluations))
    plateau = list(_plateau(job, evaluations))
    # One that is good enough may have reached its plateau; one that is not should hear of it first.
    is_done = any(one.verdict in {pb.DIAGNOSIS_VERDICT_READY, pb.DIAGNOSIS_VERDICT_DEPLOY} for one in level)
    yield from level + plateau if is_done else plateau + level


def _learning(metrics: Sequence[pb.TrainingMetric]) -> Finding:
    first, last = mean_loss(metrics[:_WINDOW]), mean_loss(metrics[-_WINDOW:])
    evidence = f"the training loss went from {first:.3f} to {last:.3f} in {metrics[-1].step} steps"
    return Finding(pb.DIAGNOSIS_VERDICT_LEARNING, evidence, "train on", metrics[-1].step)


def _rising(job: pb.Job, metrics: Sequence[pb.TrainingMetric]) -> Iterator[Finding]:
    last = metrics[-1]
    if not math.isfinite(last.loss):
        yield Finding.lower_rates(job, pb.DIAGNOSIS_VERDICT_UNSTABLE, f"the loss of step {last.step} is {last.loss}")
        return
    before = [metric.loss for metric in metrics[-2 * _WINDOW : -5]]
    latest = statistics.median(metric.loss for metric in metrics[-5:])
    if len(before) >= _WINDOW and latest > _RISE * statistics.median(before):
        evidence = f"the loss rose from {statistics.median(before):.3f} to {latest:.3f} within {_WINDOW} steps"
        yield Finding.lower_rates(job, pb.DIAGNOSIS_VERDICT_UNSTABLE, evidence, step=last.step)


def spikes(losses: Sequence[float]) -> list[int]:
    """Where a loss stands far above the window before it: by its distance to the median in robust deviations."""
    found: list[int] = []
    for index in range(_WINDOW, len(losses)):
        before = losses[index - _WINDOW : index]
        rise = losses[index] - statistics.median(before)
        if rise < _SPIKE_NATS:
            continue
        middle = statistics.median(before)
        deviation = _MAD_TO_DEVIATION * statistics.median(abs(one - middle) for one in before)
        # A spike of several steps is one; the median has not moved yet.
        if rise > _SPIKE_SCORE * deviation and not (found and index - found[-1] < _WINDOW // 2):
            found.append(index)
    return found


def _spikes(job: pb.Job, metrics: Sequence[pb.TrainingMetric]) -> Iterator[Finding]:
    found = spikes([metric.loss for metric in metrics])
    if not found:
        return
    last = metrics[found[-1]]
    middle = statistics.median(metric.loss for metric in metrics[found[-1] - _WINDOW : found[-1]])
    count = f"{len(found)} spikes" if len(found) > 1 else "a spike"
    evidence = (
        f"{count} of the loss in {metrics[-1].step} steps, the last at step {last.step}: {last.loss:.3f} after a "
        f"median of {middle:.3f}"
    )
    clip = statistics.median(metric.gradient_norm for metric in metrics)
    yield Finding(
        pb.DIAGNOSIS_VERDICT_LOSS_SPIKES,
        evidence,
        f"set optimizer.gradient_clip to {clip:.3g}, the usual norm of the gradient here, or look at the batch of that "
        "step",
        last.step,
        {"optimizer.gradient_clip": f"{clip:.3g}"},
    )


def _not_learning(
    job: pb.Job, metrics: Sequence[pb.TrainingMetric], evaluations: Sequence[pb.Evaluation]
) -> Iterator[Finding]:
    vocab_size = job.plan.train.architecture.vocab_size
    step, loss = metrics[-1].step, mean_loss(metrics[-_WINDOW:])
    if vocab_size < 2 or step < min(_LEARNT_BY_STEP, max(_FEWEST_STEPS, job.plan.total_steps // 2)):
        return
    guess = math.log(vocab_size)
    bits = evaluations[-1].bits_per_byte if evaluations else 0.0
    is_late = step >= _LEARNT_BY_STEP and bits > _NOT_LEARNT_BITS
    if loss > _HARDLY_BELOW_GUESS * guess or is_late:
        rate, matrix = job.plan.train.optimizer.learning_rate, job.plan.train.optimizer.matrix_learning_rate
        yield Finding(
            pb.DIAGNOSIS_VERDICT_NOT_LEARNING,
            f"after {step} steps the loss is {loss:.3f}; guessing among {vocab_size} tokens has {guess:.3f}"
            + (f", and {bits:.2f} bits per byte are more than {_NOT_LEARNT_BITS:.2f}" if is_late else ""),
            f"raise optimizer.learning_rate from {rate:g} to {3 * rate:g} and optimizer.matrix_learning_rate from "
            f"{matrix:g} to {3 * matrix:g}, or look at the text: ReadRows shows what is learnt from",
            step,
            {"optimizer.learning_rate": f"{3 * rate:g}", "optimizer.matrix_learning_rate": f"{3 * matrix:g}"},
        )


def _overfitting(job: pb.Job, evaluations: Sequence[pb.Evaluation]) -> Iterator[Finding]:
    if len(evaluations) < 2:
        return
    last = evaluations[-1]
    best = min(evaluations, key=lambda one: one.validation_loss)
    gap = last.validation_loss - last.training_loss
    rise = last.validation_loss / best.validation_loss - 1
    if rise > _OVERFIT_RISE or gap > _OVERFIT_GAP:
        dropout = min(0.5, job.plan.train.dropout + 0.1)
        yield Finding(
            pb.DIAGNOSIS_VERDICT_OVERFITTING,
            f"validation {last.validation_loss:.3f} against training {last.training_loss:.3f}, {gap:+.3f}; the best "
            f"validation was {best.validation_loss:.3f} at step {best.step}, {job.plan.epochs:.1f} epochs are planned",
            f"stop here: the best checkpoint is kept and released; next time more text, dropout {dropout:g} or "
            f"{best.step} steps",
            last.step,
            {"dropout": f"{dropout:g}", "steps": str(best.step)},
        )


def _plateau(job: pb.Job, evaluations: Sequence[pb.Evaluation]) -> Iterator[Finding]:
    if len(evaluations) < 3:
        return
    last = evaluations[-1]
    earlier = [one for one in evaluations if one.step <= last.step - _PLATEAU_STEPS]
    if not earlier:
        return
    before = min(one.validation_loss for one in earlier)
    since = min(one.validation_loss for one in evaluations if one.step > last.step - _PLATEAU_STEPS)
    if since > before * (1 - _PLATEAU_GAIN):
        yield Finding(
            pb.DIAGNOSIS_VERDICT_PLATEAU,
            f"the best validation loss went from {before:.4f} to {since:.4f} in the last {_PLATEAU_STEPS} steps, "
            f"{1 - since / before:.1%} better",
            "lower the learning rate: `octavo jobs update JOB --learning-rate-scale 0.3`, or stop",
            last.step,
        )
