"""JSON Schemas (2020-12, as in OpenAPI 3.1) of messages and enums. Knows nothing of paths or HTTP."""

import re
from collections.abc import Collection
from typing import Any

from google.api import field_behavior_pb2
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from gateway.contract import Contract, enum_of

Schema = dict[str, Any]

_INT64: Schema = {"type": ["string", "integer"], "format": "int64", "pattern": "^-?[0-9]+$"}
_UINT64: Schema = {"type": ["string", "integer"], "format": "uint64", "pattern": "^[0-9]+$"}
_NUMBER_TYPES = ["number", "string"]  # NaN and the infinities are strings
_SCALARS: dict[int, Schema] = {
    FieldDescriptor.TYPE_STRING: {"type": "string"},
    FieldDescriptor.TYPE_BYTES: {"type": "string", "contentEncoding": "base64"},
    FieldDescriptor.TYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.TYPE_DOUBLE: {"type": _NUMBER_TYPES, "format": "double"},
    FieldDescriptor.TYPE_FLOAT: {"type": _NUMBER_TYPES, "format": "float"},
    FieldDescriptor.TYPE_INT32: {"type": "integer", "format": "int32"},
    FieldDescriptor.TYPE_SINT32: {"type": "integer", "format": "int32"},
    FieldDescriptor.TYPE_SFIXED32: {"type": "integer", "format": "int32"},
    FieldDescriptor.TYPE_UINT32: {"type": "integer", "format": "uint32", "minimum": 0},
    FieldDescriptor.TYPE_FIXED32: {"type": "integer", "format": "uint32", "minimum": 0},
    FieldDescriptor.TYPE_INT64: _INT64,
    FieldDescriptor.TYPE_SINT64: _INT64,
    FieldDescriptor.TYPE_SFIXED64: _INT64,
    FieldDescriptor.TYPE_UINT64: _UINT64,
    FieldDescriptor.TYPE_FIXED64: _UINT64,
}
_WELL_KNOWN: dict[str, Schema] = {
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time", "examples": ["2026-05-17T09:30:00Z"]},
    "google.protobuf.Duration": {"type": "string", "pattern": r"^-?[0-9]+(\.[0-9]{1,9})?s$", "examples": ["3.5s"]},
    "google.protobuf.FieldMask": {"type": "string", "examples": ["displayName,labels"]},
    "google.protobuf.Empty": {"type": "object"},
    "google.protobuf.Struct": {"type": "object"},
    "google.protobuf.Value": {},
    "google.protobuf.ListValue": {"type": "array", "items": {}},
    "google.protobuf.Any": {
        "type": "object",
        "properties": {"@type": {"type": "string", "description": "The type of what is in here."}},
        "required": ["@type"],
    },
    "google.api.HttpBody": {"type": "string", "format": "binary"},
}
_WRAPPERS = {
    "google.protobuf.DoubleValue": FieldDescriptor.TYPE_DOUBLE,
    "google.protobuf.FloatValue": FieldDescriptor.TYPE_FLOAT,
    "google.protobuf.Int64Value": FieldDescriptor.TYPE_INT64,
    "google.protobuf.UInt64Value": FieldDescriptor.TYPE_UINT64,
    "google.protobuf.Int32Value": FieldDescriptor.TYPE_INT32,
    "google.protobuf.UInt32Value": FieldDescriptor.TYPE_UINT32,
    "google.protobuf.BoolValue": FieldDescriptor.TYPE_BOOL,
    "google.protobuf.StringValue": FieldDescriptor.TYPE_STRING,
    "google.protobuf.BytesValue": FieldDescriptor.TYPE_BYTES,
}
_WRAPPED_LINE = re.compile(r"(?<!\n)\n(?!\n|[-*] |\s|\d+\. )")


