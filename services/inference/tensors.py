"""The Open Inference Protocol's tensors: from the wire into arrays, and from arrays onto the wire.

Elements come as raw little-endian bytes (BYTES: a length of 32 bits before each element) or typed; they leave raw,
since clients read nothing else. Knows nothing of models: whether a tensor is the right one is asked elsewhere.
"""

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.errors import InvalidArgument, Unimplemented
from octavo.open_inference.open_inference_pb2 import InferParameter, ModelInferRequest, ModelInferResponse
from octavo.v1.errors_pb2 import Reason
from services.inference.datatypes import BY_DTYPE, BY_NAME, Datatype

Array = NDArray[Any]
InputTensor = ModelInferRequest.InferInputTensor

INLINE_ELEMENTS = 4096
RANK_LIMIT = 32
ELEMENT_LIMIT = 1 << 31
_LENGTH_BYTES = 4


def read(request: ModelInferRequest) -> dict[str, Array]:
    """The inputs by name, in the order sent; BYTES as objects of `bytes`.

    Raises InvalidArgument where a tensor contradicts itself, Unimplemented for shared memory.
    """
    raw = enumerate(request.raw_input_contents)
    is_raw = bool(request.raw_input_contents)
    arrays: dict[str, Array] = {}
    for index, tensor in enumerate(request.inputs):
        field = f"inputs[{index}]"
        if tensor.name in arrays:
            raise InvalidArgument.field(f"{field}.name", f"{tensor.name!r} is there twice")
        refuse_shared_memory(tensor.parameters, field)
        datatype, shape = _datatype(tensor, field), _shape(tensor, field)
        if is_raw and tensor.HasField("contents"):
            raise InvalidArgument.field(f"{field}.contents", "raw_input_contents is set too; send one of them")
        arrays[tensor.name] = (
            _from_raw(raw, datatype, shape, field) if is_raw else _typed(tensor, datatype, shape, field)
        )
    if left := sum(1 for _ in raw):
        given = len(request.raw_input_contents)
        raise InvalidArgument.field("raw_input_contents", f"{given} entries, of which {left} belong to no input")
    return arrays


def is_long(request: ModelInferRequest) -> bool:
    """Whether reading takes more than a millisecond or so: many elements that Python has to look at one by one."""
    is_raw = bool(request.raw_input_contents)
    slow = (prod(tensor.shape) for tensor in request.inputs if tensor.datatype == "BYTES" or not is_raw)
    return sum(slow) > INLINE_ELEMENTS


def add_output(response: ModelInferResponse, name: str, array: Array) -> None:
    """Adds an output to an answer, in raw bytes. Objects are `str` or `bytes`."""
    datatype = BY_DTYPE[array.dtype]
    response.outputs.add(name=name, datatype=datatype.name, shape=array.shape)
    response.raw_output_contents.append(framed(array) if datatype.name == "BYTES" else array.tobytes())


def refuse_shared_memory(parameters: Mapping[str, InferParameter], field: str) -> None:
    """Raises Unimplemented where a tensor lies in shared memory."""
    if any(name.startswith("shared_memory") for name in parameters):
        raise Unimplemented(
            Reason.REASON_NOT_IMPLEMENTED, f"{field}: shared memory is not served; send the bytes themselves"
        )


def framed(array: Array) -> bytes:
    """BYTES elements in row-major order, each behind its length."""
    parts: list[bytes] = []
    for element in array.flat:
        data = element.encode() if isinstance(element, str) else bytes(element)
        parts += (len(data).to_bytes(_LENGTH_BYTES, "little"), data)
    return b"".join(parts)


def _datatype(tensor: InputTensor, field: str) -> Datatype:
    if tensor.datatype not in BY_NAME:
        raise InvalidArgument.field(
            f"{field}.datatype", f"{tensor.datatype!r} is not a datatype; there are {', '.join(BY_NAME)}"
        )
    return BY_NAME[tensor.datatype]


