"""Lists the nodes of an ONNX graph page by page, with what they take, yield and are set to.

Attributes become text; tensors and subgraphs among them are named by type and size, never written out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from octavo.errors import FailedPrecondition
from octavo.v1 import inspector_pb2 as pb
from octavo.v1.errors_pb2 import Reason
from services.inspector import graph_summary
from services.inspector.contents import Contents
from services.inspector.onnx_graph import read_nodes
from services.inspector.operators import DEFAULT_DOMAIN
from services.inspector.page_slices import page_of

if TYPE_CHECKING:
    import onnx

GRAPH: Final = "model.onnx"
_TEXT_LIMIT: Final = 400
_LIST_LIMIT: Final = 64


def inspect_graph(contents: Contents, request: pb.InspectGraphRequest) -> pb.GraphInspection:
    """The graph in short and one page of its nodes."""
    artifact = contents.artifact
    page = page_of(request, artifact.name)
    path = request.path or ("" if artifact.is_blob else GRAPH)
    kind = contents.format(path)
    if kind != pb.FILE_FORMAT_ONNX:
        name = pb.FileFormat.Name(kind).removeprefix("FILE_FORMAT_")
        raise FailedPrecondition(
            Reason.REASON_FORMAT_NOT_SUPPORTED,
            f"{path or artifact.name} is {name}; only ONNX files have a graph",
            path=path,
            format=name,
        )
    # Only the page is built: a graph may have two hundred thousand nodes.
    result = pb.GraphInspection(artifact=artifact.name, path=path, summary=graph_summary.summarize(contents, path))
    for index, node in _matching(contents, path, request):
        if page.start <= result.total_size < page.start + page.size:
            result.nodes.append(_describe(index, node))
        result.total_size += 1
    result.next_page_token = page.token_after(len(result.nodes), result.total_size)
    return result


def _matching(contents: Contents, path: str, request: pb.InspectGraphRequest) -> Iterator[tuple[int, onnx.NodeProto]]:
    """The nodes that pass the filter, with their positions."""
    nodes = read_nodes(contents.reader(path), contents.graph(path).graph)
    for index, node in enumerate(nodes):
        values = (*node.input, *node.output)
        if request.operator in ("", node.op_type) and (
            not request.value_contains or any(request.value_contains in value for value in values)
        ):
            yield index, node


def _describe(index: int, node: onnx.NodeProto) -> pb.GraphNode:
    return pb.GraphNode(
        index=index,
        name=node.name,
        domain=node.domain or DEFAULT_DOMAIN,
        operator=node.op_type,
        inputs=node.input,
        outputs=node.output,
        attributes={attribute.name: _text(attribute)[:_TEXT_LIMIT] for attribute in node.attribute},
    )


def _text(attribute: onnx.AttributeProto) -> str:
    """The value of an attribute for people: onnx/onnx.proto, AttributeProto.AttributeType."""
    match attribute.type:
        case 1 | 2:
            return f"{attribute.f:g}" if attribute.type == 1 else str(attribute.i)
        case 3:
            return attribute.s[:_TEXT_LIMIT].decode(errors="replace")
        case 6:
            return _listed([f"{value:g}" for value in attribute.floats[:_LIST_LIMIT]], len(attribute.floats))
        case 7:
            return _listed([str(value) for value in attribute.ints[:_LIST_LIMIT]], len(attribute.ints))
        case 8:
            texts = [value[:40].decode(errors="replace") for value in attribute.strings[:_LIST_LIMIT]]
            return _listed(texts, len(attribute.strings))
    return _reference(attribute)


def _listed(texts: list[str], count: int) -> str:
    more = f", … {count} in all" if count > len(texts) else ""
    return f"[{', '.join(texts)}{more}]"


def _reference(attribute: Any) -> str:
    """What stands for a tensor or a subgraph."""
    if attribute.HasField("t"):
        return f"tensor {list(attribute.t.dims)}"
    if attribute.HasField("g"):
        return f"graph of {len(attribute.g.node)} nodes"
    count = max(len(attribute.tensors), len(attribute.graphs), len(attribute.sparse_tensors), 1)
    return f"{count} values of attribute type {attribute.type}"
