"""One scalar from JSON or from a text of the URL, by the rules of ProtoJSON; refusals say what would be right."""

import base64
import binascii
import difflib
import math
import re
from collections.abc import Callable, Iterable
from typing import Any

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor

from gateway.contract import enum_of

Convert = Callable[[Any], Any]

FLOAT32_LIMIT = 3.4028235677973366e38  # (2 - 2**-24) * 2**127: what is smaller rounds to a finite float32
_INTEGER = re.compile(r"-?[0-9]{1,20}")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,5})?")
_LONGEST_KEY = 64  # near matches are searched for keys a person may have typed, not for a megabyte


class Refused(ValueError):
    """A value that its field may not have."""


def near(name: str, known: Iterable[str]) -> list[str]:
    """Up to three of the known names that someone who wrote `name` may have meant, best first."""
    if len(name) > _LONGEST_KEY:
        return []
    plain = {_plain(candidate): candidate for candidate in known}
    return [plain[match] for match in difflib.get_close_matches(_plain(name), plain, n=3, cutoff=0.6)]


def _plain(name: str) -> str:
    return name.replace("_", "").lower()


def shown(value: Any) -> str:
    """A value as an error message quotes it: short, whatever came in."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def json_converter(field: FieldDescriptor) -> Convert:
    """What turns a JSON value into a value of this scalar field, or raises Refused."""
    if field.type in _INTEGERS:
        return _integers(*_INTEGERS[field.type])
    if field.type == FieldDescriptor.TYPE_ENUM:
        return _enums(enum_of(field))
    return _CONVERTERS[field.type]


def text_converter(field: FieldDescriptor) -> Callable[[str], Any]:
    """The same for a text of the URL, where `true` is a bool and `3` is a number."""
    if field.type == FieldDescriptor.TYPE_BOOL:
        return _bool_of_text
    if field.type == FieldDescriptor.TYPE_ENUM:
        convert = _enums(enum_of(field))
        return lambda text: convert(int(text) if _INTEGER.fullmatch(text) else text)
    return json_converter(field)


def _integers(lowest: int, highest: int) -> Convert:
    def convert(value: Any) -> int:
        if isinstance(value, str) and _INTEGER.fullmatch(value):
            number = int(value)
        elif isinstance(value, int) and not isinstance(value, bool):
            number = value
        elif isinstance(value, float) and value.is_integer():
            number = int(value)
        else:
            raise Refused(f"{shown(value)} is not an integer")
        if not lowest <= number <= highest:
            raise Refused(f"{shown(number)} is out of range; {lowest} to {highest} is allowed")
        return number

    return convert


def _enums(enum: EnumDescriptor) -> Convert:
    numbers = {value.name: value.number for value in enum.values}
    number = _integers(-(2**31), 2**31 - 1)

    def convert(value: Any) -> Any:
        if isinstance(value, str):
            if value in numbers:
                return numbers[value]
            meant = near(value, numbers) or list(numbers)[:8]
            raise Refused(f"{shown(value)} is no {enum.name}; try {', '.join(meant)}")
        return number(value)

    return convert


def _double(value: Any) -> float:
    if isinstance(value, str):
        if value in {"NaN", "Infinity", "-Infinity"}:
            return float(value)
        if _NUMBER.fullmatch(value):
            value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Refused(f"{shown(value)} is not a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if math.isinf(number):
        raise Refused(f"{shown(value)} is beyond a double; write 'Infinity' if infinity is meant")
    return number


def _float(value: Any) -> float:
    number = _double(value)
    if math.isfinite(number) and abs(number) >= FLOAT32_LIMIT:
        raise Refused(f"{shown(value)} is beyond a float; ±3.4028234e38 is the largest")
    return number


def _bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise Refused(f"{shown(value)} is not true or false")


def _bool_of_text(text: str) -> bool:
    if text in {"true", "false"}:
        return text == "true"
    raise Refused(f"{shown(text)} is not true or false")


def _string(value: Any) -> str:
    if isinstance(value, str):
        return value
    raise Refused(f"{shown(value)} is not a string")


def _bytes(value: Any) -> bytes:
    """Standard or URL-safe alphabet, padded or not."""
    if isinstance(value, str):
        text = value.rstrip("=").replace("-", "+").replace("_", "/")
        try:
            return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
        except (binascii.Error, ValueError):
            pass
    raise Refused(f"{shown(value)} is not base64")


_INTEGERS: dict[int, tuple[int, int]] = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_SINT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_SFIXED32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_FIXED32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_SINT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_SFIXED64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.TYPE_FIXED64: (0, 2**64 - 1),
}
_CONVERTERS: dict[int, Convert] = {
    FieldDescriptor.TYPE_DOUBLE: _double,
    FieldDescriptor.TYPE_FLOAT: _float,
    FieldDescriptor.TYPE_BOOL: _bool,
    FieldDescriptor.TYPE_STRING: _string,
    FieldDescriptor.TYPE_BYTES: _bytes,
}
