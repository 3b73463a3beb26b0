"""A line of a job's log as one JSON object, the form that log shippers and fine-tuning dashboards read."""

from __future__ import annotations

import json
import math

from octavo.v1 import trainer_pb2 as pb


def to_json(line: pb.LogLine) -> str:
    """`{timestamp, type, level, message, step, epoch, step_time, learning_rate, loss, grad_norm}`, without line break.

    `step_time` is in seconds. What a line does not have, and what is not finite, is null.
    """
    return json.dumps(
        {
            "timestamp": line.create_time.ToJsonString() if line.HasField("create_time") else None,
            "type": line.type,
            "level": pb.LogSeverity.Name(line.severity).removeprefix("LOG_SEVERITY_").lower(),
            "message": line.message,
            "step": line.step,
            "epoch": _figure(line.epoch) if line.HasField("epoch") else None,
            "step_time": line.step_duration.ToNanoseconds() / 1e9 if line.HasField("step_duration") else None,
            "learning_rate": _figure(line.learning_rate) if line.HasField("learning_rate") else None,
            "loss": _figure(line.loss) if line.HasField("loss") else None,
            "grad_norm": _figure(line.gradient_norm) if line.HasField("gradient_norm") else None,
        },
        ensure_ascii=False,
    )


def _figure(value: float) -> float | None:
    return value if math.isfinite(value) else None
