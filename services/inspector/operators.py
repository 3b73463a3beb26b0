"""What the operators of an ONNX graph say about the tensors they take: which are scales, constants, or packed.

Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from octavo.v1 import inspector_pb2 as pb

DEFAULT_DOMAIN: Final = "ai.onnx"
# Domains whose operators ONNX Runtime brings itself; any other needs a library of native code.
KNOWN_DOMAINS: Final = frozenset({DEFAULT_DOMAIN, "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc"})

_QUANTIZATION: Final = pb.TENSOR_ROLE_QUANTIZATION
_BUFFER: Final = pb.TENSOR_ROLE_BUFFER

# Inputs by position that hold no weights: onnx/docs/Operators.md and onnxruntime/docs/ContribOperators.md.
_AUXILIARY: Final[Mapping[str, Mapping[int, pb.TensorRole.ValueType]]] = MappingProxyType(
    {
        "DequantizeLinear": {1: _QUANTIZATION, 2: _QUANTIZATION},
        "QuantizeLinear": {1: _QUANTIZATION, 2: _QUANTIZATION},
        "QLinearMatMul": dict.fromkeys((1, 2, 4, 5, 6, 7), _QUANTIZATION),
        "QGemm": dict.fromkeys((1, 2, 4, 5, 7, 8), _QUANTIZATION),
        "MatMulInteger": dict.fromkeys((2, 3), _QUANTIZATION),
        "MatMulIntegerToFloat": dict.fromkeys((2, 3, 4, 5), _QUANTIZATION),
        "DynamicQuantizeMatMul": dict.fromkeys((2, 3), _QUANTIZATION),
        "MatMulNBits": dict.fromkeys((2, 3, 4), _QUANTIZATION),
        "GatherBlockQuantized": dict.fromkeys((2, 3), _QUANTIZATION),
        "GroupQueryAttention": {7: _BUFFER, 8: _BUFFER, 12: _QUANTIZATION, 13: _QUANTIZATION},
        "RotaryEmbedding": {2: _BUFFER, 3: _BUFFER},
        "Reshape": {1: _BUFFER},
        "Expand": {1: _BUFFER},
        "Slice": dict.fromkeys((1, 2, 3, 4), _BUFFER),
        "Split": {1: _BUFFER},
        "Unsqueeze": {1: _BUFFER},
        "Squeeze": {1: _BUFFER},
    }
)


@dataclass(slots=True)
class InputRoles:
    """Learned from nodes as they pass: roles of auxiliary inputs, and element counts of packed weights."""

    roles: dict[str, pb.TensorRole.ValueType] = field(default_factory=dict)
    packed_counts: dict[str, int] = field(default_factory=dict)

    def learn(self, node: Any) -> None:
        """Takes in one NodeProto."""
        for position, role in _AUXILIARY.get(node.op_type, {}).items():
            if position < len(node.input) and node.input[position]:
                self.roles[node.input[position]] = role
        if node.op_type == "MatMulNBits" and len(node.input) > 1:
            sizes = {attribute.name: attribute.i for attribute in node.attribute}
            # The packed matrix has K x N weights, several to a byte.
            self.packed_counts[node.input[1]] = sizes.get("K", 0) * sizes.get("N", 0)
