"""The element types of tensors: the protocol's names for them, the configuration's, ONNX Runtime's and NumPy's.

One table, because each side has names of its own. Knows nothing of requests or sessions.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from octavo.open_inference import model_config_pb2


@dataclass(frozen=True, slots=True)
class Datatype:
    """One element type. `contents` is the field of InferTensorContents that holds it; empty: raw bytes only.

    BYTES elements are Python objects in an array: `bytes` as they come and go.
    """

    name: str
    config: model_config_pb2.DataType.ValueType
    runtime: str
    dtype: np.dtype[np.generic]
    contents: str


_ROWS = (
    Datatype("BOOL", model_config_pb2.TYPE_BOOL, "tensor(bool)", np.dtype(np.bool_), "bool_contents"),
    Datatype("UINT8", model_config_pb2.TYPE_UINT8, "tensor(uint8)", np.dtype(np.uint8), "uint_contents"),
    Datatype("UINT16", model_config_pb2.TYPE_UINT16, "tensor(uint16)", np.dtype(np.uint16), "uint_contents"),
    Datatype("UINT32", model_config_pb2.TYPE_UINT32, "tensor(uint32)", np.dtype(np.uint32), "uint_contents"),
    Datatype("UINT64", model_config_pb2.TYPE_UINT64, "tensor(uint64)", np.dtype(np.uint64), "uint64_contents"),
    Datatype("INT8", model_config_pb2.TYPE_INT8, "tensor(int8)", np.dtype(np.int8), "int_contents"),
    Datatype("INT16", model_config_pb2.TYPE_INT16, "tensor(int16)", np.dtype(np.int16), "int_contents"),
    Datatype("INT32", model_config_pb2.TYPE_INT32, "tensor(int32)", np.dtype(np.int32), "int_contents"),
    Datatype("INT64", model_config_pb2.TYPE_INT64, "tensor(int64)", np.dtype(np.int64), "int64_contents"),
    Datatype("FP16", model_config_pb2.TYPE_FP16, "tensor(float16)", np.dtype(np.float16), ""),
    Datatype("BF16", model_config_pb2.TYPE_BF16, "tensor(bfloat16)", np.dtype(ml_dtypes.bfloat16), ""),
    Datatype("FP32", model_config_pb2.TYPE_FP32, "tensor(float)", np.dtype(np.float32), "fp32_contents"),
    Datatype("FP64", model_config_pb2.TYPE_FP64, "tensor(double)", np.dtype(np.float64), "fp64_contents"),
    Datatype("BYTES", model_config_pb2.TYPE_STRING, "tensor(string)", np.dtype(np.object_), "bytes_contents"),
)

BY_NAME: Mapping[str, Datatype] = {datatype.name: datatype for datatype in _ROWS}
BY_RUNTIME: Mapping[str, Datatype] = {datatype.runtime: datatype for datatype in _ROWS}
BY_DTYPE: Mapping[np.dtype[np.generic], Datatype] = {datatype.dtype: datatype for datatype in _ROWS}