class Schemas:
    """The component schemas of a document: each message and enum that something refers to, once."""

    def __init__(self, contract: Contract) -> None:
        self._contract = contract
        self.components: dict[str, Schema] = {}

    def message(self, descriptor: Descriptor) -> Schema:
        """A reference to a message's schema; well-known types have theirs in place."""
        name = descriptor.full_name
        if name in _WELL_KNOWN:
            return dict(_WELL_KNOWN[name])
        if name in _WRAPPERS:
            return dict(_SCALARS[_WRAPPERS[name]])
        if name not in self.components:
            self.components[name] = {}  # a message may contain itself
            self.components[name].update(self.object(descriptor))
        return {"$ref": f"#/components/schemas/{name}"}

    def object(self, descriptor: Descriptor, *, without: Collection[str] = (), is_partial: bool = False) -> Schema:
        """A message's schema in place, less some fields; a partial one requires none."""
        fields = [field for field in descriptor.fields if field.name not in without]
        schema: Schema = {"type": "object"}
        description = self._description(descriptor.full_name, self._oneofs(descriptor))
        if description:
            schema["description"] = description
        if fields:
            schema["properties"] = {field.json_name: self.field(field) for field in fields}
        choices = [[field.json_name for field in oneof.fields] for oneof in descriptor.oneofs if len(oneof.fields) > 1]
        if choices:
            schema["x-oneofs"] = choices
        required = [field.json_name for field in fields if is_required(field)]
        if required and not is_partial:
            schema["required"] = required
        return schema

    def field(self, field: FieldDescriptor) -> Schema:
        """A field's schema with its description and behaviour."""
        schema = self._repeated(field) if field.is_repeated else self._element(field)
        description = self.comment(field.full_name)
        if description:
            schema["description"] = description
        behaviour = _behaviour(field)
        if field_behavior_pb2.OUTPUT_ONLY in behaviour:
            schema["readOnly"] = True
        if field_behavior_pb2.INPUT_ONLY in behaviour:
            schema["writeOnly"] = True
        if field_behavior_pb2.IMMUTABLE in behaviour:
            schema["x-immutable"] = True
        return schema

    def comment(self, full_name: str) -> str:
        """What the proto says of a declaration, its wrapped lines joined."""
        return _WRAPPED_LINE.sub(" ", self._contract.comment(full_name))

    def _repeated(self, field: FieldDescriptor) -> Schema:
        message = field.message_type
        if message is not None and message.GetOptions().map_entry:
            return {"type": "object", "additionalProperties": self._element(message.fields_by_name["value"])}
        return {"type": "array", "items": self._element(field)}

    def _element(self, field: FieldDescriptor) -> Schema:
        if field.message_type is not None:
            return self.message(field.message_type)
        if field.enum_type is not None:
            return self._enum(enum_of(field))
        return dict(_SCALARS[field.type])

    def _enum(self, enum: EnumDescriptor) -> Schema:
        name = enum.full_name
        if name == "google.protobuf.NullValue":
            return {"type": "null"}
        if name not in self.components:
            values = {value.name: self.comment(f"{name}.{value.name}") for value in enum.values}
            lines = [f"- `{value}`: {text}" if text else f"- `{value}`" for value, text in values.items()]
            self.components[name] = {
                "type": "string",
                "enum": list(values),
                "description": self._description(name, lines),
                "x-enum-descriptions": values,
            }
        return {"$ref": f"#/components/schemas/{name}"}

    def _oneofs(self, descriptor: Descriptor) -> list[str]:
        lines = []
        for oneof in descriptor.oneofs:
            names = [f"`{field.json_name}`" for field in oneof.fields]
            if len(names) > 1:  # `optional` makes a oneof of one
                lines.append(f"- at most one of {', '.join(names)}: {self.comment(oneof.full_name)}".rstrip(": "))
        return lines

    def _description(self, full_name: str, lines: list[str]) -> str:
        return "\n\n".join(filter(None, (self.comment(full_name), "\n".join(lines))))


def is_required(field: FieldDescriptor) -> bool:
    """Whether the contract requires a field."""
    return field_behavior_pb2.REQUIRED in _behaviour(field)


def _behaviour(field: FieldDescriptor) -> list[int]:
    return list(field.GetOptions().Extensions[field_behavior_pb2.field_behavior])
