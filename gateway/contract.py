"""The contract as the gateway reads it: descriptors, message classes and comments. Knows nothing of HTTP."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.api import annotations_pb2, resource_pb2  # noqa: F401  (extensions must be known before options are parsed)
from google.protobuf import descriptor_pb2, message_factory
from google.protobuf.descriptor import (
    Descriptor,
    EnumDescriptor,
    FieldDescriptor,
    MethodDescriptor,
    ServiceDescriptor,
)
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message

# Field numbers inside descriptor.proto, by which SourceCodeInfo addresses a declaration.
_FILE_MESSAGES, _FILE_ENUMS, _FILE_SERVICES = 4, 5, 6
_MESSAGE_FIELDS, _MESSAGE_MESSAGES, _MESSAGE_ENUMS, _MESSAGE_ONEOFS = 2, 3, 4, 8
_ENUM_VALUES = 2
_SERVICE_METHODS = 2


class Contract:
    """A descriptor set in a pool of its own, so that two contracts can live in one process."""

    def __init__(self, files: descriptor_pb2.FileDescriptorSet) -> None:
        self.pool = DescriptorPool()
        self._comments: dict[str, str] = {}
        self._patterns: list[str] = []
        names: list[str] = []
        for file in files.file:
            self.pool.Add(file)
            self._comments.update(_comments(file))
            self._patterns += _patterns(file)
            prefix = f"{file.package}." if file.package else ""
            names += [prefix + service.name for service in file.service]
        self.services: tuple[ServiceDescriptor, ...] = tuple(map(self.pool.FindServiceByName, names))

    @classmethod
    def load(cls, path: Path) -> "Contract":
        """Reads a FileDescriptorSet with imports (and source info, for comments) from a file."""
        return cls(descriptor_pb2.FileDescriptorSet.FromString(path.read_bytes()))

    def message_class(self, descriptor: Descriptor) -> type[Message]:
        """The class of a message of this contract."""
        return message_factory.GetMessageClass(descriptor)

    def methods(self) -> Iterator[MethodDescriptor]:
        """Every RPC of every service, in the order of the contract."""
        for service in self.services:
            yield from service.methods

    def resource_variables(self) -> dict[str, str]:
        """What one member of a collection is called in resource names: `models` is of `model`."""
        pairs = (re.findall(r"([^/{}]+)/\{([^}]+)\}", pattern) for pattern in self._patterns)
        return {collection: variable for found in pairs for collection, variable in found}

    def comment(self, full_name: str) -> str:
        """What the proto says above (or behind) a declaration, empty when it says nothing."""
        return self._comments.get(full_name, "")


def service_name(method: MethodDescriptor) -> str:
    """The full name of the service that an RPC belongs to."""
    name: str = method.containing_service.full_name
    return name


def grpc_path(method: MethodDescriptor) -> str:
    """What gRPC calls a method on the wire: `/package.Service/Method`."""
    return f"/{service_name(method)}/{method.name}"


def _patterns(file: descriptor_pb2.FileDescriptorProto) -> list[str]:
    """The resource name patterns that google.api.resource declares."""
    options = [message.options for message in file.message_type]
    return [p for option in options for p in option.Extensions[resource_pb2.resource].pattern]


def is_map(field: FieldDescriptor) -> bool:
    """Whether a field is a map: repeated entries of a key and a value."""
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def inner(field: FieldDescriptor) -> Descriptor:
    """The message type of a field that is known to hold messages."""
    if field.message_type is None:
        raise TypeError(f"{field.full_name} is a scalar")
    return field.message_type


def enum_of(field: FieldDescriptor) -> EnumDescriptor:
    """The enum of a field that is known to hold one."""
    if field.enum_type is None:
        raise TypeError(f"{field.full_name} is no enum")
    return field.enum_type


def _comments(file: descriptor_pb2.FileDescriptorProto) -> dict[str, str]:
    paths = dict(_declarations(file))
    found: dict[str, str] = {}
    for location in file.source_code_info.location:
        name = paths.get(tuple(location.path))
        text = (location.leading_comments or location.trailing_comments).strip()
        if name and text:
            found[name] = "\n".join(line.strip() for line in text.splitlines())
    return found


def _declarations(file: descriptor_pb2.FileDescriptorProto) -> Iterator[tuple[tuple[int, ...], str]]:
    prefix = f"{file.package}." if file.package else ""
    for i, message in enumerate(file.message_type):
        yield from _message_declarations(message, (_FILE_MESSAGES, i), prefix)
    for i, enum in enumerate(file.enum_type):
        yield from _enum_declarations(enum, (_FILE_ENUMS, i), prefix)
    for i, service in enumerate(file.service):
        path = (_FILE_SERVICES, i)
        yield path, prefix + service.name
        for j, method in enumerate(service.method):
            yield (*path, _SERVICE_METHODS, j), f"{prefix}{service.name}.{method.name}"


def _message_declarations(message: Any, path: tuple[int, ...], prefix: str) -> Iterator[tuple[tuple[int, ...], str]]:
    name = prefix + message.name
    yield path, name
    for i, field in enumerate(message.field):
        yield (*path, _MESSAGE_FIELDS, i), f"{name}.{field.name}"
    for i, oneof in enumerate(message.oneof_decl):
        yield (*path, _MESSAGE_ONEOFS, i), f"{name}.{oneof.name}"
    for i, nested in enumerate(message.nested_type):
        yield from _message_declarations(nested, (*path, _MESSAGE_MESSAGES, i), f"{name}.")
    for i, enum in enumerate(message.enum_type):
        yield from _enum_declarations(enum, (*path, _MESSAGE_ENUMS, i), f"{name}.")


def _enum_declarations(enum: Any, path: tuple[int, ...], prefix: str) -> Iterator[tuple[tuple[int, ...], str]]:
    # Values of an enum are siblings of the enum in protobuf's naming; here they are kept below it.
    yield path, prefix + enum.name
    for i, value in enumerate(enum.value):
        yield (*path, _ENUM_VALUES, i), f"{prefix}{enum.name}.{value.name}"
