"""A version's graph on a CUDA device: the served graph in a form whose runs can be captured and replayed.

A capture records host addresses that a kernel copies from, and replays read them again when they hold something else.
GatherND and Split copy so in releases before their repair (onnxruntime pull requests 32120 and 32121), hence both are
written here in nodes that take everything by value: Flatten with Gather, and Slice. So `answered` becomes int64
[answers], each token's place in the run: row times width plus index. Nothing else changes, in no bit.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from octavo.errors import FailedPrecondition
from octavo.formats.architecture import Architecture
from octavo.v1.errors_pb2 import Reason
from services.inference.device import Device, open_session
from services.inference.device_array import ELEMENT_BYTES
from services.inference.device_cache import DeviceCache
from services.inference.replayer import Replayer
from services.inference.served_graph import check_contract, refusal, session_options

CUDA_CACHE_TYPES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
"""What GroupQueryAttention computes in on CUDA; float32 has no kernel there."""


class DeviceGraph:
    """An open graph; `runs` runs it. Raises FailedPrecondition where it is not one that the device can run."""

    def __init__(
        self, path: Path, architecture: Architecture, device: Device, *, threads: int = 1, attention_kernels: int = 0
    ) -> None:
        self.architecture = architecture
        self.device = device
        model = onnx.load(path, load_external_data=False)
        inputs = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
        check_contract(inputs.keys(), {value.name for value in model.graph.output}, architecture)
        self.has_positions = "position_ids" in inputs
        self.cache_type = inputs["past_key.0"]
        if device.kind == "cuda" and self.cache_type not in CUDA_CACHE_TYPES:
            raise refusal("its attention does not compute in 16 bits, which CUDA's asks for")
        options = session_options(threads, spin_us=0)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
        try:
            session = open_session(
                device,
                replayable(model).SerializeToString(),
                options,
                replays=device.replays,
                attention_kernels=attention_kernels,
            )
        except Exception as error:  # the runtime raises its own classes
            raise FailedPrecondition(
                Reason.REASON_MODEL_REFUSED, f"ONNX Runtime cannot load {path.name} on {device.name}: {error}"
            ) from error
        self.runs = Replayer(session, device)

    def new_cache(self, *, slots: int, capacity: int) -> DeviceCache:
        """An empty cache of the graph's own element type."""
        return DeviceCache(self.architecture, self.device, slots=slots, capacity=capacity, element_type=self.cache_type)

    def row_size_bytes(self, capacity: int) -> int:
        """Memory of one row of such a cache, in bytes."""
        element_bytes = ELEMENT_BYTES[self.cache_type]
        return capacity * self.architecture.kv_cache_bytes_per_token(element_bytes=element_bytes)

    def bind_prompt(
        self, binding: ort.IOBinding, token_ids: NDArray[np.int64], lengths: NDArray[np.int32], start: int
    ) -> None:
        """Makes `token_ids` [rows, width] at the positions `start`… the tokens of a run that attends with `lengths`.

        The runtime copies what lies on the host to the device.
        """
        rows, width = token_ids.shape
        binding.bind_cpu_input("input_ids", token_ids)
        if self.has_positions:
            last = self.architecture.context_length - 1
            positions = np.minimum(np.arange(start, start + width, dtype=np.int64), last)
            binding.bind_cpu_input("position_ids", np.tile(positions, (rows, 1)))
        binding.bind_cpu_input("seqlens_k", lengths)
        binding.bind_cpu_input("total_sequence_length", np.array(start + width, np.int32))

    def bind_cache(self, binding: ort.IOBinding, cache: DeviceCache, rows: slice) -> None:
        """Past and present are one memory: the kernel then writes in place instead of copying the whole cache."""
        for name, tensor in cache.tensors.items():
            tensor.bind_input(binding, f"past_{name}", rows)
            tensor.bind_output(binding, f"present_{name}", rows)


def replayable(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model, safe to be captured. Changes `model`."""
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        match node.op_type:
            case "GatherND":
                nodes += _gathered(node)
            case "Split":
                nodes += _sliced(node, numpy_helper.to_array(constants[node.input[1]]), graph)
            case _:
                nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    for value in graph.input:
        if value.name == "answered":
            value.CopyFrom(helper.make_tensor_value_info("answered", TensorProto.INT64, ["answers"]))
    return model


def _gathered(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Rows of [batch, sequence, width] at places of the batch and sequence together."""
    flat = f"{node.output[0]}.flat"
    return [
        helper.make_node("Flatten", [node.input[0]], [flat], name=flat, axis=2),
        helper.make_node("Gather", [flat, node.input[1]], list(node.output), name=node.name, axis=0),
    ]


def _sliced(node: onnx.NodeProto, widths: NDArray[Any], graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The parts of the last axis, `widths` wide, one Slice each."""
    nodes = []
    borders = np.concatenate([[0], np.cumsum(widths)])
    for index, output in enumerate(node.output):
        edges = {"start": borders[index], "end": borders[index + 1], "axis": -1}
        names = [f"{output}.{edge}" for edge in edges]
        graph.initializer.extend(
            numpy_helper.from_array(np.array([value], np.int64), name)
            for name, value in zip(names, edges.values(), strict=True)
        )
        nodes.append(helper.make_node("Slice", [node.input[0], *names], [output], name=output))
    return nodes
