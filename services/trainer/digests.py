"""What proves that two runs are one: a digest of a state, and a chain of digests over all steps that led to it.

The chain is begun by the state before the first step, and each step adds the bits of what it showed. It knows nothing
of when checkpoints are written, so neither their interval nor a loss in between changes it; a fork carries on with its
parent's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from torch import Tensor

from octavo.formats.checkpoint import CheckpointEntry
from octavo.formats.tensor_file import digest_safetensors
from octavo.v1 import trainer_pb2 as pb


def state_digest(state: Mapping[str, Tensor]) -> str:
    """The `sha256:…` of a state: that of state.safetensors in a checkpoint of it."""
    return digest_safetensors({name: tensor.numpy() for name, tensor in state.items()})


def history_after(history: str, metric: pb.TrainingMetric) -> str:
    """The chain after one more step: the `sha256:…` of the chain before and the step's figures, in hexadecimal."""
    figures = (metric.loss, metric.gradient_norm, metric.learning_rate, metric.matrix_learning_rate)
    line = " ".join([history, str(metric.step), *(figure.hex() for figure in figures)])
    return f"sha256:{hashlib.sha256(line.encode()).hexdigest()}"


def history_of(entry: CheckpointEntry) -> str:
    """The chain up to a checkpoint; one without it, of an earlier release, begins a chain with its state."""
    return str(entry.facts.get("history") or entry.state_digest)
