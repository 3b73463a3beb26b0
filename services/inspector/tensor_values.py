"""Turns stored bytes into numbers: whole tensors as a stream of blocks, or a rectangular part of one.

Holds one block at a time, whatever the size of the tensor. Knows nothing of what the numbers mean.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt

from octavo.errors import FailedPrecondition, InvalidArgument
from octavo.v1 import inspector_pb2 as pb
from octavo.v1.errors_pb2 import Reason
from services.inspector.reader import Reader

Kind = pb.TensorType
Numbers = npt.NDArray[Any]

# One fetch of the registry's largest chunk; its numbers in double precision still fit a second-level cache.
BLOCK_BYTES: Final = 1 << 20
_VALUES_LIMIT: Final = 262_144

_DTYPES: Final[Mapping[pb.TensorType.ValueType, Any]] = MappingProxyType(
    {
        Kind.TENSOR_TYPE_BOOL: np.bool_,
        Kind.TENSOR_TYPE_INT8: np.int8,
        Kind.TENSOR_TYPE_UINT8: np.uint8,
        Kind.TENSOR_TYPE_INT16: np.int16,
        Kind.TENSOR_TYPE_UINT16: np.uint16,
        Kind.TENSOR_TYPE_INT32: np.int32,
        Kind.TENSOR_TYPE_UINT32: np.uint32,
        Kind.TENSOR_TYPE_INT64: np.int64,
        Kind.TENSOR_TYPE_UINT64: np.uint64,
        Kind.TENSOR_TYPE_FLOAT16: np.float16,
        Kind.TENSOR_TYPE_BFLOAT16: ml_dtypes.bfloat16,
        Kind.TENSOR_TYPE_FLOAT32: np.float32,
        Kind.TENSOR_TYPE_FLOAT64: np.float64,
        Kind.TENSOR_TYPE_FLOAT8_E4M3: ml_dtypes.float8_e4m3fn,
        Kind.TENSOR_TYPE_FLOAT8_E5M2: ml_dtypes.float8_e5m2,
        Kind.TENSOR_TYPE_FLOAT8_E8M0: ml_dtypes.float8_e8m0fnu,
    }
)
# Two to a byte, the first one in the lower half: onnx/onnx.proto, TensorProto.int32_data.
_HALF_BYTES: Final[Mapping[pb.TensorType.ValueType, Any]] = MappingProxyType(
    {
        Kind.TENSOR_TYPE_INT4: ml_dtypes.int4,
        Kind.TENSOR_TYPE_UINT4: ml_dtypes.uint4,
        Kind.TENSOR_TYPE_FLOAT4_E2M1: ml_dtypes.float4_e2m1fn,
    }
)
_SUBNORMAL_BELOW: Final[Mapping[pb.TensorType.ValueType, float]] = MappingProxyType(
    {
        Kind.TENSOR_TYPE_FLOAT16: 2.0**-14,
        Kind.TENSOR_TYPE_BFLOAT16: 2.0**-126,
        Kind.TENSOR_TYPE_FLOAT32: 2.0**-126,
        Kind.TENSOR_TYPE_FLOAT64: 2.0**-1022,
        Kind.TENSOR_TYPE_FLOAT8_E4M3: 2.0**-6,
        Kind.TENSOR_TYPE_FLOAT8_E5M2: 2.0**-14,
        Kind.TENSOR_TYPE_FLOAT4_E2M1: 1.0,
    }
)


def subnormal_below(kind: pb.TensorType.ValueType) -> float:
    """The smallest normal magnitude of a floating type; 0 for types without subnormal numbers."""
    return _SUBNORMAL_BELOW.get(kind, 0.0)


def are_numbers(tensor: pb.TensorDescription) -> bool:
    """Whether the values of a tensor can be read: a numeric type, stored as plain bytes."""
    is_known = tensor.type in _DTYPES or tensor.type in _HALF_BYTES
    return is_known and (tensor.HasField("offset_bytes") or not tensor.element_count)


def refuse_unreadable(tensor: pb.TensorDescription) -> None:
    """FailedPrecondition for tensors whose values cannot be read here."""
    if not are_numbers(tensor):
        kind = pb.TensorType.Name(tensor.type).removeprefix("TENSOR_TYPE_")
        raise FailedPrecondition(
            Reason.REASON_FORMAT_NOT_SUPPORTED,
            f"the values of {tensor.name} cannot be read: {kind}"
            + ("" if tensor.HasField("offset_bytes") else ", not stored as plain bytes within the artifact"),
            tensor=tensor.name,
        )


def decode(data: bytes, kind: pb.TensorType.ValueType) -> Numbers:
    """The numbers in whole bytes; types of half a byte come out unpacked, two for each byte."""
    if kind in _HALF_BYTES:
        packed = np.frombuffer(data, np.uint8)
        halves = np.stack((packed & 0x0F, packed >> 4), axis=-1).reshape(-1)
        return halves.view(_HALF_BYTES[kind])
    return np.frombuffer(data, np.dtype(_DTYPES[kind]).newbyteorder("<"))


def blocks(reader: Reader, tensor: pb.TensorDescription) -> Iterator[tuple[bytes, Numbers]]:
    """The bytes and numbers of a tensor in order, each byte read once; whole rows where rows are not too long."""
    row = tensor.size_bytes // tensor.shape[0] if tensor.shape and tensor.shape[0] else 0
    step = BLOCK_BYTES // row * row if 0 < row <= BLOCK_BYTES else BLOCK_BYTES
    left = tensor.element_count
    for data in reader.stream(tensor.offset_bytes, tensor.size_bytes, step):
        numbers = decode(data, tensor.type)[:left]
        left -= len(numbers)
        yield data, numbers


def part(reader: Reader, tensor: pb.TensorDescription, starts: Sequence[int], lengths: Sequence[int]) -> Numbers:
    """The numbers of a rectangle within a tensor, in row-major order, flat."""
    shape = list(tensor.shape)
    # From the first dimension whose every later one is taken whole, the numbers lie in one run.
    split = len(shape)
    while split > 0 and lengths[split - 1] == shape[split - 1]:
        split -= 1
    outer, run = max(split - 1, 0), math.prod(lengths[max(split - 1, 0) :])
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    first = sum(start * stride for start, stride in zip(starts, strides, strict=True))
    runs = []
    for index in itertools.product(*(range(length) for length in lengths[:outer])):
        at = first + sum(step * stride for step, stride in zip(index, strides, strict=False))
        runs.append(_run(reader, tensor, at, run))
    return np.concatenate(runs) if runs else decode(b"", tensor.type)


def rectangle(
    tensor: pb.TensorDescription, starts: Sequence[int], lengths: Sequence[int]
) -> tuple[list[int], list[int]]:
    """First index and length of each dimension with what is left out filled in; InvalidArgument outside the shape."""
    shape = list(tensor.shape)
    begins = list(starts) or [0] * len(shape)
    for field, given in (("starts", begins), ("lengths", list(lengths) or shape)):
        if len(given) != len(shape):
            raise InvalidArgument.field(field, f"{len(given)} numbers for {len(shape)} dimensions of {shape}")
    sizes = list(lengths) or [max(size - begin, 0) for size, begin in zip(shape, begins, strict=True)]
    for begin, length, size in zip(begins, sizes, shape, strict=True):
        if begin < 0 or length < 0 or begin + length > size:
            raise InvalidArgument.field(
                "starts", f"{begin} and {length} more reach outside a dimension of {size}; the shape is {shape}"
            )
    if math.prod(sizes) > _VALUES_LIMIT:
        raise InvalidArgument.field(
            "lengths", f"{math.prod(sizes)} values at once; at most {_VALUES_LIMIT}, so ask for a smaller part"
        )
    return begins, sizes


def _run(reader: Reader, tensor: pb.TensorDescription, first: int, count: int) -> Numbers:
    bits = 4 if tensor.type in _HALF_BYTES else np.dtype(_DTYPES[tensor.type]).itemsize * 8
    begin, end = first * bits // 8, ((first + count) * bits + 7) // 8
    numbers = decode(reader.read(tensor.offset_bytes + begin, end - begin), tensor.type)
    skip = first - begin * 8 // bits
    return numbers[skip : skip + count]