def _shape(tensor: InputTensor, field: str) -> tuple[int, ...]:
    shape = tuple(tensor.shape)
    if len(shape) > RANK_LIMIT:
        raise InvalidArgument.field(f"{field}.shape", f"{len(shape)} dimensions are more than {RANK_LIMIT}")
    if any(size < 0 for size in shape):
        raise InvalidArgument.field(f"{field}.shape", f"{list(shape)} has a negative size; send the sizes as they are")
    # With a 0 among them huge sizes hold no element, and yet are more than an array can be.
    if prod(size or 1 for size in shape) > ELEMENT_LIMIT:
        raise InvalidArgument.field(f"{field}.shape", f"{list(shape)} has more than {ELEMENT_LIMIT} elements")
    return shape


def _from_raw(raw: Iterator[tuple[int, bytes]], datatype: Datatype, shape: tuple[int, ...], field: str) -> Array:
    index, content = next(raw, (-1, b""))
    if index < 0:
        raise InvalidArgument.field("raw_input_contents", f"has no entry for {field}; send one for each input")
    place = f"raw_input_contents[{index}]"
    if datatype.name == "BYTES":
        return _objects(_elements(content, prod(shape), place), shape, field)
    expected = prod(shape) * datatype.dtype.itemsize
    if len(content) != expected:
        raise InvalidArgument.field(
            place, f"{len(content)} bytes, where {datatype.name} {list(shape)} takes {expected} ({field})"
        )
    if datatype.name == "BOOL":  # any byte but 0 is true; NumPy itself would keep the byte
        return np.not_equal(np.frombuffer(content, np.uint8), 0).reshape(shape)
    little = datatype.dtype.newbyteorder("<") if datatype.name != "BF16" else datatype.dtype
    return np.frombuffer(content, little).reshape(shape)


def _elements(content: bytes, count: int, place: str) -> list[bytes]:
    """The elements: one more than `count` if there are more, so that a lie costs no more than the truth."""
    elements: list[bytes] = []
    at = 0
    while at < len(content) and len(elements) <= count:
        size = int.from_bytes(content[at : at + _LENGTH_BYTES], "little")
        at += _LENGTH_BYTES
        if at + size > len(content):
            raise InvalidArgument.field(place, f"an element of {size} bytes goes beyond the end")
        elements.append(content[at : at + size])
        at += size
    return elements


def _typed(tensor: InputTensor, datatype: Datatype, shape: tuple[int, ...], field: str) -> Array:
    filled = [entry.name for entry, _ in tensor.contents.ListFields()]
    if not datatype.contents:
        raise InvalidArgument.field(f"{field}.contents", f"{datatype.name} is sent as raw_input_contents only")
    if strays := [name for name in filled if name != datatype.contents]:
        raise InvalidArgument.field(
            f"{field}.contents.{strays[0]}", f"{datatype.name} is sent as {datatype.contents} or as raw_input_contents"
        )
    values = getattr(tensor.contents, datatype.contents)
    if datatype.name == "BYTES":
        return _objects(list(values), shape, field)
    if len(values) != prod(shape):
        raise InvalidArgument.field(f"{field}.contents", _count(len(values), shape))
    try:
        return np.array(list(values), datatype.dtype).reshape(shape)
    except OverflowError as error:
        raise InvalidArgument.field(f"{field}.contents", f"not {datatype.name}: {error}") from None


def _objects(elements: list[bytes], shape: tuple[int, ...], field: str) -> Array:
    if len(elements) != prod(shape):
        found = (
            f"{min(len(elements), prod(shape) + 1)} elements or more"
            if len(elements) > prod(shape)
            else f"{len(elements)} elements"
        )
        raise InvalidArgument.field(field, f"{found}, where its shape {list(shape)} has {prod(shape)}")
    array = np.empty(len(elements), np.object_)
    array[:] = elements
    return array.reshape(shape)


def _count(found: int, shape: tuple[int, ...]) -> str:
    return f"{found} elements, where its shape {list(shape)} has {prod(shape)}"
