"""What makes two train specs the same configuration: everything that what is learnt depends on, and nothing else."""

from __future__ import annotations

import hashlib
import json
from typing import Final

from google.protobuf.json_format import MessageToDict

from octavo.v1 import trainer_pb2 as pb

# Names, chance, where and how to compute the same numbers, when to look and what to write besides.
_WITHOUT_EFFECT: Final = (
    "model",
    "aliases",
    "deployment",
    "seed",
    "size",
    "microbatch_size",
    "threads",
    "processes",
    "device",
    "checkpoints",
    "sample",
    "export_precisions",
    "price_per_hour",
    "recovery",
)


def configuration_id(resolved: pb.TrainSpec) -> str:
    """`c-` and 12 hexadecimal digits, the same for resolved specs that learn the same but for chance.

    Fields that a later version adds do not change it while they are unset.
    """
    spec = pb.TrainSpec()
    spec.CopyFrom(resolved)
    for field in _WITHOUT_EFFECT:
        spec.ClearField(field)
    if not spec.HasField("early_stopping") and not spec.target_loss:
        # Only a run that may stop early depends on how often it is looked at.
        spec.ClearField("evaluation_interval_steps")
    canonical = json.dumps(MessageToDict(spec, preserving_proto_field_name=True), sort_keys=True)
    return f"c-{hashlib.sha256(canonical.encode()).hexdigest()[:12]}"
