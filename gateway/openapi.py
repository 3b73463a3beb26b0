"""The contract as an OpenAPI 3.1 document, from the same descriptors and comments as the routes."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor, ServiceDescriptor

import octavo
from gateway.contract import Contract, grpc_path, inner
from gateway.routes import Route, RouteTable
from gateway.schemas import Schema, Schemas, is_required
from gateway.templates import ANY, REST, Variable
from gateway.transcode import HTTP_BODY

_DEEPEST_QUERY = 3  # fields inside fields; deeper ones are rare, and a body is better for them
_EVERYTHING = "*"
_EVENTS = "The data of each event `message`; `error` holds an Error, `done` {}."
_DESCRIPTION = """Every RPC of the suite over HTTP and JSON.

- **Names**: `lowerCamelCase`; the proto's own names are taken too. 64-bit integers are strings. Unknown fields and
  parameters are refused, with the names that were probably meant.
- **Errors**: one shape, with a stable `reason` and, for wrong fields, one violation each.
- **Streams**: one JSON object a line, `{"result": …}` or `{"error": …}`; with `Accept: text/event-stream` as events
  `message`, `error` and `done`. A watch goes on behind `Last-Event-ID`.
- **Deadlines**: `Grpc-Timeout: 30S` says how long a call may take.
- **Tracing**: `traceparent` and `X-Request-Id` are taken and passed on; every answer has an `X-Request-Id`.
- **Reading**: `?prettyPrint=true` indents an answer.
- `POST /{package.Service}/{Method}` calls any unary RPC with its request as JSON.
"""


def document(contract: Contract, table: RouteTable) -> dict[str, Any]:
    """The document, ready for JSON."""
    schemas = Schemas(contract)
    schemas.components["Error"] = _error_schema()
    paths: dict[str, dict[str, Any]] = {}
    identities: dict[str, int] = {}
    variables = contract.resource_variables()
    services: dict[str, ServiceDescriptor] = {}
    for route in table.routes:
        if not route.is_declared:
            continue
        services[route.method.containing_service.name] = route.method.containing_service
        path, parameters = _path(route, schemas, variables)
        operation = _operation(route, schemas, parameters)
        count = identities[operation["operationId"]] = identities.get(operation["operationId"], 0) + 1
        if count > 1:
            operation["operationId"] += f"_{count}"
        paths.setdefault(path, {})[route.http_method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "Octavo", "version": octavo.__version__, "description": _DESCRIPTION},
        "servers": [{"url": "/"}],
        "security": [{}, {"bearer": []}, {"apiKey": []}],
        "tags": [{"name": name, "description": schemas.comment(s.full_name)} for name, s in services.items()],
        "paths": paths,
        "components": {
            "schemas": dict(sorted(schemas.components.items())),
            "responses": {"Error": _error_response()},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "apiKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


def _operation(route: Route, schemas: Schemas, parameters: list[Schema]) -> dict[str, Any]:
    method = route.method
    comment = schemas.comment(method.full_name)
    operation: dict[str, Any] = {
        "operationId": f"{method.containing_service.name}_{method.name}",
        "tags": [method.containing_service.name],
        "summary": _sentence(method.name),
        "description": comment,
        "parameters": [*parameters, *_query(route, schemas), *_headers(route)],
        "responses": {"200": _response(route, schemas), "default": {"$ref": "#/components/responses/Error"}},
        "x-grpc-method": grpc_path(method),
    }
    if method.server_streaming:
        operation["x-streaming"] = True
    body = _request_body(route, schemas)
    if body:
        operation["requestBody"] = body
    return operation


def _path(route: Route, schemas: Schemas, variables: Mapping[str, str]) -> tuple[str, list[Schema]]:
    """OpenAPI has no variables of several segments: `{name=models/*}` becomes `models/{model}`."""
    template, names = route.template, set[str]()
    parts: list[str] = []
    parameters: list[Schema] = []
    for i, segment in enumerate(template.segments):
        if segment not in {ANY, REST}:
            parts.append(segment)
            continue
        variable = next((v for v in template.variables if v.start <= i < v.stop), None)
        name = _unique(_parameter_name(template.segments, i, variable, variables), names)
        parts.append(f"{{{name}}}")
        parameters.append(_path_parameter(name, segment, variable, route.method.input_type, schemas))
    verb = f":{template.verb}" if template.verb else ""
    return f"/{'/'.join(parts)}{verb}", parameters


def _parameter_name(segments: tuple[str, ...], at: int, variable: Variable | None, variables: Mapping[str, str]) -> str:
    if variable is None:
        return "segment"
    if variable.is_multi and at > variable.start:
        return variables.get(segments[at - 1]) or _singular(segments[at - 1])
    return variable.field_path.rpartition(".")[2]


def _singular(collection: str) -> str:
    for ending, replacement in (("ies", "y"), ("ses", "s"), ("s", "")):
        if collection.endswith(ending):
            return collection.removesuffix(ending) + replacement
    return collection


def _unique(name: str, taken: set[str]) -> str:
    candidates = (name, *(f"{name}{n}" for n in range(2, 20)))
    chosen = next(candidate for candidate in candidates if candidate not in taken)
    taken.add(chosen)
    return chosen


def _path_parameter(
    name: str, segment: str, variable: Variable | None, request: Descriptor, schemas: Schemas
) -> Schema:
    field = _field_at(request, variable.field_path) if variable is not None else None
    part = f"Part of `{variable.field_path}`. " if variable is not None and variable.is_multi else ""
    is_plain = field is not None and variable is not None and not variable.is_multi
    schema = schemas.field(field) if is_plain and field is not None else {"type": "string", "minLength": 1}
    schema.pop("description", None)
    text = schemas.comment(field.full_name) if field is not None else ""
    if segment == REST:
        part += "May hold slashes. "
    return {"name": name, "in": "path", "required": True, "description": f"{part}{text}".strip(), "schema": schema}


def _field_at(descriptor: Descriptor, path: str) -> FieldDescriptor:
    *parents, leaf = path.split(".")
    for parent in parents:
        descriptor = inner(descriptor.fields_by_name[parent])
    field: FieldDescriptor = descriptor.fields_by_name[leaf]
    return field


def _query(route: Route, schemas: Schemas) -> Iterator[Schema]:
    if route.body == _EVERYTHING:
        return
    taken = {variable.field_path for variable in route.template.variables} | {route.body}
    yield from _query_fields(route.method.input_type, schemas, taken)


def _query_fields(
    descriptor: Descriptor, schemas: Schemas, taken: set[str], parents: tuple[FieldDescriptor, ...] = ()
) -> Iterator[Schema]:
    path = "".join(f"{parent.name}." for parent in parents)
    key = "".join(f"{parent.json_name}." for parent in parents)
    for field in descriptor.fields:
        if f"{path}{field.name}" in taken:
            continue
        message = field.message_type
        name = f"{key}{field.json_name}"
        if message is None or "$ref" not in schemas.message(message):
            schema = schemas.field(field)
            description = schema.pop("description", "")
            parameter = {"name": name, "in": "query", "description": description, "schema": schema}
            yield parameter | ({"required": True} if is_required(field) and not parents else {})
        elif not field.is_repeated and len(parents) < _DEEPEST_QUERY:
            yield from _query_fields(message, schemas, taken, (*parents, field))


def _headers(route: Route) -> Iterator[Schema]:
    if route.method.server_streaming and "after_sequence" in route.method.input_type.fields_by_name:
        yield {
            "name": "Last-Event-ID",
            "in": "header",
            "description": "The id of the last event seen: the stream goes on behind it. Browsers send it themselves.",
            "schema": {"type": "string", "pattern": "^[0-9]+$"},
        }


def _request_body(route: Route, schemas: Schemas) -> Schema | None:
    if not route.body:
        return None
    request = route.method.input_type
    paths = [variable.field_path for variable in route.template.variables]
    if route.body == _EVERYTHING:
        if request.full_name == HTTP_BODY:
            return _binary_body()
        schema = schemas.object(request, without=[path for path in paths if "." not in path])
        is_required_body = bool(schema.get("required"))
        return {"required": is_required_body, "content": {"application/json": {"schema": schema}}}
    field = request.fields_by_name[route.body]
    message = field.message_type
    if message is not None and message.full_name == HTTP_BODY:
        return _binary_body()
    schema = schemas.field(field)
    if message is not None and route.http_method == "PATCH" and not field.is_repeated:
        bound = [path.removeprefix(f"{route.body}.") for path in paths if path.startswith(f"{route.body}.")]
        schema = schemas.object(message, without=bound, is_partial=True)
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def _binary_body() -> Schema:
    return {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }


def _response(route: Route, schemas: Schemas) -> Schema:
    answer = route.method.output_type
    field = answer.fields_by_name[route.response_body] if route.response_body else None
    message = field.message_type if field is not None else answer
    if message is not None and message.full_name == HTTP_BODY:
        return {"description": "The bytes.", "content": {"*/*": {"schema": {"type": "string", "format": "binary"}}}}
    schema = schemas.field(field) if field is not None else schemas.message(answer)
    if not route.method.server_streaming:
        return {"description": _answer_text(route.method, schemas), "content": {"application/json": {"schema": schema}}}
    line = {
        "oneOf": [
            {"type": "object", "properties": {"result": schema}, "required": ["result"]},
            {"$ref": "#/components/schemas/Error"},
        ]
    }
    content: dict[str, Schema] = {
        "application/x-ndjson": {"schema": {**line, "description": "One object a line."}},
        "text/event-stream": {"schema": {**schema, "description": _EVENTS}},
    }
    if "chunk" in answer.fields_by_name:
        content["application/octet-stream"] = {"schema": {"type": "string", "format": "binary"}}
    return {
        "description": f"A stream. {_answer_text(route.method, schemas)}".strip(),
        "content": content,
    }


def _answer_text(method: MethodDescriptor, schemas: Schemas) -> str:
    return schemas.comment(method.output_type.full_name) or "The answer."


def _sentence(rpc: str) -> str:
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z][a-z0-9]*", rpc)
    return " ".join([words[0], *(word if word.isupper() else word.lower() for word in words[1:])])


def _error_schema() -> Schema:
    details: Schema = {
        "type": "array",
        "description": "ErrorInfo (a stable `reason` with its facts), BadRequest (wrong fields), RetryInfo and others.",
        "items": {
            "type": "object",
            "properties": {"@type": {"type": "string"}},
            "required": ["@type"],
        },
    }
    error: Schema = {
        "type": "object",
        "required": ["code", "message", "status", "details"],
        "properties": {
            "code": {"type": "integer", "description": "The HTTP status."},
            "message": {"type": "string", "description": "For people; it may change."},
            "status": {"type": "string", "description": "The gRPC code's name.", "examples": ["NOT_FOUND"]},
            "details": details,
        },
    }
    return {
        "type": "object",
        "description": "Every error has this shape (AIP-193).",
        "required": ["error"],
        "properties": {"error": error},
    }


def _error_response() -> Schema:
    return {
        "description": "Any failure.",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    }
