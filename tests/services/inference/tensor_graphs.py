"""Small ONNX graphs of tensors, as somebody else might have made them."""

import onnx
from onnx import TensorProto, helper

TYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "BF16": TensorProto.BFLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}


def value(name, datatype, shape):
    return helper.make_tensor_value_info(name, TYPES[datatype], shape)


def save(path, nodes, inputs, outputs, initializers=()):
    """Writes a graph to `path`, a file or a directory that gets a model.onnx."""
    if path.suffix != ".onnx":
        path.mkdir(parents=True, exist_ok=True)
        path = path / "model.onnx"
    graph = helper.make_graph(nodes, "graph", inputs, outputs, list(initializers))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return path


def identity(path, datatype="FP32", shape=("batch", 3)):
    """y = x."""
    node = helper.make_node("Identity", ["x"], ["y"])
    return save(path, [node], [value("x", datatype, shape)], [value("y", datatype, shape)])


def every_type(path):
    """Each input `i_TYPE` comes out as `o_TYPE`, but for BYTES: they cannot share a run with BF16."""
    types = [name for name in TYPES if name != "BYTES"]
    nodes = [helper.make_node("Identity", [f"i_{name}"], [f"o_{name}"]) for name in types]
    inputs = [value(f"i_{name}", name, ["batch", 2]) for name in types]
    outputs = [value(f"o_{name}", name, ["batch", 2]) for name in types]
    return save(path, nodes, inputs, outputs)


def affine(path, shape=("batch", "width")):
    """y = 2 a + b, and twice = 2 a: both by row."""
    nodes = [helper.make_node("Mul", ["a", "two"], ["twice"]), helper.make_node("Add", ["twice", "b"], ["y"])]
    two = helper.make_tensor("two", TensorProto.FLOAT, [], [2.0])
    names = ("a", "b"), ("y", "twice")
    return save(path, nodes, *([value(name, "FP32", shape) for name in group] for group in names), [two])


def centred(path):
    """y = x less the mean over the batch: no row is its own."""
    nodes = [
        helper.make_node("ReduceMean", ["x", "axes"], ["mean"], keepdims=1),
        helper.make_node("Sub", ["x", "mean"], ["y"]),
    ]
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [0])
    return save(path, nodes, [value("x", "FP32", ["batch", 3])], [value("y", "FP32", ["batch", 3])], [axes])


def lookup(path):
    """y = table[index], a table of three numbers: an index beyond it cannot be run."""
    table = helper.make_tensor("table", TensorProto.FLOAT, [3], [10.0, 20.0, 30.0])
    node = helper.make_node("Gather", ["table", "index"], ["y"], axis=0)
    return save(path, [node], [value("index", "INT64", ["batch", 1])], [value("y", "FP32", ["batch", 1])], [table])


def endless(path):
    """Counts without end where x is above 1, and a few times otherwise."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["going"], ["goes_on"]), helper.make_node("Add", ["sum", "sum"], ["more"])],
        "body",
        [
            value("turn", "INT64", []),
            value("going", "BOOL", []),
            value("sum", "FP32", ["batch", 1]),
        ],
        [value("goes_on", "BOOL", []), value("more", "FP32", ["batch", 1])],
    )
    one = helper.make_tensor("one", TensorProto.FLOAT, [], [1.0])
    turns = helper.make_tensor("turns", TensorProto.INT64, [], [2**62])
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["peak"], keepdims=0),
        helper.make_node("Greater", ["peak", "one"], ["is_high"]),
        helper.make_node("Loop", ["turns", "is_high", "x"], ["y"], body=body),
    ]
    return save(path, nodes, [value("x", "FP32", ["batch", 1])], [value("y", "FP32", ["batch", 1])], [one, turns])


def beside(path, location):
    """y = x + w, the elements of w in a file of their own."""
    weight = onnx.TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2], data_location=onnx.TensorProto.EXTERNAL)
    for key, text in (("location", location), ("offset", "0"), ("length", "8")):
        weight.external_data.add(key=key, value=text)
    node = helper.make_node("Add", ["x", "w"], ["y"])
    return save(path, [node], [value("x", "FP32", ["batch", 2])], [value("y", "FP32", ["batch", 2])], [weight])
