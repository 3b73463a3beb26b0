"""An ONNX graph while it is being written: nodes in order, constants, and tensors that stay in their files.

Knows operators and bytes; nothing of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from octavo.formats.tensor_file import TensorEntry

CONTRIB: Final = "com.microsoft"

# The element types of safetensors that our graphs read, as ONNX names them.
_ELEMENT_TYPES: Final[Mapping[str, int]] = {
    "F32": TensorProto.FLOAT,
    "F16": TensorProto.FLOAT16,
    "BF16": TensorProto.BFLOAT16,
    "I8": TensorProto.INT8,
    "U8": TensorProto.UINT8,
}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor's bytes lie: `file` beside the graph, and the place in it."""

    file: str
    entry: TensorEntry


class GraphNodes:
    """Collects nodes and initializers; every method adds one step and returns the name of its result."""

    def __init__(self, tensors: Mapping[str, StoredTensor]) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._tensors = tensors
        self._initializers: dict[str, onnx.TensorProto] = {}

    @property
    def initializers(self) -> list[onnx.TensorProto]:
        """The constants and tensors that were asked for."""
        return list(self._initializers.values())

    def node(self, operator: str, inputs: Sequence[str], result: str, *, domain: str = "", **attributes: Any) -> str:
        """One operation with one result, which it is also named after."""
        return self.node_of_many(operator, inputs, [result], domain=domain, **attributes)[0]

    def node_of_many(
        self, operator: str, inputs: Sequence[str], results: Sequence[str], *, domain: str = "", **attributes: Any
    ) -> list[str]:
        """One operation with several results, named after the first."""
        self.nodes.append(
            helper.make_node(operator, list(inputs), list(results), name=results[0], domain=domain, **attributes)
        )
        return list(results)

    def constant(self, name: str, value: npt.NDArray[Any]) -> str:
        """A small array that the graph itself holds; the same name means the same array."""
        self._initializers.setdefault(name, numpy_helper.from_array(value, name))
        return name

    def tensor(self, name: str) -> str:
        """A tensor of one of the files, by its name there."""
        if name not in self._initializers:
            stored = self._tensors[name]
            tensor = TensorProto(name=name, data_type=_ELEMENT_TYPES[stored.entry.dtype], dims=stored.entry.shape)
            tensor.data_location = TensorProto.EXTERNAL
            place = {"location": stored.file, "offset": stored.entry.offset, "length": stored.entry.size_bytes}
            for key, value in place.items():
                tensor.external_data.add(key=key, value=str(value))
            self._initializers[name] = tensor
        return name


def tensors_of(file: str, entries: Mapping[str, TensorEntry]) -> dict[str, StoredTensor]:
    """The tensors of one file."""
    return {name: StoredTensor(file, entry) for name, entry in entries.items()}


def shaped(name: str, element_type: int, shape: Sequence[str | int]) -> onnx.ValueInfoProto:
    """An input or output of a graph."""
    return helper.make_tensor_value_info(name, element_type, list(shape))


def as_index(values: Sequence[int]) -> npt.NDArray[np.int64]:
    """Axes, widths and shapes as the operators want them."""
    return np.array(values, np.int64)
