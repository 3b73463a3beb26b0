"""`--set KEY=VALUE`: sets any field of a message by its path, or by its last word where only one field has it.

Values read as the field's type: numbers, true or false, `60s` for durations, `gpt2` for enum values, commas in lists.
"""

import difflib
from collections.abc import Iterator, Sequence
from typing import Any

import typer
from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

Path = tuple[FieldDescriptor, ...]

_WELL_KNOWN = "google.protobuf."
_BOOLEANS = {"true": True, "yes": True, "false": False, "no": False}
_WHOLE = {FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64}
_WHOLE |= {FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64}
_REAL = {FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT}


def apply(message: Message, settings: Sequence[str]) -> list[str]:
    """Sets each `key=value`; returns their paths. Raises typer.BadParameter that says what would be right."""
    touched = []
    for setting in settings:
        key, separator, value = setting.partition("=")
        if not separator:
            raise typer.BadParameter(f"--set {setting}: write KEY=VALUE, such as --set dropout=0.1")
        path = _find(message.DESCRIPTOR, key.strip())
        # Space at the ends of a text, such as a template, is part of it.
        is_text = path[-1].cpp_type == FieldDescriptor.CPPTYPE_STRING and not path[-1].is_repeated
        _set(message, path, value if is_text else value.strip())
        touched.append(dotted(path))
    return touched


def paths(descriptor: Any, above: Path = ()) -> Iterator[Path]:
    """Every field that takes a value, messages within messages followed."""
    for field in descriptor.fields:
        inner = field.message_type
        if inner and not field.is_repeated and not inner.full_name.startswith(_WELL_KNOWN):
            yield from paths(inner, (*above, field))
        else:
            yield (*above, field)


def dotted(path: Path) -> str:
    """`optimizer.learning_rate`."""
    return ".".join(field.name for field in path)


def _find(descriptor: Any, key: str) -> Path:
    by_name = {dotted(path): path for path in paths(descriptor)}
    if key in by_name:
        return by_name[key]
    candidates = [name for name in by_name if name.endswith(f".{key}")]
    if len(candidates) == 1:
        return by_name[candidates[0]]
    near = candidates or difflib.get_close_matches(key, by_name, n=4, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(sorted(by_name))}"
    raise typer.BadParameter(f"--set {key}: there is no such field; {hint}")


def _set(message: Message, path: Path, text: str) -> None:
    content: Any = _value(path[-1], text)
    for field in reversed(path):
        content = {field.name: content}
    try:
        json_format.ParseDict(content, message)
    except (json_format.ParseError, ValueError) as error:
        raise typer.BadParameter(f"--set {dotted(path)}={text}: {error}") from None


def _value(field: FieldDescriptor, text: str) -> object:
    if field.is_repeated:
        return [single(field, part.strip()) for part in text.split(",") if part.strip()]
    return single(field, text)


def single(field: FieldDescriptor, text: str) -> object:
    """One value from its text, as the field's type has it. Raises typer.BadParameter."""
    try:
        if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
            return _BOOLEANS[text.lower()]
        if field.cpp_type in _WHOLE:
            return int(text.replace("_", ""))
        if field.cpp_type in _REAL:
            return float(text)
    except (ValueError, KeyError):
        raise typer.BadParameter(f"--set {field.name}={text}: {_EXPECTED[field.cpp_type]} is needed") from None
    return enum_value(field, text) if field.enum_type else text


_EXPECTED = dict.fromkeys(_WHOLE, "a whole number") | dict.fromkeys(_REAL, "a number")
_EXPECTED |= {FieldDescriptor.CPPTYPE_BOOL: "true or false"}


def enum_value(field: FieldDescriptor, text: str) -> str:
    """The value's full name for its last words: `gpt2` for MODEL_FAMILY_GPT2. Raises typer.BadParameter."""
    names = [value.name for value in field.enum_type.values] if field.enum_type else []
    prefix = names[0].removesuffix("UNSPECIFIED")
    wanted = text.upper().replace("-", "_")
    for name in names:
        if name.removeprefix(prefix) == wanted or name == wanted:
            return name
    words = ", ".join(name.removeprefix(prefix).lower() for name in names[1:])
    raise typer.BadParameter(f"{field.name} {text!r} is none of {words}")
