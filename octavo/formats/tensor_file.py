"""safetensors files: strict reading of the header, writing with offsets that an ONNX graph can point into.

Knows nothing of models. The format is an 8-byte little-endian header length, a JSON header, then the tensors
without holes (github.com/huggingface/safetensors, "Format"). Written here rather than through the library
because model.onnx refers to tensors by absolute byte offset.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NoReturn

import numpy as np
import numpy.typing as npt

from octavo.errors import InvalidArgument, NotFound
from octavo.v1.errors_pb2 import Reason

# The reference reader refuses larger headers, too.
HEADER_LIMIT_BYTES: Final = 100_000_000
# A cache line: with all sizes multiples of it every tensor starts on one, since the format allows no holes.
ALIGNMENT_BYTES: Final = 64

_NUMPY_NAMES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "F64": "float64",
        "F32": "float32",
        "F16": "float16",
        "BF16": "bfloat16",
        "F8_E4M3": "float8_e4m3fn",
        "F8_E5M2": "float8_e5m2",
        "I64": "int64",
        "I32": "int32",
        "I16": "int16",
        "I8": "int8",
        "U64": "uint64",
        "U32": "uint32",
        "U16": "uint16",
        "U8": "uint8",
        "BOOL": "bool",
    }
)
_DTYPE_NAMES: Final[Mapping[str, str]] = MappingProxyType({name: code for code, name in _NUMPY_NAMES.items()})
_SIZES: Final[Mapping[str, int]] = MappingProxyType(
    {code: 1 if code == "BOOL" or code.startswith("F8") else int(code.lstrip("BFIU")) // 8 for code in _NUMPY_NAMES}
)


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies: `offset` is counted from the start of the file, in bytes."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    size_bytes: int


@dataclass(frozen=True)
class TensorHeader:
    """The table of contents of one file."""

    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]


def write_safetensors(
    path: Path, tensors: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, str] | None = None
) -> TensorHeader:
    """Write all tensors or nothing: a neighbour file is filled, synced and renamed over `path`.

    Tensors whose size is a multiple of 64 bytes come first, so that each of them starts on a cache line.
    """
    arrays = _ordered(tensors)
    prefix, header = _layout(arrays, metadata or {})
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(prefix)
        for array in arrays.values():
            file.write(_bytes(array))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    return header


def digest_safetensors(tensors: Mapping[str, npt.NDArray[Any]]) -> str:
    """The `sha256:…` of the file that `write_safetensors` would write of them."""
    arrays = _ordered(tensors)
    digest = hashlib.sha256(_layout(arrays, {})[0])
    for array in arrays.values():
        digest.update(_bytes(array))
    return f"sha256:{digest.hexdigest()}"


def read_header(path: Path) -> TensorHeader:
    """The validated header; InvalidArgument where file and header disagree by a single byte."""
    try:
        with path.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size_bytes < 8 or length > min(HEADER_LIMIT_BYTES, size_bytes - 8):
                _refuse(
                    path,
                    f"the header length {length} does not fit into {size_bytes} bytes; the file is cut off",
                )
            return _parse(path, file.read(length), start=8 + length, size_bytes=size_bytes)
    except FileNotFoundError as error:
        raise NotFound(Reason.REASON_INVALID_TENSOR_FILE, f"there is no file {path.name}") from error


def read_tensor(path: Path, entry: TensorEntry) -> npt.NDArray[Any]:
    """One tensor, memory-mapped and read-only. bfloat16 and float8 need ml_dtypes imported beforehand."""
    if not entry.size_bytes:
        return np.empty(entry.shape, np.dtype(_NUMPY_NAMES[entry.dtype]))
    dtype = np.dtype(_NUMPY_NAMES[entry.dtype])
    return np.memmap(path, dtype, "r", offset=entry.offset, shape=entry.shape)


def _ordered(tensors: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    order = sorted(arrays, key=lambda name: (arrays[name].nbytes % ALIGNMENT_BYTES > 0, -arrays[name].itemsize))
    return {name: arrays[name] for name in order}


def _bytes(array: npt.NDArray[Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _layout(arrays: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, str]) -> tuple[bytes, TensorHeader]:
    table: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, array in arrays.items():
        dtype = _DTYPE_NAMES.get(array.dtype.name)
        if dtype is None or name == "__metadata__" or array.dtype.byteorder == ">":
            raise InvalidArgument.field(
                f"tensors[{name!r}]",
                f"{array.dtype.str} under this name cannot be stored; use one of {', '.join(_DTYPE_NAMES)}",
                reason=Reason.REASON_INVALID_TENSOR_FILE,
            )
        table[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [end, end + array.nbytes]}
        end += array.nbytes
    text = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT_BYTES)
    start = 8 + len(text)
    entries = {
        name: TensorEntry(row["dtype"], tuple(row["shape"]), start + row["data_offsets"][0], arrays[name].nbytes)
        for name, row in table.items()
        if name != "__metadata__"
    }
    return len(text).to_bytes(8, "little") + text, TensorHeader(entries, dict(metadata))


def _parse(path: Path, text: bytes, *, start: int, size_bytes: int) -> TensorHeader:
    try:
        table = json.loads(text, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise _error(path, f"the header is not JSON: {error}") from error
    if not isinstance(table, dict) or not text.startswith(b"{"):
        _refuse(path, "the header is not a JSON object")
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        _refuse(path, "__metadata__ is not a map from string to string")
    entries = {name: _entry(path, name, row, start) for name, row in table.items()}
    position = start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].offset, item[1].size_bytes)):
        if entry.offset != position:
            _refuse(
                path,
                f"tensor {name!r} starts at byte {entry.offset}, not at {position}: a hole or an overlap",
            )
        position += entry.size_bytes
    if position != size_bytes:
        _refuse(path, f"the tensors end at byte {position}, the file at {size_bytes}")
    return TensorHeader(entries, metadata)


def _entry(path: Path, name: str, row: Any, start: int) -> TensorEntry:
    if not isinstance(row, dict) or set(row) != {"dtype", "shape", "data_offsets"}:
        _refuse(path, f"tensor {name!r} needs dtype, shape and data_offsets, and nothing else")
    dtype, shape, span = row["dtype"], row["shape"], row["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _SIZES:
        _refuse(path, f"tensor {name!r} has the unknown dtype {dtype!r}; known are {', '.join(_SIZES)}")
    if not _are_sizes(shape) or not _are_sizes(span) or len(span) != 2 or len(shape) > 32:
        _refuse(path, f"tensor {name!r} has a shape or offsets that are not lists of sizes")
    size_bytes = math.prod(shape) * _SIZES[dtype]
    if span[1] - span[0] != size_bytes:
        _refuse(path, f"tensor {name!r} spans {span[1] - span[0]} bytes, its dtype and shape need {size_bytes}")
    return TensorEntry(dtype, tuple(shape), start + span[0], size_bytes)


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 63 for item in value)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name occurs twice")
    return table


def _error(path: Path, text: str) -> InvalidArgument:
    return InvalidArgument.field(path.name, text, reason=Reason.REASON_INVALID_TENSOR_FILE)


def _refuse(path: Path, text: str) -> NoReturn:
    raise _error(path, text)
