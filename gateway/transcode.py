"""One route's request and answer: HTTP parts to a message and back (reference: google/api/http.proto).

Everything that depends on descriptors alone is worked out once, when the route is made.
"""

from collections.abc import Mapping
from typing import Any

import orjson
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from gateway.contract import Contract, inner
from gateway.json_reader import JsonReader
from gateway.json_writer import JsonWriter
from gateway.parameters import PathField, Query, QueryFields
from gateway.problems import Problem, invalid_fields, refusal
from gateway.routes import Route
from gateway.templates import TemplateError
from gateway.violations import Violations
from octavo.errors import InvalidArgument
from octavo.v1.errors_pb2 import Reason

HTTP_BODY = "google.api.HttpBody"
_FIELD_MASK = "google.protobuf.FieldMask"
_EVERYTHING = "*"
_JSON_TYPE = b"application/json"


class Transcoding:
    """How one route reads requests and writes answers."""

    def __init__(self, route: Route, contract: Contract, reader: JsonReader, writer: JsonWriter) -> None:
        """Raises TemplateError when the binding does not fit its messages."""
        self._reader, self._writer = reader, writer
        self._request = route.method.input_type
        self.request_class = contract.message_class(self._request)
        self._body = _body_field(route, self._request)
        self._takes_everything = route.body == _EVERYTHING
        self._raw_body = _is_http_body(self._body.message_type if self._body else None) or (
            self._takes_everything and _is_http_body(self._request)
        )
        self._path = _path_fields(route, self._request)
        taken = [*self._path, *([self._body.name] if self._body else [])]
        self._query = QueryFields(self._request, reader, taken=taken)
        self._mask = _mask_field(route, self._request, self._body)
        self._answer = route.method.output_type
        self._answer_field = _answer_field(route, self._answer)
        self.takes_body = bool(route.body)
        self.chunk = _chunk_field(self._answer)
        self.cursor: FieldDescriptor | None = _integer_field(self._request, "after_sequence")

    def request(self, bindings: Mapping[str, str], query: Query, body: bytes, content_type: bytes) -> Message:
        """The request message; raises Problem that names every wrong field."""
        message = self.request_class()
        violations = Violations()
        tree = self._read_body(message, body, content_type, violations)
        for name, text in bindings.items():
            self._path[name].put(message, text, violations)
        if self._takes_everything:
            self._refuse_query(query, violations)
        elif query:
            self._query.put(message, query, violations)
        if violations.found:
            raise invalid_fields(violations)
        if self._mask is not None and self._body is not None and isinstance(tree, dict):
            mask = getattr(message, self._mask.name)
            if not mask.paths:
                mask.paths.extend(self._leaf_paths(tree, inner(self._body), self._identity()))
        return message

    def answer(self, message: Message, *, pretty: bool = False) -> tuple[bytes, bytes]:
        """Content type and body of an answer; an HttpBody is sent as it is."""
        if self._answer_field is None and _is_http_body(self._answer):
            return _raw(message)
        if self._answer_field is not None and _is_http_body(self._answer_field.message_type):
            return _raw(getattr(message, self._answer_field.name))
        return _JSON_TYPE, self._writer.dumps(self.tree(message), pretty=pretty)

    def tree(self, message: Message) -> Any:
        """An answer as JSON values, narrowed to `response_body` where the route has one."""
        if self._answer_field is not None:
            return self._writer.field_tree(message, self._answer_field)
        return self._writer.tree(message)

    @property
    def answers_raw(self) -> bool:
        """Whether the answer, or each message of a stream, is an HttpBody."""
        return _is_http_body(self._answer_field.message_type if self._answer_field is not None else self._answer)

    def _read_body(self, message: Any, body: bytes, content_type: bytes, violations: Violations) -> Any:
        if not self.takes_body:
            if body.strip():
                raise _invalid_body("this call takes no body; give its fields in the query")
            return None
        if self._raw_body:
            target = getattr(message, self._body.name) if self._body else message
            target.content_type, target.data = content_type.decode("latin-1"), body
            return None
        if not body.strip():
            return None
        _check_content_type(content_type)
        try:
            tree = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise _invalid_body(f"the body is not JSON: {error}") from None
        if self._body is not None:
            self._reader.read_field(tree, message, self._body, violations)
        else:
            self._reader.read(tree, message, violations)
        return tree

    def _refuse_query(self, query: Query, violations: Violations) -> None:
        for key, _ in query:
            if self._query.is_field(key):
                violations.add(key[:80], "this call reads every field from the JSON body; move it there")

    def _leaf_paths(
        self, tree: dict[str, Any], descriptor: Descriptor, identity: frozenset[str], prefix: str = ""
    ) -> list[str]:
        """The paths that a JSON object sets; a list, a map or a well-known type is one leaf."""
        paths: list[str] = []
        for key, value in tree.items():
            field = self._reader.field(descriptor, key)
            if field is None:
                continue
            path = f"{prefix}{field.name}"
            kind = field.message_type
            is_plain = kind is not None and not (field.is_repeated or kind.full_name.startswith("google.protobuf."))
            if kind is not None and is_plain and isinstance(value, dict) and value:
                paths += self._leaf_paths(value, kind, identity, f"{path}.")
            elif path not in identity:
                paths.append(path)
        return paths

    def _identity(self) -> frozenset[str]:
        """Proto paths below the body field that the URL binds: they name the resource, they change nothing."""
        prefix = f"{self._body.name}." if self._body else ""
        return frozenset(name.removeprefix(prefix) for name in self._path if name.startswith(prefix))


