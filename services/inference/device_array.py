"""Arrays in a device's memory, bound by address, and copies between them that never touch the host.

Knows bytes and rows; nothing of models.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper

from services.inference.device import Device, open_session

ELEMENT_BYTES: Mapping[int, int] = {
    TensorProto.FLOAT: 4,
    TensorProto.FLOAT16: 2,
    TensorProto.BFLOAT16: 2,
    TensorProto.INT32: 4,
    TensorProto.INT64: 8,
    TensorProto.INT8: 1,
    TensorProto.BOOL: 1,
    TensorProto.DOUBLE: 8,
}


class DeviceArray:
    """An array [rows, …] of one of ONNX's element types, zero at first; it stays where it is.

    Its memory is bytes to the runtime, since numpy has no bfloat16; what it holds is said when it is bound.
    """

    def __init__(self, device: Device, shape: Sequence[int], element_type: int) -> None:
        self.device = device
        self.shape = tuple(shape)
        self.element_type = element_type
        self.row_bytes = math.prod(self.shape[1:]) * ELEMENT_BYTES[element_type]
        size_bytes = self.shape[0] * self.row_bytes
        self._value = ort.OrtValue.ortvalue_from_shape_and_type([size_bytes], np.uint8, device.kind, device.number)
        # Stale memory may hold NaN, which attention multiplies by zero.
        self._value.update_inplace(np.zeros(size_bytes, np.uint8))

    @property
    def size_bytes(self) -> int:
        """Memory of all rows."""
        return self.shape[0] * self.row_bytes

    def address(self, row: int = 0) -> int:
        """Where a row begins."""
        return int(self._value.data_ptr()) + row * self.row_bytes

    def write(self, values: NDArray[np.generic]) -> None:
        """Replaces all of it. Returns when the values may be changed again."""
        self._value.update_inplace(np.ascontiguousarray(values).reshape(-1).view(np.uint8))

    def read(self) -> NDArray[np.uint8]:
        """A copy of all its bytes, [rows, row_bytes]. Waits for nothing that still runs."""
        content: NDArray[np.uint8] = self._value.numpy().copy()
        return content.reshape(self.shape[0], self.row_bytes)

    def bind_input(
        self, binding: ort.IOBinding, name: str, rows: slice = slice(0, 0), *, shape: Sequence[int] = ()
    ) -> None:
        """Makes some rows an input; or the memory of an array of another `shape`, from the first byte on."""
        binding.bind_input(name, *self._place(rows, shape))

    def bind_output(
        self, binding: ort.IOBinding, name: str, rows: slice = slice(0, 0), *, shape: Sequence[int] = ()
    ) -> None:
        """Makes them what an output is written into."""
        binding.bind_output(name, *self._place(rows, shape))

    def _place(self, rows: slice, shape: Sequence[int]) -> tuple[str, int, int, list[int], int]:
        dimensions = list(shape or (rows.stop - rows.start, *self.shape[1:]))
        return self.device.kind, self.device.number, self.element_type, dimensions, self.address(rows.start)


class DeviceCopier:
    """Copies `count` rows of bytes at once, within a device or from it to the host. Used by one thread at a time.

    A graph of nothing but Identity, since the runtime has no copy of part of a value.
    """

    def __init__(self, device: Device, count: int) -> None:
        self._device = device
        self._count = count
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.enable_mem_pattern = False
        self._session = open_session(device, _copies(count), options)

    def copy(self, sources: Sequence[tuple[DeviceArray, int]], targets: Sequence[tuple[DeviceArray, int]]) -> None:
        """Copies each (array, row) of `sources` over that of `targets`, `count` of both."""
        binding = self._bound(sources)
        for index, (array, row) in enumerate(targets):
            place = (self._device.kind, self._device.number, TensorProto.UINT8, [array.row_bytes], array.address(row))
            binding.bind_output(f"target.{index}", *place)
        self._run(binding)

    def fetch(self, array: DeviceArray, row: int) -> NDArray[np.uint8]:
        """The bytes of one row. For a copier of one."""
        fetched = np.empty(array.row_bytes, np.uint8)
        binding = self._bound([(array, row)])
        binding.bind_output("target.0", "cpu", 0, TensorProto.UINT8, fetched.shape, fetched.ctypes.data)
        self._run(binding)
        return fetched

    def _bound(self, sources: Sequence[tuple[DeviceArray, int]]) -> ort.IOBinding:
        binding = self._session.io_binding()
        for index, (array, row) in enumerate(sources):
            place = (self._device.kind, self._device.number, TensorProto.UINT8, [array.row_bytes], array.address(row))
            binding.bind_input(f"source.{index}", *place)
        return binding

    def _run(self, binding: ort.IOBinding) -> None:
        with self._device.turn:
            self._session.run_with_iobinding(binding)


def _copies(count: int) -> bytes:
    numbers = range(count)
    graph = helper.make_graph(
        [helper.make_node("Identity", [f"source.{n}"], [f"target.{n}"]) for n in numbers],
        "copies",
        [helper.make_tensor_value_info(f"source.{n}", TensorProto.UINT8, ["bytes"]) for n in numbers],
        [helper.make_tensor_value_info(f"target.{n}", TensorProto.UINT8, ["bytes"]) for n in numbers],
    )
    opset = helper.make_opsetid("", 21)
    return bytes(helper.make_model(graph, opset_imports=[opset], ir_version=10).SerializeToString())
