"""A checkpoint in 16 bits, for CUDA: weights and cache cast, nothing searched. Runs on a CPU only to be measured there.

The graph's inputs and outputs are those of fp32 but for its cache. Knows nothing of whether the result is good enough.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from octavo.formats.architecture import Architecture
from octavo.formats.bundle import CONFIG_FILE, graph_file, read_json, weights_file
from octavo.formats.manifest import WEIGHTS_FILE
from octavo.formats.tensor_file import read_header, read_tensor, write_safetensors
from services.trainer.arithmetic import Arithmetic
from services.trainer.graph_nodes import GraphNodes, tensors_of
from services.trainer.onnx_export import build_graph_of, write_graph

_TYPES: Final[dict[str, tuple[Any, int]]] = {
    "fp16": (np.float16, TensorProto.FLOAT16),
    "bf16": (ml_dtypes.bfloat16, TensorProto.BFLOAT16),
}
HALVES: Final = tuple(_TYPES)


class HalfArithmetic(Arithmetic):
    """16 bits throughout; logits are float32, cast at the very end."""

    cache_element_bytes = 2

    def __init__(self, element_type: int) -> None:
        self.element_type = element_type
        self.cache_type = element_type

    def head(self, nodes: GraphNodes, hidden: str, name: str) -> str:
        half = nodes.node("Gemm", [hidden, nodes.tensor(name)], "logits.half", transB=1)
        return nodes.node("Cast", [half], "logits", to=TensorProto.FLOAT)


def write_half(bundle: Path, precision: str) -> Path:
    """`fp16` or `bf16` beside the fp32 graph of `bundle`; returns the graph."""
    dtype, element_type = _TYPES[precision]
    a = Architecture.from_config(read_json(bundle / CONFIG_FILE))
    header = read_header(bundle / WEIGHTS_FILE)
    tensors: dict[str, npt.NDArray[Any]] = {
        name: read_tensor(bundle / WEIGHTS_FILE, entry).astype(dtype) for name, entry in header.tensors.items()
    }
    file = weights_file(precision)
    written = write_safetensors(bundle / file, tensors, {"format": "pt"})
    graph = build_graph_of(a, tensors_of(file, written.tensors), HalfArithmetic(element_type))
    return write_graph(graph, bundle / graph_file(precision))