def _body_field(route: Route, request: Descriptor) -> FieldDescriptor | None:
    if route.body in {"", _EVERYTHING}:
        return None
    field: FieldDescriptor | None = request.fields_by_name.get(route.body)
    if field is None:
        raise _misfit(route, f"{request.full_name} has no field {route.body!r} for the body")
    return field


def _path_fields(route: Route, request: Descriptor) -> dict[str, PathField]:
    try:
        return {variable.field_path: PathField(request, variable.field_path) for variable in route.template.variables}
    except ValueError as error:
        raise _misfit(route, str(error)) from None


def _answer_field(route: Route, answer: Descriptor) -> FieldDescriptor | None:
    if not route.response_body:
        return None
    field: FieldDescriptor | None = answer.fields_by_name.get(route.response_body)
    if field is None:
        raise _misfit(route, f"{answer.full_name} has no field {route.response_body!r} for the answer")
    return field


def _mask_field(route: Route, request: Descriptor, body: FieldDescriptor | None) -> FieldDescriptor | None:
    """The one FieldMask of a PATCH whose body is a field: filled from the body when the caller leaves it out."""
    masks = [f for f in request.fields if f.message_type is not None and f.message_type.full_name == _FIELD_MASK]
    is_patch = route.http_method == "PATCH" and body is not None and body.message_type is not None
    return masks[0] if is_patch and len(masks) == 1 and not masks[0].is_repeated else None


def _integer_field(request: Descriptor, name: str) -> FieldDescriptor | None:
    field: FieldDescriptor | None = request.fields_by_name.get(name)
    is_integer = field is not None and field.cpp_type in {
        FieldDescriptor.CPPTYPE_INT32,
        FieldDescriptor.CPPTYPE_INT64,
        FieldDescriptor.CPPTYPE_UINT32,
        FieldDescriptor.CPPTYPE_UINT64,
    }
    return field if is_integer else None


def _chunk_field(answer: Descriptor) -> str:
    """The name of the field that holds the content itself, where the messages of a stream carry some."""
    field = answer.fields_by_name.get("chunk")
    return "chunk" if field is not None and field.type == FieldDescriptor.TYPE_BYTES else ""


def _check_content_type(content_type: bytes) -> None:
    kind, _, parameters = content_type.lower().partition(b";")
    kind = kind.strip()
    if kind not in {b"", b"application/json", b"text/json"} and not kind.endswith(b"+json"):
        raise unsupported_media_type(f"the body is {kind.decode('latin-1')!r}; send application/json")
    charset = parameters.partition(b"charset=")[2].strip(b'" ')
    if charset and charset not in {b"utf-8", b"utf8", b"us-ascii"}:
        raise unsupported_media_type(f"the charset is {charset.decode('latin-1')!r}; JSON is sent as utf-8")


def unsupported_media_type(message: str) -> Problem:
    """415 in the common shape."""
    error = InvalidArgument(Reason.REASON_UNSUPPORTED_MEDIA_TYPE, message)
    return refusal(error, http_status=415, headers={"Accept-Post": "application/json"})


def _invalid_body(message: str) -> Problem:
    return refusal(InvalidArgument(Reason.REASON_INVALID_BODY, message))


def _misfit(route: Route, what: str) -> TemplateError:
    return TemplateError(f"{route.method.full_name}, {route.http_method} {route.template.source}: {what}")


def _is_http_body(descriptor: Descriptor | None) -> bool:
    return descriptor is not None and descriptor.full_name == HTTP_BODY


def _raw(body: Any) -> tuple[bytes, bytes]:
    return body.content_type.encode("latin-1", "replace") or b"application/octet-stream", body.data
