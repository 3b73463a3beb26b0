"""One ONNX graph of tensors in ONNX Runtime: what it takes and gives, and running it.

Knows arrays; nothing of requests, batches or names of models. Used by one thread at a time.
"""

from collections.abc import Mapping, Sequence
from ctypes import string_at
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime as ort

from octavo.errors import FailedPrecondition
from octavo.v1.errors_pb2 import Reason
from services.inference.datatypes import BY_RUNTIME, Datatype
from services.inference.served_graph import PROVIDERS, session_options
from services.inference.tensors import Array

_BFLOAT16 = 16
"""onnx.TensorProto.BFLOAT16, without the time that importing onnx takes."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a graph. A dimension is a size, or the name of one that may vary (empty: any)."""

    name: str
    datatype: Datatype
    dimensions: tuple[int | str, ...]

    @property
    def shape(self) -> list[int]:
        """The sizes, -1 where one may vary."""
        return [size if isinstance(size, int) else -1 for size in self.dimensions]


class Run:
    """One or more runs of a graph that can be ended before they are over, from any thread."""

    def __init__(self) -> None:
        self.options = ort.RunOptions()

    def interrupt(self) -> None:
        """Ends the run under way, and all later ones, at the next node of the graph."""
        self.options.terminate = True


class TensorSession:
    """A graph, loaded. Raises FailedPrecondition for one that cannot be."""

    def __init__(self, path: Path, *, threads: int, spin_us: int) -> None:
        try:
            # No library of custom operators is registered, and the runtime itself refuses external data that lies
            # outside the graph's directory: a graph is data here, whoever made it.
            self._session = ort.InferenceSession(
                str(path), session_options(threads, spin_us=spin_us), providers=list(PROVIDERS)
            )
        except Exception as error:  # the runtime raises its own classes
            raise refused(f"ONNX Runtime cannot load {path.name}: {error}") from error
        self.inputs = tuple(_spec(entry, "input") for entry in self._session.get_inputs())
        self.outputs = tuple(_spec(entry, "output") for entry in self._session.get_outputs())
        self._is_brain = {spec.name: spec.datatype.name == "BF16" for spec in (*self.inputs, *self.outputs)}
        if any(spec.datatype.name == "BYTES" for spec in self.inputs) and any(
            self._is_brain[spec.name] for spec in self.outputs
        ):
            raise refused("it takes BYTES and gives BF16, which ONNX Runtime's Python binding cannot do in one run")

    def run(self, feeds: Mapping[str, Array], wanted: Sequence[str], run: Run) -> list[Array]:
        """The wanted outputs in their order. Text is objects of `str`. Raises what the runtime raises."""
        given = {name: _brain(array) if self._is_brain[name] else array for name, array in feeds.items()}
        if not any(self._is_brain[name] for name in wanted):
            return list(self._session.run(list(wanted), given, run.options))
        values = {
            name: value if self._is_brain[name] else ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value))
            for name, value in given.items()
        }
        outputs = self._session.run_with_ort_values(list(wanted), values, run.options)
        return [
            _unbrained(value) if self._is_brain[name] else value.numpy()
            for name, value in zip(wanted, outputs, strict=True)
        ]


def refused(why: str) -> FailedPrecondition:
    """A version that cannot be served here."""
    return FailedPrecondition(Reason.REASON_MODEL_REFUSED, why)


def _spec(entry: Any, kind: str) -> TensorSpec:
    if entry.type not in BY_RUNTIME:
        served = ", ".join(datatype.name for datatype in BY_RUNTIME.values())
        raise refused(f"its {kind} {entry.name!r} is {entry.type}, which has no datatype; there are {served}")
    dimensions = tuple(size if isinstance(size, int) else size or "" for size in entry.shape)
    return TensorSpec(entry.name, BY_RUNTIME[entry.type], dimensions)


def _brain(array: Array) -> ort.OrtValue:
    """BF16 for the runtime, whose binding knows no NumPy type for it: the same 16 bits, with their type said."""
    bits = np.ascontiguousarray(array).view(np.uint16)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, _BFLOAT16)


def _unbrained(value: ort.OrtValue) -> Array:
    shape = value.shape()
    size_bytes = int(np.prod(shape, dtype=np.int64)) * 2
    content = string_at(value.data_ptr(), size_bytes) if size_bytes else b""
    return np.frombuffer(content, ml_dtypes.bfloat16).reshape(shape)
