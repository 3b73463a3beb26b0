"""Walks a protobuf message by ranges, without loading it: which fields it has, and where each lies.

Knows nothing of any message's meaning. The encoding: protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from services.inspector.reader import Reader, malformed

VARINT: Final = 0
FIXED64: Final = 1
BYTES: Final = 2
FIXED32: Final = 5


@dataclass(frozen=True, slots=True)
class Field:
    """One field: `value` of a varint or fixed number; `offset` and `length` of the payload, in bytes."""

    number: int
    kind: int
    value: int
    offset: int
    length: int

    @property
    def end(self) -> int:
        return self.offset + self.length


def fields(reader: Reader, start: int, end: int) -> Iterator[Field]:
    """The fields of the message in [start, end), in stored order; InvalidArgument when it is no message."""
    position = start
    while position < end:
        key, position = _varint(reader, position, end)
        number, kind = key >> 3, key & 7
        if not 1 <= number < 1 << 29:
            raise malformed(reader.label, f"field number {number} before byte {position} is not allowed")
        field = _field(reader, number, kind, position, end)
        if field.end > end:
            raise malformed(reader.label, f"field {number} at byte {position} ends at {field.end}, beyond {end}")
        yield field
        position = field.end


def _field(reader: Reader, number: int, kind: int, position: int, end: int) -> Field:
    if kind == VARINT:
        value, after = _varint(reader, position, end)
        return Field(number, kind, value, position, after - position)
    if kind == BYTES:
        length, after = _varint(reader, position, end)
        return Field(number, kind, 0, after, length)
    if kind in (FIXED64, FIXED32):
        size = 8 if kind == FIXED64 else 4
        if position + size > end:
            raise malformed(reader.label, f"field {number} at byte {position} is cut off")
        return Field(number, kind, int.from_bytes(reader.read(position, size), "little"), position, size)
    raise malformed(reader.label, f"field {number} before byte {position} has the unknown wire type {kind}")


def packed_varints(data: bytes, label: str) -> list[int]:
    """The numbers of a packed repeated varint field."""
    values, value, shift = [], 0, 0
    for byte in data:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            values.append(value & 0xFFFF_FFFF_FFFF_FFFF)
            value, shift = 0, 0
        elif shift > 63:
            raise malformed(label, "a packed number is longer than 10 bytes")
    if shift:
        raise malformed(label, "a packed number is cut off")
    return values


def _varint(reader: Reader, position: int, end: int) -> tuple[int, int]:
    """The number at `position` and the position after it."""
    data = reader.read(position, min(10, end - position))
    value = 0
    for index, byte in enumerate(data):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, position + index + 1
    raise malformed(reader.label, f"the number at byte {position} does not end")
