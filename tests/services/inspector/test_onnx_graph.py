"""An ONNX file is described without its values, whatever is in it, and refused when it is broken."""

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from octavo.errors import InvalidArgument
from octavo.v1 import inspector_pb2 as pb
from services.inspector.onnx_graph import read_graph, read_nodes

relaxed = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def model_of(nodes=(), initializers=(), **more):
    graph = helper.make_graph(list(nodes), "g", [], [], list(initializers))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], **more)


def test_the_bundles_graph_is_described_as_it_was_made(read, bundle, architecture):
    graph = read_graph(read(bundle["model.onnx"]))
    assert graph.producer == "octavo 1"
    assert graph.operator_sets == {"ai.onnx": 20, "com.microsoft": 1}
    assert graph.operators == {("ai.onnx", "Gather"): 1, ("ai.onnx", "Gelu"): 1, ("com.microsoft", "MatMulNBits"): 1}
    assert graph.inputs == [pb.GraphValue(name="input_ids", type=pb.TENSOR_TYPE_INT64, shape=["batch", "4"])]
    assert [value.name for value in graph.outputs] == ["z"]
    assert len(graph.initializers) == len(architecture.tensors()) + 2
    assert {item.location for item in graph.initializers} == {"model.safetensors", None}
    assert graph.metadata == {"octavo.precision": "fp32"}
    assert graph.input_roles.packed_counts == {"packed": 64 * 8}
    assert graph.input_roles.roles["packed_scales"] == pb.TENSOR_ROLE_QUANTIZATION


def test_nodes_come_in_stored_order(read, bundle):
    reader = read(bundle["model.onnx"])
    assert [node.op_type for node in read_nodes(reader, read_graph(reader).graph)] == ["Gather", "Gelu", "MatMulNBits"]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64, np.uint8, np.float64])
def test_an_embedded_tensor_lies_where_it_is_said_to_lie(read, dtype):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    data = model_of(initializers=[numpy_helper.from_array(array, "w")]).SerializeToString()
    item = read_graph(read(data)).initializers[0]
    assert item.shape == (2, 3, 4)
    assert np.array_equal(np.frombuffer(data, dtype, 24, item.offset), array.reshape(-1))


def test_packed_floats_have_a_place_and_varints_have_none(read):
    tensors = [
        helper.make_tensor("f", TensorProto.FLOAT, (3,), [1.0, 2.0, 3.0]),
        helper.make_tensor("i", TensorProto.INT64, (3,), [1, 2, 300]),
    ]
    data = model_of(initializers=tensors).SerializeToString()
    f, i = read_graph(read(data)).initializers
    assert np.frombuffer(data, np.float32, 3, f.offset).tolist() == [1, 2, 3]
    assert i.offset is None
    assert i.size_bytes == 24


def test_embedded_weights_are_skipped_not_fetched(read):
    array = np.zeros((1024, 1024), np.float32)
    reader = read(
        model_of(initializers=[numpy_helper.from_array(array, f"w{i}") for i in range(4)]).SerializeToString()
    )
    assert len(read_graph(reader).initializers) == 4
    assert sum(length for _, length in reader._source.fetches) < 200_000


def test_operators_in_subgraphs_and_functions_are_counted(read):
    branch = helper.make_graph([helper.make_node("Add", ["a", "b"], ["c"])], "then", [], [])
    node = helper.make_node("If", ["p"], ["c"], then_branch=branch, else_branch=branch)
    function = helper.make_function(
        "mine", "Twice", ["x"], ["y"], [helper.make_node("Mul", ["x", "x"], ["y"])], [helper.make_opsetid("", 20)]
    )
    graph = read_graph(read(model_of([node], functions=[function]).SerializeToString()))
    assert graph.operators == {("ai.onnx", "If"): 1, ("ai.onnx", "Add"): 2, ("ai.onnx", "Mul"): 1}
    assert graph.node_count == 1
    assert graph.function_count == 1


def test_external_data_hidden_in_a_node_is_found(read, make_external):
    secret = make_external("s", TensorProto.FLOAT, (1,), "/etc/passwd", 0, 4)
    branch = helper.make_graph([], "then", [], [], [secret])
    nodes = [
        helper.make_node("Constant", [], ["c"], value=make_external("t", TensorProto.FLOAT, (1,), "../x", 0, 4)),
        helper.make_node("If", ["p"], ["q"], then_branch=branch, else_branch=branch),
    ]
    assert read_graph(read(model_of(nodes).SerializeToString())).nested_locations == {"/etc/passwd", "../x"}


def broken(**changes):
    tensor = numpy_helper.from_array(np.zeros((2, 2), np.float32), "w")
    for field, value in changes.items():
        if field == "dims":
            del tensor.dims[:]
            tensor.dims.extend(value)
        else:
            setattr(tensor, field, value)
    return model_of(initializers=[tensor]).SerializeToString()


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "has 0"),
        (b"\x08\x08", "has 0"),
        (model_of().SerializeToString() * 2, "has 2"),
        (
            helper.make_model(helper.make_graph([], "g", [], []), opset_imports=[]).SerializeToString()[:2]
            + b"\x3a\x00",
            "operator sets",
        ),
        (model_of().SerializeToString()[:-1], "beyond|cut off|does not end"),
        (b"\x3b", "wire type"),
        (b"\x00\x00", "field number"),
        (b"\xff" * 12, "does not end"),
        (broken(data_type=99), "data type 99"),
        (broken(dims=[3, 2]), "need 24"),
        (broken(dims=[-1]), "impossible shape"),
        (broken(dims=[1 << 40, 1 << 40]), "impossible shape"),
        (broken(data_location=TensorProto.EXTERNAL), "no location"),
    ],
)
def test_a_broken_file_is_refused_with_what_is_wrong(read, data, complaint):
    with pytest.raises(InvalidArgument, match=complaint):
        read_graph(read(data))


@pytest.mark.parametrize("offset", ["-1", "0x10", "1e3", "9" * 30, "", "٣"])
def test_an_offset_that_is_no_number_is_refused(read, make_external, offset):
    data = model_of(initializers=[make_external("w", TensorProto.FLOAT, (1,), "data", offset, 4)]).SerializeToString()
    with pytest.raises(InvalidArgument, match="not a number"):
        read_graph(read(data))


@relaxed
@given(st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=8))
def test_a_damaged_graph_is_refused_or_read_but_never_crashes(read, bundle, changes):
    damaged = bytearray(bundle["model.onnx"])
    for position, value in changes:
        damaged[position % len(damaged)] = value
    with suppress(InvalidArgument):
        graph = read_graph(read(bytes(damaged)))
        assert all(item.size_bytes >= 0 for item in graph.initializers)


@relaxed
@given(st.binary(max_size=120))
def test_noise_is_refused(read, noise):
    with pytest.raises(InvalidArgument):
        read_graph(read(noise))


def wrapped(number, payload):
    """A field of bytes, written by hand: the library refuses to build what it would refuse to read."""
    length, size = b"", len(payload)
    while size >= 0x80:
        length, size = length + bytes([size & 0x7F | 0x80]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + payload


def test_a_deep_nest_of_subgraphs_is_refused_and_does_not_exhaust_the_stack(read):
    graph = b""
    for _ in range(5000):
        graph = wrapped(1, wrapped(5, wrapped(6, graph)))
    with pytest.raises(InvalidArgument, match="cannot be parsed"):
        read_graph(read(wrapped(7, graph) + wrapped(8, b"\x10\x14")))
