"""The types of numbers that files hold: what safetensors and ONNX call them, and how many bits each takes.

Knows nothing of where the numbers lie.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from octavo.v1 import inspector_pb2 as pb

Kind = pb.TensorType


@dataclass(frozen=True, slots=True)
class ElementType:
    """A type as the contract names it and the bits of one element; 0 bits where elements have no fixed size."""

    kind: pb.TensorType.ValueType
    bits: int

    def size_bytes(self, element_count: int) -> int:
        """Bytes of so many elements, packed without gaps and rounded up to whole bytes."""
        return (element_count * self.bits + 7) // 8


# github.com/huggingface/safetensors, safetensors/src/tensor.rs, `Dtype` and `bitsize`.
SAFETENSORS: Final[Mapping[str, ElementType]] = MappingProxyType(
    {
        "BOOL": ElementType(Kind.TENSOR_TYPE_BOOL, 8),
        "F4": ElementType(Kind.TENSOR_TYPE_FLOAT4_E2M1, 4),
        "F6_E2M3": ElementType(Kind.TENSOR_TYPE_OTHER, 6),
        "F6_E3M2": ElementType(Kind.TENSOR_TYPE_OTHER, 6),
        "U8": ElementType(Kind.TENSOR_TYPE_UINT8, 8),
        "I8": ElementType(Kind.TENSOR_TYPE_INT8, 8),
        "F8_E5M2": ElementType(Kind.TENSOR_TYPE_FLOAT8_E5M2, 8),
        "F8_E4M3": ElementType(Kind.TENSOR_TYPE_FLOAT8_E4M3, 8),
        "F8_E8M0": ElementType(Kind.TENSOR_TYPE_FLOAT8_E8M0, 8),
        "I16": ElementType(Kind.TENSOR_TYPE_INT16, 16),
        "U16": ElementType(Kind.TENSOR_TYPE_UINT16, 16),
        "F16": ElementType(Kind.TENSOR_TYPE_FLOAT16, 16),
        "BF16": ElementType(Kind.TENSOR_TYPE_BFLOAT16, 16),
        "I32": ElementType(Kind.TENSOR_TYPE_INT32, 32),
        "U32": ElementType(Kind.TENSOR_TYPE_UINT32, 32),
        "F32": ElementType(Kind.TENSOR_TYPE_FLOAT32, 32),
        "C64": ElementType(Kind.TENSOR_TYPE_COMPLEX64, 64),
        "F64": ElementType(Kind.TENSOR_TYPE_FLOAT64, 64),
        "I64": ElementType(Kind.TENSOR_TYPE_INT64, 64),
        "U64": ElementType(Kind.TENSOR_TYPE_UINT64, 64),
    }
)

# github.com/onnx/onnx, onnx/onnx.proto, `TensorProto.DataType`.
ONNX: Final[Mapping[int, ElementType]] = MappingProxyType(
    {
        1: ElementType(Kind.TENSOR_TYPE_FLOAT32, 32),
        2: ElementType(Kind.TENSOR_TYPE_UINT8, 8),
        3: ElementType(Kind.TENSOR_TYPE_INT8, 8),
        4: ElementType(Kind.TENSOR_TYPE_UINT16, 16),
        5: ElementType(Kind.TENSOR_TYPE_INT16, 16),
        6: ElementType(Kind.TENSOR_TYPE_INT32, 32),
        7: ElementType(Kind.TENSOR_TYPE_INT64, 64),
        8: ElementType(Kind.TENSOR_TYPE_STRING, 0),
        9: ElementType(Kind.TENSOR_TYPE_BOOL, 8),
        10: ElementType(Kind.TENSOR_TYPE_FLOAT16, 16),
        11: ElementType(Kind.TENSOR_TYPE_FLOAT64, 64),
        12: ElementType(Kind.TENSOR_TYPE_UINT32, 32),
        13: ElementType(Kind.TENSOR_TYPE_UINT64, 64),
        14: ElementType(Kind.TENSOR_TYPE_COMPLEX64, 64),
        15: ElementType(Kind.TENSOR_TYPE_COMPLEX128, 128),
        16: ElementType(Kind.TENSOR_TYPE_BFLOAT16, 16),
        17: ElementType(Kind.TENSOR_TYPE_FLOAT8_E4M3, 8),
        18: ElementType(Kind.TENSOR_TYPE_OTHER, 8),
        19: ElementType(Kind.TENSOR_TYPE_FLOAT8_E5M2, 8),
        20: ElementType(Kind.TENSOR_TYPE_OTHER, 8),
        21: ElementType(Kind.TENSOR_TYPE_UINT4, 4),
        22: ElementType(Kind.TENSOR_TYPE_INT4, 4),
        23: ElementType(Kind.TENSOR_TYPE_FLOAT4_E2M1, 4),
        24: ElementType(Kind.TENSOR_TYPE_FLOAT8_E8M0, 8),
        25: ElementType(Kind.TENSOR_TYPE_OTHER, 2),
        26: ElementType(Kind.TENSOR_TYPE_OTHER, 2),
    }
)

FLOATS: Final = frozenset(
    {
        Kind.TENSOR_TYPE_FLOAT16,
        Kind.TENSOR_TYPE_BFLOAT16,
        Kind.TENSOR_TYPE_FLOAT32,
        Kind.TENSOR_TYPE_FLOAT64,
        Kind.TENSOR_TYPE_FLOAT8_E4M3,
        Kind.TENSOR_TYPE_FLOAT8_E5M2,
        Kind.TENSOR_TYPE_FLOAT4_E2M1,
    }
)
