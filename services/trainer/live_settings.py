"""What people may change of a train job while it runs: what is wrong with it, what it makes of the plan, in words.

Live settings are kept whole in each command, so the last one applied says everything; what it leaves unset is as
planned. Knows nothing of commands, events or processes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from octavo.v1 import trainer_pb2 as pb
from services.trainer.checks.table import NUMBERED
from services.trainer.checks.table import faults as spec_faults

MAX_LEARNING_RATE_SCALE: Final = 100.0
# Where each setting is found in the spec that it differs from; the scale is of both rates.
_IN_SPEC: Final = {
    "weight_decay": "optimizer.weight_decay",
    "evaluation_interval_steps": "evaluation_interval_steps",
    "sample": "sample",
    "early_stopping": "early_stopping",
    "target_loss": "target_loss",
    "steps": "steps",
}


def faults(live: pb.LiveSettings) -> dict[str, str]:
    """Every wrong setting by its path below `live`; empty when all can be honoured."""
    wrong: dict[str, str] = {}
    scale = live.learning_rate_scale
    if live.HasField("learning_rate_scale") and not 0 < scale <= MAX_LEARNING_RATE_SCALE:
        wrong["learning_rate_scale"] = (
            f"{scale:g} is not above 0 and at most {MAX_LEARNING_RATE_SCALE:g}; 0.5 halves them"
        )
    in_spec, _ = spec_faults(NUMBERED, _as_spec(live))
    return wrong | {field.removeprefix("optimizer."): fault for field, fault in in_spec.items()}


def _as_spec(live: pb.LiveSettings) -> pb.TrainSpec:
    """The settings where a spec has them."""
    spec = in_force(pb.TrainSpec(), live)
    if spec.early_stopping == pb.EarlyStopping():
        spec.ClearField("early_stopping")
    return spec


def in_force(planned: pb.TrainSpec, live: pb.LiveSettings) -> pb.TrainSpec:
    """The planned spec with what differs. The scale of the learning rates stays apart: it is of the whole schedule."""
    spec = pb.TrainSpec()
    spec.CopyFrom(planned)
    if live.HasField("weight_decay"):
        spec.optimizer.weight_decay = live.weight_decay
    for field in ("evaluation_interval_steps", "target_loss", "steps"):
        if live.HasField(field):
            setattr(spec, field, getattr(live, field))
    if live.HasField("early_stopping"):
        spec.early_stopping.CopyFrom(live.early_stopping)
    if live.sample.prompt or live.sample.prompts:
        spec.sample.ClearField("prompt")
        spec.sample.ClearField("prompts")
    spec.sample.MergeFrom(live.sample)
    return spec


def inherited(live: pb.LiveSettings, masked: Iterable[str]) -> pb.LiveSettings:
    """What a fork takes over from its parent, given the paths of the spec that it changes itself."""
    kept = pb.LiveSettings()
    kept.CopyFrom(live)
    kept.ClearField("finish")
    for path in masked:
        for field, place in _IN_SPEC.items():
            if path == place or path.startswith(f"{place}.") or place.startswith(f"{path}."):
                kept.ClearField(field)  # type: ignore[arg-type]
        if path in {"optimizer", "optimizer.learning_rate", "optimizer.matrix_learning_rate"}:
            kept.ClearField("learning_rate_scale")
    return kept


def difference(before: pb.LiveSettings, after: pb.LiveSettings) -> str:
    """What changed from one to the other, for people: `weight_decay 0.1, target_loss as planned`."""
    words = []
    for field in pb.LiveSettings.DESCRIPTOR.fields:
        had, has = before.HasField(field.name), after.HasField(field.name)  # type: ignore[arg-type]
        old, new = getattr(before, field.name), getattr(after, field.name)
        if had != has or old != new:
            words.append(f"{field.name} {_shown(new)}" if has else f"{field.name} as planned")
    return ", ".join(words) or "nothing changed"


def _shown(value: object) -> str:
    if isinstance(value, Message):
        return str(MessageToDict(value, preserving_proto_field_name=True))
    if isinstance(value, float):
        return f"{value:g}" if math.isfinite(value) else str(value)
    return str(value).lower() if isinstance(value, bool) else str(value)
