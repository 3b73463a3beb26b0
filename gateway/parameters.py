"""Fields from the URL: path variables and query parameters into a request message.

A key is a field path in proto names or JSON names: `page_size`, `filter.state`, `labels[team]`. Unknown keys
are mistakes, never ignored: a `pagesize` that silently does nothing costs more than an error.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import unquote_to_bytes

import orjson
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from gateway.contract import inner, is_map
from gateway.json_reader import JsonReader, unknown
from gateway.scalars import Refused, shown, text_converter
from gateway.violations import Violations

# Google's system parameters: an RPC's own field of that name goes first, else they change nothing here.
SYSTEM_PARAMETERS = frozenset({"$alt", "alt", "key", "api_key", "access_token", "prettyPrint", "fields", "callback"})
_MAP_KEY = re.compile(r"(?P<path>[^\[\]]+)\[(?P<key>[^\[\]]*)\]")
_MOST = 1000  # parameters in one query

_JSON_TEXTS = frozenset(f"google.protobuf.{kind}" for kind in ("Struct", "Value", "ListValue"))
_TEXTS = frozenset(
    f"google.protobuf.{kind}"
    for kind in (
        *("Timestamp", "Duration", "FieldMask", "StringValue", "BytesValue", "Int64Value", "UInt64Value"),
        *("Int32Value", "UInt32Value", "DoubleValue", "FloatValue"),
    )
)
_BOOL_VALUE = "google.protobuf.BoolValue"

Query = list[tuple[str, str]]


class QueryError(ValueError):
    """The query string is not percent-encoded UTF-8, or has too many parameters."""


def parse_query(raw: bytes) -> Query:
    """Keys and values in their order; `+` is a space, as browsers send it."""
    if not raw:
        return []
    pairs = [pair for pair in raw.split(b"&") if pair]
    if len(pairs) > _MOST:
        raise QueryError(f"the query has {len(pairs)} parameters; {_MOST} is the limit, use a body")
    try:
        return [(_text(key), _text(value)) for key, _, value in (pair.partition(b"=") for pair in pairs)]
    except UnicodeDecodeError:
        raise QueryError("the query is not UTF-8 after percent-decoding") from None


def _text(raw: bytes) -> str:
    return unquote_to_bytes(raw.replace(b"+", b" ")).decode("utf-8")


class PathField:
    """A path variable's field: singular and scalar, possibly inside other messages."""

    def __init__(self, descriptor: Descriptor, field_path: str) -> None:
        """Raises ValueError when the path leads to no field, or to one that a path cannot hold."""
        self.name = field_path
        *parents, leaf = field_path.split(".")
        for name in parents:
            parent = _singular(descriptor, name, field_path)
            if parent.message_type is None:
                raise ValueError(f"{field_path!r} goes through a scalar")
            descriptor = parent.message_type
        field = _singular(descriptor, leaf, field_path)
        if field.message_type is not None:
            raise ValueError(f"{field_path!r} is a message; a path variable holds a scalar")
        self._parents = parents
        self._leaf = leaf
        self._convert: Callable[[str], Any] = text_converter(field)

    def put(self, message: Any, text: str, violations: Violations) -> None:
        """Sets the field; a body that says something else is a mistake, not overruled in silence."""
        for name in self._parents:
            message = getattr(message, name)
        try:
            value = self._convert(text)
        except Refused as refused:
            violations.add(self.name, str(refused))
            return
        stated = getattr(message, self._leaf)
        if stated and stated != value:
            violations.add(
                self.name, f"the body says {shown(stated)}, the path says {shown(value)}; drop it from the body"
            )
        setattr(message, self._leaf, value)


def _singular(descriptor: Descriptor, name: str, field_path: str) -> FieldDescriptor:
    field: FieldDescriptor | None = descriptor.fields_by_name.get(name)
    if field is None:
        raise ValueError(f"{field_path!r}: {descriptor.full_name} has no field {name!r}")
    if field.is_repeated:
        raise ValueError(f"{field_path!r}: {name!r} is repeated")
    return field


