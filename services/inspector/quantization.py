"""Measures what rounding weights to fewer bits would cost: round to nearest, symmetric, without data.

Holds one matrix at a time, up to a limit, since its scales may span it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

import numpy as np
import numpy.typing as npt

from octavo.errors import InvalidArgument
from octavo.v1 import inspector_pb2 as pb
from services.inspector import findings
from services.inspector.contents import Contents, identity, is_trained
from services.inspector.element_types import FLOATS
from services.inspector.page_slices import page_of
from services.inspector.tensor_values import are_numbers, blocks
from services.inspector.value_questions import data_reader

Scheme = pb.QuantizationScheme
Singles = npt.NDArray[np.float32]

_DEFAULT: Final = (Scheme.QUANTIZATION_SCHEME_INT8_CHANNEL, Scheme.QUANTIZATION_SCHEME_INT4_BLOCK_32)
# Levels on each side of zero, and consecutive inputs that share a scale: 0 for a whole channel, -1 for the tensor.
_FORMS: Final = {
    Scheme.QUANTIZATION_SCHEME_INT8_TENSOR: (127, -1),
    Scheme.QUANTIZATION_SCHEME_INT8_CHANNEL: (127, 0),
    Scheme.QUANTIZATION_SCHEME_INT8_BLOCK_32: (127, 32),
    Scheme.QUANTIZATION_SCHEME_INT4_BLOCK_32: (7, 32),
    Scheme.QUANTIZATION_SCHEME_INT4_BLOCK_128: (7, 128),
}
_SCALE_BYTES: Final = 4
_MATRIX_LIMIT_BYTES: Final = 1 << 29
_CHUNK_NUMBERS: Final = 1 << 18
# A matrix that loses this many times more than the typical one is worth its bytes.
_SENSITIVE: Final = 3.0

# GPT-2's projections are stored [in, out]; every other matrix here is [out, in].
_TURNED: Final = re.compile(r"\.(?:c_attn|c_proj|c_fc)\.weight$")


@dataclass(slots=True)
class _Sums:
    """What values, rounded values and their distance add up to."""

    square: float = 0.0
    error: float = 0.0
    product: float = 0.0
    rounded_square: float = 0.0
    maximum: float = 0.0
    size_bytes: int = 0

    def add(self, other: _Sums) -> None:
        self.square += other.square
        self.error += other.error
        self.product += other.product
        self.rounded_square += other.rounded_square
        self.maximum = max(self.maximum, other.maximum)
        self.size_bytes += other.size_bytes


def analyze(contents: Contents, request: pb.AnalyzeQuantizationRequest) -> pb.QuantizationAnalysis:
    """The error of each scheme for each matrix, most damaged first, and over all of them."""
    page = page_of(request, contents.artifact.name)
    schemes = _schemes(request.schemes)
    path = request.path if request.path or contents.artifact.is_blob else contents.weights_path()
    matrices, left_out = _matrices(contents, path)
    totals = [_Sums() for _ in schemes]
    tensors = []
    for tensor in matrices:
        sums = _measure(contents, tensor, schemes)
        for total, part in zip(totals, sums, strict=True):
            total.add(part)
        errors = [_error(scheme, part) for scheme, part in zip(schemes, sums, strict=True)]
        tensors.append(pb.TensorQuantization(tensor=tensor, errors=errors))
    tensors.sort(key=lambda item: -item.errors[0].relative_error)
    items, next_page_token = page.slice(tensors)
    return pb.QuantizationAnalysis(
        artifact=contents.artifact.name,
        tensors=items,
        totals=[_error(scheme, total) for scheme, total in zip(schemes, totals, strict=True)],
        findings=findings.ranked([*_judge(tensors), *left_out]),
        next_page_token=next_page_token,
        total_size=len(tensors),
    )


def _schemes(asked: Sequence[pb.QuantizationScheme.ValueType]) -> list[pb.QuantizationScheme.ValueType]:
    schemes = list(dict.fromkeys(asked)) or list(_DEFAULT)
    unknown = [scheme for scheme in schemes if scheme not in _FORMS]
    if unknown:
        known = ", ".join(Scheme.Name(scheme) for scheme in _FORMS)
        raise InvalidArgument.field("schemes", f"{unknown[0]} is no scheme; there are {known}")
    return schemes


def _matrices(contents: Contents, path: str) -> tuple[list[pb.TensorDescription], list[pb.InspectionFinding]]:
    """The trained matrices of floating types, each once, and what is left out for its size."""
    unique = {identity(tensor): tensor for tensor in contents.tensors(path)}
    matrices = [
        tensor
        for tensor in unique.values()
        if len(tensor.shape) == 2
        and tensor.element_count
        and is_trained(tensor)
        and tensor.type in FLOATS
        and are_numbers(tensor)
    ]
    fitting = [tensor for tensor in matrices if 4 * tensor.element_count <= _MATRIX_LIMIT_BYTES]
    left_out = [
        findings.info("matrix-too-large", f"{tensor.path}: {tensor.name}", "it is left out: too large to measure here")
        for tensor in matrices
        if 4 * tensor.element_count > _MATRIX_LIMIT_BYTES
    ]
    return fitting, left_out


def _measure(
    contents: Contents, tensor: pb.TensorDescription, schemes: Sequence[pb.QuantizationScheme.ValueType]
) -> list[_Sums]:
    rows = _load(contents, tensor)
    highest = float(np.abs(rows).max())
    return [_round(rows, highest, *_FORMS[scheme]) for scheme in schemes]


def _load(contents: Contents, tensor: pb.TensorDescription) -> Singles:
    """The matrix as [out, in]; values that are not finite count as zero, they are another question's matter."""
    flat = np.empty(tensor.element_count, np.float32)
    position = 0
    for _, numbers in blocks(data_reader(contents, tensor), tensor):
        flat[position : position + numbers.size] = numbers
        position += numbers.size
    np.nan_to_num(flat, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    matrix = flat.reshape(tensor.shape)
    return np.ascontiguousarray(matrix.T) if _TURNED.search(tensor.name) else matrix


def _round(rows: Singles, highest: float, levels: int, group: int) -> _Sums:
    """Rounds the matrix chunk by chunk and adds up the damage; `group` as in _FORMS."""
    sums = _Sums()
    count = max(_CHUNK_NUMBERS // rows.shape[1], 1)
    width = group if group > 0 else rows.shape[1]
    padding = -rows.shape[1] % width
    for start in range(0, rows.shape[0], count):
        chunk = np.pad(rows[start : start + count], ((0, 0), (0, padding))).astype(np.float64)
        grouped = chunk.reshape(-1, width)
        peaks = np.full((len(grouped), 1), highest) if group < 0 else np.abs(grouped).max(axis=1, keepdims=True)
        scales = np.where(peaks > 0, peaks, 1.0) / levels
        rounded = np.clip(np.rint(grouped / scales), -levels, levels) * scales
        _add(sums, grouped.reshape(-1), rounded.reshape(-1))
    bits = 8 if levels == 127 else 4
    scale_count = 1 if group < 0 else rows.shape[0] * (rows.shape[1] + padding) // width
    sums.size_bytes = (rows.size * bits + 7) // 8 + scale_count * _SCALE_BYTES
    return sums


def _add(sums: _Sums, values: npt.NDArray[np.float64], rounded: npt.NDArray[np.float64]) -> None:
    distance = rounded - values
    sums.square += float(np.dot(values, values))
    sums.error += float(np.dot(distance, distance))
    sums.product += float(np.dot(values, rounded))
    sums.rounded_square += float(np.dot(rounded, rounded))
    sums.maximum = max(sums.maximum, float(np.abs(distance).max()))


def _error(scheme: pb.QuantizationScheme.ValueType, sums: _Sums) -> pb.QuantizationError:
    relative = math.sqrt(sums.error / sums.square) if sums.square else 0.0
    lengths = math.sqrt(sums.square) * math.sqrt(sums.rounded_square)
    return pb.QuantizationError(
        scheme=scheme,
        size_bytes=sums.size_bytes,
        relative_error=relative,
        signal_to_noise_db=-20 * math.log10(relative) if relative else math.inf,
        cosine_similarity=sums.product / lengths if lengths else 1.0,
        maximum_error=sums.maximum,
    )


def _judge(tensors: Sequence[pb.TensorQuantization]) -> Iterator[pb.InspectionFinding]:
    if not tensors:
        return
    typical = median(item.errors[0].relative_error for item in tensors)
    for item in tensors:
        error = item.errors[0]
        if typical and error.relative_error > _SENSITIVE * typical:
            yield findings.warning(
                "quantization-sensitive",
                f"{item.tensor.path}: {item.tensor.name}",
                f"its relative error of {error.relative_error:.3g} is {error.relative_error / typical:.1f} times "
                "the typical one",
                "leave it unquantised, or give it a scale for smaller blocks",
            )
