"""The nodes of a graph are listed in their order, filtered, page by page, with their settings as text."""

import numpy as np
import pytest
from onnx import helper, numpy_helper

from octavo.errors import FailedPrecondition, NotFound
from octavo.v1 import inspector_pb2 as pb
from services.inspector.graph_nodes import inspect_graph


def ask(contents, **fields):
    return inspect_graph(contents, pb.InspectGraphRequest(artifact="models/poet/versions/1", **fields))


def test_nodes_tell_operator_edges_and_attributes(open_files, bundle):
    result = ask(open_files(bundle))
    assert result.path == "model.onnx"
    assert result.summary.node_count == result.total_size == 3
    assert [(node.index, node.domain, node.operator) for node in result.nodes] == [
        (0, "ai.onnx", "Gather"),
        (1, "ai.onnx", "Gelu"),
        (2, "com.microsoft", "MatMulNBits"),
    ]
    assert list(result.nodes[0].inputs) == ["transformer.wte.weight", "input_ids"]
    assert dict(result.nodes[2].attributes) == {"K": "64", "N": "8", "bits": "4", "block_size": "32"}


@pytest.mark.parametrize(
    ("filters", "operators"),
    [
        ({"operator": "Gelu"}, ["Gelu"]),
        ({"operator": "gelu"}, []),
        ({"value_contains": "input_ids"}, ["Gather"]),
        ({"value_contains": "packed"}, ["MatMulNBits"]),
        ({"value_contains": "y"}, ["Gelu", "MatMulNBits"]),
    ],
)
def test_filters_choose_nodes(open_files, bundle, filters, operators):
    assert [node.operator for node in ask(open_files(bundle), **filters).nodes] == operators


def test_pages_follow_one_another(open_files, bundle):
    first = ask(open_files(bundle), page_size=2)
    second = ask(open_files(bundle), page_size=2, page_token=first.next_page_token)
    assert [node.index for node in (*first.nodes, *second.nodes)] == [0, 1, 2]
    assert not second.next_page_token


def test_every_kind_of_attribute_has_a_short_text(open_files):
    node = helper.make_node(
        "Everything",
        [],
        [],
        number=0.5,
        text="ä" * 1000,
        numbers=[1.5, 2.0],
        whole=list(range(100)),
        words=["a", "b"],
        tensor=numpy_helper.from_array(np.zeros((2, 3))),
        graph=helper.make_graph([helper.make_node("Add", ["a", "b"], ["c"])], "g", [], []),
    )
    graph = helper.make_graph([node], "g", [], [])
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]).SerializeToString()
    attributes = ask(open_files({"model.onnx": data})).nodes[0].attributes
    assert attributes["number"] == "0.5"
    assert attributes["numbers"] == "[1.5, 2]"
    assert attributes["whole"].endswith("63, … 100 in all]")
    assert attributes["words"] == "[a, b]"
    assert attributes["tensor"] == "tensor [2, 3]"
    assert attributes["graph"] == "graph of 1 nodes"
    assert len(attributes["text"]) <= 400


def test_only_graphs_have_nodes(open_files, bundle):
    with pytest.raises(FailedPrecondition, match="is SAFETENSORS"):
        ask(open_files(bundle), path="model.safetensors")
    with pytest.raises(NotFound, match=r"model\.onnx"):
        ask(open_files({"config.json": b"{}"}))
