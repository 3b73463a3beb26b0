"""The header of a safetensors file, read strictly from a range reader: its tensors and its metadata.

Reads 8 bytes and the header, never a tensor. The rules are those of the reference reader (safetensors'
`SafeTensors::read_metadata`) and, beyond it, no duplicate names: two readers may not see two files in one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from services.inspector.element_types import SAFETENSORS, ElementType
from services.inspector.reader import Reader, malformed

# huggingface_hub parses no larger header; the table of a hundred thousand tensors has half that size.
HEADER_LIMIT_BYTES: Final = 25_000_000
# numpy and torch stop at 64 dimensions.
_RANK_LIMIT: Final = 64


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor: `offset` in bytes from the start of the file; shape outermost first."""

    name: str
    type: ElementType
    shape: tuple[int, ...]
    offset: int
    size_bytes: int

    @property
    def element_count(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """The tensors in the order of their bytes, and the text the file carries about itself."""

    tensors: tuple[StoredTensor, ...]
    metadata: Mapping[str, str]


def read_header(reader: Reader) -> SafetensorsHeader:
    """The header; InvalidArgument says which rule the file breaks, and where."""
    if reader.size_bytes < 8:
        raise malformed(reader.label, f"{reader.size_bytes} bytes are too few for a safetensors file")
    length = int.from_bytes(reader.read(0, 8), "little")
    if length > min(HEADER_LIMIT_BYTES, reader.size_bytes - 8):
        raise malformed(
            reader.label,
            f"its header length is {length} bytes; at most {HEADER_LIMIT_BYTES} are read, and the file has "
            f"{reader.size_bytes - 8} beside the length",
        )
    table = _table(reader.label, reader.read(8, length))
    metadata = _metadata(reader.label, table.pop("__metadata__", {}))
    tensors = tuple(
        sorted(
            (_tensor(reader.label, name, row, start=8 + length) for name, row in table.items()),
            key=lambda tensor: (tensor.offset, tensor.size_bytes),
        )
    )
    _refuse_gaps(reader, tensors, start=8 + length)
    return SafetensorsHeader(tensors, metadata)


def _table(label: str, text: bytes) -> dict[str, Any]:
    if not text.startswith(b"{"):
        raise malformed(label, "its header does not begin with an opening brace")
    try:
        table = json.loads(text.decode(), object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise malformed(label, f"its header is not plain JSON: {error}") from error
    if not isinstance(table, dict):
        raise malformed(label, "its header is not a JSON object")
    return table


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"the name {twice[:200]!r} occurs twice")
    return table


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


def _metadata(label: str, value: Any) -> Mapping[str, str]:
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise malformed(label, "its __metadata__ is not a map from text to text")
    return value


def _tensor(label: str, name: str, row: Any, *, start: int) -> StoredTensor:
    shown = repr(name[:200])
    if not isinstance(row, dict) or row.keys() != {"dtype", "shape", "data_offsets"}:
        raise malformed(label, f"tensor {shown} needs dtype, shape and data_offsets, and nothing else")
    dtype, shape, span = row["dtype"], row["shape"], row["data_offsets"]
    kind = SAFETENSORS.get(dtype) if isinstance(dtype, str) else None
    if kind is None:
        raise malformed(label, f"tensor {shown} has the dtype {str(dtype)[:40]!r}; known are {', '.join(SAFETENSORS)}")
    if not _are_sizes(shape) or len(shape) > _RANK_LIMIT:
        raise malformed(label, f"tensor {shown} has a shape that is not a list of up to {_RANK_LIMIT} sizes")
    if not _are_sizes(span) or len(span) != 2 or span[0] > span[1]:
        raise malformed(label, f"tensor {shown} has data_offsets that are not a begin and an end")
    bits = math.prod(shape) * kind.bits
    if bits != (span[1] - span[0]) * 8:
        raise malformed(label, f"tensor {shown} spans {span[1] - span[0]} bytes, its dtype and shape need {bits / 8:g}")
    return StoredTensor(name, kind, tuple(shape), start + span[0], span[1] - span[0])


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 63 for item in value)


def _refuse_gaps(reader: Reader, tensors: tuple[StoredTensor, ...], *, start: int) -> None:
    """Tensors must cover the rest of the file without overlap or hole: nothing may hide between them."""
    position = start
    for tensor in tensors:
        if tensor.offset != position:
            kind = "an overlap" if tensor.offset < position else "a hole"
            raise malformed(
                reader.label,
                f"tensor {tensor.name[:200]!r} begins at byte {tensor.offset}, not at {position}: {kind}",
            )
        position += tensor.size_bytes
    if position != reader.size_bytes:
        raise malformed(reader.label, f"its tensors end at byte {position}, the file at byte {reader.size_bytes}")
