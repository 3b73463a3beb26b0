"""Whether a run is good enough to serve: the ladder of losses, judged in bits per byte so that it holds for every
vocabulary.

The ladder is that of a character model of ASCII text: below 3.0 nats a character train longer, below 2.5 with a
perplexity below 15 ready, below 2.0 deploy. A character of it is a byte, so these are 4.33, 3.61 and 2.89 bits a byte,
and the perplexity is that of a byte. Text whose characters have more bytes is held to the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

from octavo.v1 import trainer_pb2 as pb
from services.trainer import memory_findings
from services.trainer.finding import Finding

_LONGER_BITS: Final = 3.0 / math.log(2)
_READY_BITS: Final = 2.5 / math.log(2)
_DEPLOY_BITS: Final = 2.0 / math.log(2)
_PERPLEXITY: Final = 15.0

_VERDICTS: Final = {
    pb.READINESS_LEVEL_TRAIN_LONGER: pb.DIAGNOSIS_VERDICT_TRAIN_LONGER,
    pb.READINESS_LEVEL_READY: pb.DIAGNOSIS_VERDICT_READY,
    pb.READINESS_LEVEL_DEPLOY: pb.DIAGNOSIS_VERDICT_DEPLOY,
}


def judge(job: pb.Job, metrics: Sequence[pb.TrainingMetric], evaluations: Sequence[pb.Evaluation]) -> pb.Readiness:
    """How far the best evaluated weights are, with the figures that say so. There is at least one evaluation."""
    best = min(evaluations, key=lambda one: one.bits_per_byte)
    perplexity = 2.0**best.bits_per_byte
    is_stable = memory_findings.is_stable(metrics)
    level = _level(best.bits_per_byte, perplexity, is_stable=is_stable)
    return pb.Readiness(
        level=level,
        step=best.step,
        bits_per_byte=best.bits_per_byte,
        byte_perplexity=perplexity,
        is_memory_stable=is_stable,
        evidence=[
            f"{best.bits_per_byte:.3f} bits per byte at step {best.step}: below {_DEPLOY_BITS:.2f} deploy, below "
            f"{_READY_BITS:.2f} ready, below {_LONGER_BITS:.2f} train longer",
            f"perplexity {perplexity:.2f} a byte (ready below {_PERPLEXITY:g}), {best.perplexity:.2f} a token of "
            f"{job.plan.train.architecture.vocab_size or '?'}",
            "memory is stable" if is_stable else "memory grows from step to step",
        ],
        advice=_advice(level, job),
    )


def find(job: pb.Job, metrics: Sequence[pb.TrainingMetric], evaluations: Sequence[pb.Evaluation]) -> Iterator[Finding]:
    """The rung that was reached, as a finding; none below the lowest."""
    if not evaluations:
        return
    judged = judge(job, metrics, evaluations)
    if judged.level in _VERDICTS:
        evidence = f"{judged.bits_per_byte:.3f} bits per byte at step {judged.step}, perplexity "
        evidence += f"{judged.byte_perplexity:.2f} a byte"
        yield Finding(_VERDICTS[judged.level], evidence, judged.advice, judged.step)


def _level(bits: float, perplexity: float, *, is_stable: bool) -> pb.ReadinessLevel.ValueType:
    if bits >= _LONGER_BITS or not math.isfinite(bits):
        return pb.READINESS_LEVEL_NOT_READY
    if bits >= _READY_BITS or perplexity >= _PERPLEXITY or not is_stable:
        return pb.READINESS_LEVEL_TRAIN_LONGER
    return pb.READINESS_LEVEL_DEPLOY if bits < _DEPLOY_BITS else pb.READINESS_LEVEL_READY


def _advice(level: pb.ReadinessLevel.ValueType, job: pb.Job) -> str:
    steps = 2 * job.plan.total_steps
    return {
        pb.READINESS_LEVEL_NOT_READY: f"train on, or with more text or a larger size: {steps} steps are twice as many",
        pb.READINESS_LEVEL_TRAIN_LONGER: f"train longer: `octavo jobs fork` with {steps} steps goes on from here",
        pb.READINESS_LEVEL_READY: "it can serve; train longer for better text",
        pb.READINESS_LEVEL_DEPLOY: "deploy it: `octavo deployments create NAME VERSION` serves the released version",
    }[level]
