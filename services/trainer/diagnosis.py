"""How a job is doing: findings with the figures they rest on and what to do, from its metrics and evaluations alone.

Losses are judged in bits per byte where a bar is absolute, so that a verdict does not depend on the tokenizer:
2.5 and 2.0 nats per character of ASCII text are 3.6 and 2.9 bits per byte.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Final

from octavo.v1 import trainer_pb2 as pb

_WINDOW: Final = 50
_FEWEST_STEPS: Final = 20
_LEARNT_BY_STEP: Final = 1000
_HARDLY_BELOW_GUESS: Final = 0.9
_READY_BITS: Final = 2.5 / math.log(2)
_DEPLOY_BITS: Final = 2.0 / math.log(2)
_OVERFIT_GAP: Final = 0.3
_OVERFIT_RISE: Final = 0.02
_PLATEAU_STEPS: Final = 1000
_PLATEAU_GAIN: Final = 0.005
_SPIKE: Final = 2.0
_LEAK: Final = 1.5

Finding = tuple[pb.DiagnosisVerdict.ValueType, str, str]


def diagnose(job: pb.Job, metrics: Sequence[pb.TrainingMetric], evaluations: Sequence[pb.Evaluation]) -> pb.Diagnosis:
    """The findings about a job, worst first; LEARNING where nothing else is found, none while there is too little."""
    diagnosis = pb.Diagnosis(name=job.name, step=metrics[-1].step if metrics else 0)
    found = list(_findings(job, metrics, evaluations)) if metrics else []
    if not found and len(metrics) >= _FEWEST_STEPS:
        found = [_learning(metrics)]
    for verdict, evidence, advice in found:
        diagnosis.findings.add(verdict=verdict, evidence=evidence, advice=advice)
    if found:
        diagnosis.verdict = found[0][0]
    return diagnosis


def _findings(
    job: pb.Job, metrics: Sequence[pb.TrainingMetric], evaluations: Sequence[pb.Evaluation]
) -> Iterator[Finding]:
    yield from _unstable(job, metrics)
    yield from _memory_leak(metrics)
    yield from _not_learning(job, metrics)
    yield from _overfitting(evaluations)
    yield from _good_enough(evaluations)
    yield from _plateau(evaluations)


def _learning(metrics: Sequence[pb.TrainingMetric]) -> Finding:
    first, last = _mean(metrics[:_WINDOW]), _mean(metrics[-_WINDOW:])
    evidence = f"the training loss went from {first:.3f} to {last:.3f} in {metrics[-1].step} steps"
    return pb.DIAGNOSIS_VERDICT_LEARNING, evidence, "train on"


def _unstable(job: pb.Job, metrics: Sequence[pb.TrainingMetric]) -> Iterator[Finding]:
    advice = "halve optimizer.matrix_learning_rate and optimizer.learning_rate, or set optimizer.gradient_clip to 1"
    if "TRAINING_DIVERGED" in str(job.error) or not math.isfinite(metrics[-1].loss):
        yield pb.DIAGNOSIS_VERDICT_UNSTABLE, f"the loss after step {metrics[-1].step} is not finite", advice
        return
    before = [metric.loss for metric in metrics[-2 * _WINDOW : -5]]
    latest = statistics.median(metric.loss for metric in metrics[-5:])
    if len(before) >= _WINDOW and latest > _SPIKE * statistics.median(before):
        evidence = f"the loss rose from {statistics.median(before):.3f} to {latest:.3f} within {_WINDOW} steps"
        yield pb.DIAGNOSIS_VERDICT_UNSTABLE, evidence, advice


def _memory_leak(metrics: Sequence[pb.TrainingMetric]) -> Iterator[Finding]:
    sizes = [metric.memory_bytes for metric in metrics if metric.memory_bytes]
    if len(sizes) < 10 * _WINDOW:
        return
    tenths = [statistics.median(sizes[i * len(sizes) // 10 : (i + 1) * len(sizes) // 10]) for i in range(1, 10)]
    if tenths == sorted(tenths) and tenths[-1] > _LEAK * tenths[0]:
        evidence = f"the worker grew from {tenths[0] / 2**20:.0f} MiB to {tenths[-1] / 2**20:.0f} MiB, never shrinking"
        yield pb.DIAGNOSIS_VERDICT_MEMORY_LEAK, evidence, "pause and resume the job: a new worker begins small"


def _not_learning(job: pb.Job, metrics: Sequence[pb.TrainingMetric]) -> Iterator[Finding]:
    vocab_size = job.plan.train.architecture.vocab_size
    step, loss = metrics[-1].step, _mean(metrics[-_WINDOW:])
    if vocab_size < 2 or step < min(_LEARNT_BY_STEP, max(_FEWEST_STEPS, job.plan.total_steps // 2)):
        return
    guess = math.log(vocab_size)
    if loss > _HARDLY_BELOW_GUESS * guess:
        yield (
            pb.DIAGNOSIS_VERDICT_NOT_LEARNING,
            f"after {step} steps the loss is {loss:.3f}; guessing among {vocab_size} tokens has {guess:.3f}",
            "raise the learning rates, or look at the text: ReadRows shows what is learnt from",
        )


def _overfitting(evaluations: Sequence[pb.Evaluation]) -> Iterator[Finding]:
    if len(evaluations) < 2:
        return
    last = evaluations[-1]
    best = min(evaluations, key=lambda one: one.validation_loss)
    gap = last.validation_loss - last.training_loss
    rise = last.validation_loss / best.validation_loss - 1
    if rise > _OVERFIT_RISE or gap > _OVERFIT_GAP:
        yield (
            pb.DIAGNOSIS_VERDICT_OVERFITTING,
            f"validation {last.validation_loss:.3f} against training {last.training_loss:.3f}; the best validation was "
            f"{best.validation_loss:.3f} at step {best.step}",
            "stop here: the best checkpoint is kept and released; next time more text, dropout 0.2 or fewer steps",
        )


def _good_enough(evaluations: Sequence[pb.Evaluation]) -> Iterator[Finding]:
    if not evaluations:
        return
    best = min(evaluations, key=lambda one: one.bits_per_byte)
    evidence = f"{best.bits_per_byte:.3f} bits per byte at step {best.step}, perplexity {best.perplexity:.2f}"
    if best.bits_per_byte < _DEPLOY_BITS:
        yield pb.DIAGNOSIS_VERDICT_DEPLOY, evidence, "deploy it: `octavo deploy` serves the released version"
    elif best.bits_per_byte < _READY_BITS:
        yield pb.DIAGNOSIS_VERDICT_READY, evidence, "it can serve; train longer for better text"


def _plateau(evaluations: Sequence[pb.Evaluation]) -> Iterator[Finding]:
    if len(evaluations) < 3:
        return
    last = evaluations[-1]
    earlier = [one for one in evaluations if one.step <= last.step - _PLATEAU_STEPS]
    if not earlier:
        return
    before = min(one.validation_loss for one in earlier)
    since = min(one.validation_loss for one in evaluations if one.step > last.step - _PLATEAU_STEPS)
    if since > before * (1 - _PLATEAU_GAIN):
        yield (
            pb.DIAGNOSIS_VERDICT_PLATEAU,
            f"the best validation loss went from {before:.4f} to {since:.4f} in the last {_PLATEAU_STEPS} steps",
            "lower the learning rate (UpdateJob, live.learning_rate_scale 0.3), or stop",
        )


def _mean(metrics: Sequence[pb.TrainingMetric]) -> float:
    return math.fsum(metric.loss for metric in metrics) / max(1, len(metrics))