class QueryFields:
    """Sets the fields of one kind of request from a query."""

    def __init__(self, descriptor: Descriptor, reader: JsonReader, *, taken: Sequence[str]) -> None:
        """`taken` are the field paths that the path or the body holds already."""
        self._descriptor = descriptor
        self._reader = reader
        self._taken = frozenset(taken)
        self._names = {name for field in descriptor.fields for name in (field.name, field.json_name)}

    def is_field(self, key: str) -> bool:
        """Whether a key is meant for the request, not for the gateway."""
        return key in self._names or key not in SYSTEM_PARAMETERS

    def put(self, message: Message, query: Query, violations: Violations) -> None:
        """Sets every parameter; each wrong one is noted with its key."""
        seen: set[str] = set()
        for key, text in query:
            if violations.is_full:
                return
            if not self.is_field(key):
                continue
            try:
                self._put(message, key, text, seen, violations)
            except Refused as refused:
                violations.add(key[:80], str(refused))

    def _put(self, message: Any, key: str, text: str, seen: set[str], violations: Violations) -> None:
        mapped = _MAP_KEY.fullmatch(key)
        fields = self._resolve(mapped["path"] if mapped else key, violations, key)
        if not fields:
            return
        path = ".".join(field.name for field in fields)
        if any(path == taken or path.startswith(f"{taken}.") for taken in self._taken):
            raise Refused("the path or the body of this call holds this field already; drop the parameter")
        for field in fields[:-1]:
            _check_oneof(message, field)
            message = getattr(message, field.name)
        leaf = fields[-1]
        if mapped or is_map(leaf):
            self._put_map(message, leaf, mapped["key"] if mapped else None, text)
            return
        if not leaf.is_repeated:
            if path in seen:
                raise Refused("too many values: the field takes one")
            seen.add(path)
        _check_oneof(message, leaf)
        self._put_leaf(message, leaf, text, path, violations)

    def _resolve(self, path: str, violations: Violations, key: str) -> list[FieldDescriptor]:
        """The fields along a path; empty, with a violation noted, when there is no such field."""
        descriptor: Descriptor | None = self._descriptor
        fields: list[FieldDescriptor] = []
        for name in path.split("."):
            if descriptor is None or (fields and fields[-1].is_repeated):
                raise Refused(f"{fields[-1].name!r} has no fields that a query parameter could set; use a body")
            field = self._reader.field(descriptor, name)
            if field is None:
                violations.add(key[:80], unknown(name, descriptor), is_unknown=True)
                return []
            fields.append(field)
            descriptor = field.message_type
        return fields

    def _put_map(self, message: Any, field: FieldDescriptor, key: str | None, text: str) -> None:
        if key is None or not is_map(field):
            raise Refused(f"a map is written {field.json_name}[key]=value" if key is None else "this is no map")
        value_field = inner(field).fields_by_name["value"]
        if value_field.message_type is not None:
            raise Refused("this map holds messages; use a body")
        convert_key = text_converter(inner(field).fields_by_name["key"])
        entries, converted = getattr(message, field.name), convert_key(key)
        if converted in entries:
            raise Refused("too many values: the key is given twice")
        entries[converted] = text_converter(value_field)(text)

    def _put_leaf(self, message: Any, field: FieldDescriptor, text: str, path: str, violations: Violations) -> None:
        if field.message_type is None:
            value = text_converter(field)(text)
            if field.is_repeated:
                getattr(message, field.name).append(value)
            else:
                setattr(message, field.name, value)
            return
        value = _json_of_text(field.message_type.full_name, text)
        target = getattr(message, field.name)
        if field.is_repeated:
            target = target.add()
        else:
            target.SetInParent()
        self._reader.read(value, target, violations, path)


def _json_of_text(type_name: str, text: str) -> Any:
    if type_name in _TEXTS:
        return text
    if type_name == _BOOL_VALUE and text in {"true", "false"}:
        return text == "true"
    if type_name in _JSON_TEXTS or type_name == _BOOL_VALUE:
        try:
            return orjson.loads(text)
        except orjson.JSONDecodeError:
            raise Refused(f"{shown(text)} is not JSON") from None
    raise Refused("a message: name one of its fields with a dot, or use a body")


def _check_oneof(message: Any, field: FieldDescriptor) -> None:
    oneof = field.containing_oneof
    if oneof is None or len(oneof.fields) == 1:
        return
    member = message.WhichOneof(oneof.name)
    if member is not None and member != field.name:
        raise Refused(f"field already set for oneof {oneof.name!r}: {member!r}; give one of them")
