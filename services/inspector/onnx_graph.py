"""Reads an ONNX model by ranges: operators, inputs, outputs and where each initializer lies, never its values.

External data is described, not opened; a location is text of a stranger until `external_data` has judged it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from google.protobuf.message import DecodeError

from octavo.v1 import inspector_pb2 as pb
from services.inspector import wire
from services.inspector.element_types import ONNX, ElementType
from services.inspector.operators import DEFAULT_DOMAIN, InputRoles
from services.inspector.reader import Reader, malformed

if TYPE_CHECKING:
    import onnx

# A node, function or value of this size carries weights in its attributes: no exporter of language models does.
_PART_LIMIT_BYTES: Final = 16 * 1024 * 1024
_TEXT_LIMIT_BYTES: Final = 64 * 1024
# A graph of a thousand layers has under a hundred thousand nodes.
_PARTS_LIMIT: Final = 200_000
_RANK_LIMIT: Final = 64
# Four trillion: even a million such tensors add up within the 63 bits of the contract's counts.
_ELEMENT_LIMIT: Final = 1 << 42

# Fields of ModelProto, GraphProto and TensorProto: github.com/onnx/onnx, onnx/onnx.proto.
_MODEL_GRAPH: Final = 7
_GRAPH_NODE: Final = 1
_INLINE_DATA: Final = {4: "float_data", 5: "int32_data", 7: "int64_data", 10: "double_data", 11: "uint64_data"}
_RAW_DATA: Final = 9


@dataclass(frozen=True, slots=True)
class Initializer:
    """One stored tensor. `offset` in bytes in the file that holds it; None where values are not plain bytes."""

    name: str
    type: ElementType
    shape: tuple[int, ...]
    size_bytes: int
    offset: int | None
    location: str | None = None
    stated_bytes: int | None = None

    @property
    def element_count(self) -> int:
        return math.prod(self.shape)


@dataclass(slots=True)
class OnnxGraph:
    """An ONNX model without its values."""

    label: str
    graph: wire.Field
    ir_version: int = 0
    producer: str = ""
    operator_sets: dict[str, int] = field(default_factory=dict)
    operators: Counter[tuple[str, str]] = field(default_factory=Counter)
    node_count: int = 0
    inputs: list[pb.GraphValue] = field(default_factory=list)
    outputs: list[pb.GraphValue] = field(default_factory=list)
    initializers: list[Initializer] = field(default_factory=list)
    nested_locations: set[str] = field(default_factory=set)
    metadata: dict[str, str] = field(default_factory=dict)
    function_count: int = 0
    has_training_info: bool = False
    input_roles: InputRoles = field(default_factory=InputRoles)


def read_graph(reader: Reader) -> OnnxGraph:
    """The model; InvalidArgument says what is wrong when the file is no ONNX model."""
    top = list(_limited(wire.fields(reader, 0, reader.size_bytes), reader.label))
    graphs = [item for item in top if item.number == _MODEL_GRAPH and item.kind == wire.BYTES]
    if len(graphs) != 1:
        raise malformed(reader.label, f"an ONNX model has one graph, this file has {len(graphs)}")
    model = OnnxGraph(reader.label, graphs[0])
    for item in top:
        _read_model_field(reader, model, item)
    if not model.operator_sets:
        raise malformed(reader.label, "an ONNX model names the operator sets it needs, this file does not")
    for item in _limited(wire.fields(reader, graphs[0].offset, graphs[0].end), reader.label):
        _read_graph_field(reader, model, item)
    return model


def read_nodes(reader: Reader, graph: wire.Field) -> Iterator[onnx.NodeProto]:
    """The nodes of the main graph in stored order."""
    import onnx

    for item in _limited(wire.fields(reader, graph.offset, graph.end), reader.label):
        if item.number == _GRAPH_NODE and item.kind == wire.BYTES:
            yield _parsed(reader, item, onnx.NodeProto)


def _read_model_field(reader: Reader, model: OnnxGraph, item: wire.Field) -> None:
    import onnx

    match item.number, item.kind:
        case 1, wire.VARINT:
            model.ir_version = item.value
        case 2 | 3, wire.BYTES:
            model.producer = f"{model.producer} {_text(reader, item)}".strip()
        case 8, wire.BYTES:
            operator_set = _parsed(reader, item, onnx.OperatorSetIdProto)
            model.operator_sets[operator_set.domain or DEFAULT_DOMAIN] = operator_set.version
        case 14, wire.BYTES:
            entry = _parsed(reader, item, onnx.StringStringEntryProto)
            model.metadata[entry.key] = entry.value
        case 20, wire.BYTES:
            model.has_training_info = True
        case 25, wire.BYTES:
            model.function_count += 1
            _count_nodes(model, _parsed(reader, item, onnx.FunctionProto).node)


def _read_graph_field(reader: Reader, model: OnnxGraph, item: wire.Field) -> None:
    import onnx

    match item.number, item.kind:
        case 1, wire.BYTES:
            node = _parsed(reader, item, onnx.NodeProto)
            model.node_count += 1
            model.input_roles.learn(node)
            _count_nodes(model, [node])
        case 5, wire.BYTES:
            model.initializers.append(_initializer(reader, item))
        case 11, wire.BYTES:
            model.inputs.append(_graph_value(_parsed(reader, item, onnx.ValueInfoProto)))
        case 12, wire.BYTES:
            model.outputs.append(_graph_value(_parsed(reader, item, onnx.ValueInfoProto)))
        case 15, wire.BYTES:
            sparse = _parsed(reader, item, onnx.SparseTensorProto)
            model.nested_locations |= _locations([sparse.values, sparse.indices])


def _count_nodes(model: OnnxGraph, nodes: Any) -> None:
    """Counts operators of nodes and their subgraphs, and notes external data that attributes point to."""
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        model.operators[node.domain or DEFAULT_DOMAIN, node.op_type] += 1
        for attribute in node.attribute:
            model.nested_locations |= _locations([attribute.t, *attribute.tensors])
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                model.nested_locations |= _locations([sparse.values, sparse.indices])
            for graph in (attribute.g, *attribute.graphs):
                model.nested_locations |= _locations(graph.initializer)
                waiting.extend(graph.node)


def _locations(tensors: Any) -> set[str]:
    return {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}


@dataclass(slots=True)
class _TensorParts:
    """What the fields of one TensorProto say, gathered before they are checked against each other."""

    name: str = ""
    data_type: int = 0
    shape: list[int] = field(default_factory=list)
    is_external: bool = False
    external: dict[str, str] = field(default_factory=dict)
    raw: wire.Field | None = None
    typed: list[wire.Field] = field(default_factory=list)


def _initializer(reader: Reader, item: wire.Field) -> Initializer:
    parts = _TensorParts()
    for part in _limited(wire.fields(reader, item.offset, item.end), reader.label):
        _read_tensor_field(reader, parts, part)
    shown = repr(parts.name[:200])
    kind = ONNX.get(parts.data_type)
    if kind is None:
        raise malformed(reader.label, f"initializer {shown} has the unknown data type {parts.data_type}")
    if len(parts.shape) > _RANK_LIMIT or math.prod(parts.shape) > _ELEMENT_LIMIT:
        raise malformed(reader.label, f"initializer {shown} has an impossible shape")
    if parts.is_external or parts.external:
        return _external(reader.label, parts, kind)
    return _inline(reader.label, parts, kind)


def _read_tensor_field(reader: Reader, parts: _TensorParts, part: wire.Field) -> None:
    import onnx

    match part.number, part.kind:
        case 1, wire.VARINT:
            parts.shape.append(part.value)
        case 1, wire.BYTES:
            parts.shape.extend(wire.packed_varints(_bounded(reader, part, _TEXT_LIMIT_BYTES), reader.label))
        case 2, wire.VARINT:
            parts.data_type = part.value
        case 8, wire.BYTES:
            parts.name = _text(reader, part)
        case 9, wire.BYTES:
            parts.raw = part
        case 13, wire.BYTES:
            entry = _parsed(reader, part, onnx.StringStringEntryProto)
            parts.external[entry.key] = entry.value
        case 14, wire.VARINT:
            parts.is_external = part.value == 1
        case number, _ if number in _INLINE_DATA:
            parts.typed.append(part)


def _inline(label: str, parts: _TensorParts, kind: ElementType) -> Initializer:
    size_bytes = kind.size_bytes(math.prod(parts.shape))
    if parts.raw is not None:
        if kind.bits and parts.raw.length != size_bytes:
            raise malformed(
                label,
                f"initializer {parts.name[:200]!r} holds {parts.raw.length} bytes, its type and shape need "
                f"{size_bytes}",
            )
        return Initializer(parts.name, kind, tuple(parts.shape), parts.raw.length, parts.raw.offset)
    # Packed floats and doubles are plain little-endian bytes; other typed fields are varints.
    plain = len(parts.typed) == 1 and parts.typed[0].kind == wire.BYTES and parts.typed[0].number in (4, 10)
    offset = parts.typed[0].offset if plain and parts.typed[0].length == size_bytes else None
    return Initializer(parts.name, kind, tuple(parts.shape), size_bytes, offset)


def _external(label: str, parts: _TensorParts, kind: ElementType) -> Initializer:
    location = parts.external.get("location", "")
    if not location:
        raise malformed(label, f"initializer {parts.name[:200]!r} is external but names no location")
    offset, stated = (_stated(label, parts, key) for key in ("offset", "length"))
    return Initializer(
        parts.name,
        kind,
        tuple(parts.shape),
        kind.size_bytes(math.prod(parts.shape)),
        offset or 0,
        location,
        stated,
    )


def _stated(label: str, parts: _TensorParts, key: str) -> int | None:
    """A number among the external data; None when it is left out."""
    text = parts.external.get(key)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise malformed(label, f"initializer {parts.name[:200]!r} has the {key} {text[:40]!r}, not a number")
    return int(text)


def _graph_value(value: Any) -> pb.GraphValue:
    tensor = value.type.tensor_type
    shape = [str(size.dim_value) if size.HasField("dim_value") else size.dim_param or "?" for size in tensor.shape.dim]
    kind = ONNX.get(tensor.elem_type)
    return pb.GraphValue(name=value.name, type=kind.kind if kind else pb.TENSOR_TYPE_UNSPECIFIED, shape=shape)


def _limited(items: Iterator[wire.Field], label: str) -> Iterator[wire.Field]:
    for count, item in enumerate(items):
        if count >= _PARTS_LIMIT:
            raise malformed(label, f"a part of it has more than {_PARTS_LIMIT} fields")
        yield item


def _bounded(reader: Reader, item: wire.Field, limit_bytes: int) -> bytes:
    if item.length > limit_bytes:
        raise malformed(
            reader.label, f"field {item.number} at byte {item.offset} has {item.length} bytes, over {limit_bytes}"
        )
    return reader.read(item.offset, item.length)


def _text(reader: Reader, item: wire.Field) -> str:
    try:
        return _bounded(reader, item, _TEXT_LIMIT_BYTES).decode()
    except UnicodeDecodeError as error:
        raise malformed(reader.label, f"the text at byte {item.offset} is not UTF-8") from error


def _parsed(reader: Reader, item: wire.Field, message: Callable[[], Any]) -> Any:
    """A small part, parsed whole; the library's parser follows no reference and loads no data."""
    value = message()
    try:
        value.ParseFromString(_bounded(reader, item, _PART_LIMIT_BYTES))
    except DecodeError as error:
        raise malformed(reader.label, f"the part at byte {item.offset} cannot be parsed: {error}") from error
    return value
