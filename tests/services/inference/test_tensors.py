import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from octavo.errors import InvalidArgument, OctavoError, Unimplemented
from octavo.open_inference.open_inference_pb2 import ModelInferRequest, ModelInferResponse
from services.inference import tensors
from services.inference.datatypes import BY_DTYPE, BY_NAME

SHAPES = arrays_of.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
NUMERIC = [name for name in BY_NAME if name != "BYTES"]


def asked(name="x", datatype="FP32", shape=(1,), raw=None, **contents):
    request = ModelInferRequest()
    tensor = request.inputs.add(name=name, datatype=datatype, shape=shape)
    for field, values in contents.items():
        getattr(tensor.contents, field).extend(values)
    if raw is not None:
        request.raw_input_contents.append(raw)
    return request


def returned(array):
    """An array, written as an output and read as an input."""
    response = ModelInferResponse()
    tensors.add_output(response, "x", array)
    (output,) = response.outputs
    request = asked(datatype=output.datatype, shape=output.shape, raw=response.raw_output_contents[0])
    return tensors.read(request)["x"]


@st.composite
def numeric_arrays(draw):
    dtype = BY_NAME[draw(st.sampled_from(NUMERIC))].dtype
    if dtype == ml_dtypes.bfloat16:
        bits = draw(arrays_of.arrays(np.uint16, SHAPES, elements=st.integers(0, 0x7F7F)))
        return bits.view(dtype)
    return draw(arrays_of.arrays(dtype, SHAPES))


@given(numeric_arrays())
def test_numbers_survive_the_wire_to_the_bit(array):
    found = returned(array)
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    assert found.tobytes() == array.tobytes()


@given(st.lists(st.binary(max_size=20), max_size=8))
def test_bytes_survive_the_wire(elements):
    array = np.empty(len(elements), np.object_)
    array[:] = elements
    assert returned(array).tolist() == elements


@given(st.binary(max_size=64), st.sampled_from(list(BY_NAME)), st.lists(st.integers(-1, 2**62), max_size=4))
def test_whatever_comes_is_read_or_refused_with_its_field(content, datatype, shape):
    request = asked(datatype=datatype, shape=shape, raw=content)
    try:
        array = tensors.read(request)["x"]
    except InvalidArgument:
        return
    assert array.shape == tuple(shape)


@pytest.mark.parametrize("name", [name for name, datatype in BY_NAME.items() if datatype.contents])
def test_typed_elements_are_read_for_every_type_that_has_them(name):
    datatype = BY_NAME[name]
    values = [b"1", b"0"] if name == "BYTES" else [1, 0]
    array = tensors.read(asked(datatype=name, shape=[2, 1], **{datatype.contents: values}))["x"]
    assert (array.dtype, array.tolist()) == (datatype.dtype, [[values[0]], [values[1]]])
    assert BY_DTYPE[array.dtype] is datatype


def test_any_byte_but_zero_is_true():
    array = tensors.read(asked(datatype="BOOL", shape=[3], raw=b"\x00\x01\x02"))["x"]
    assert array.view(np.uint8).tolist() == [0, 1, 1]


def test_raw_bytes_are_told_apart_by_input():
    request = asked("a", "INT8", [1], b"\x01")
    request.inputs.add(name="b", datatype="INT8", shape=[2])
    request.raw_input_contents.append(b"\x02\x03")
    assert {name: array.tolist() for name, array in tensors.read(request).items()} == {"a": [1], "b": [2, 3]}


def doubled(request):
    request.inputs.append(request.inputs[0])
    return request


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (asked(datatype="FP8", raw=b""), r"inputs\[0\].datatype: 'FP8' is not a datatype; there are BOOL"),
        (asked(shape=[2], raw=b"1234"), r"4 bytes, where FP32 \[2\] takes 8 \(inputs\[0\]\)"),
        (asked(shape=[-1], raw=b"1234"), "negative size"),
        (asked(shape=[0, 2**62, 2**62], raw=b""), "more than 2147483648 elements"),
        (asked(shape=[1] * 33, raw=b"1234"), "33 dimensions are more than 32"),
        (asked(shape=[2], fp32_contents=[1]), r"1 elements, where its shape \[2\] has 2"),
        (asked(datatype="INT8", int_contents=[300]), "not INT8"),
        (asked(datatype="FP16", fp32_contents=[1]), "FP16 is sent as raw_input_contents only"),
        (asked(int_contents=[1]), "FP32 is sent as fp32_contents or as raw_input_contents"),
        (asked(raw=b"1234", fp32_contents=[1]), "raw_input_contents is set too"),
        (doubled(asked(raw=b"1234")), "'x' is there twice"),
        (ModelInferRequest(raw_input_contents=[b"1"]), "1 entries, of which 1 belong to no input"),
        (asked(datatype="BYTES", raw=b"\x05\x00\x00\x00ab"), "goes beyond the end"),
        (asked(datatype="BYTES", raw=b"\x00"), "goes beyond the end"),
        (asked(datatype="BYTES", shape=[2], raw=b"\x00\x00\x00\x00"), "1 elements, where its shape"),
        (asked(datatype="BYTES", raw=bytes(4 * 9)), r"2 elements or more, where its shape \[1\] has 1"),
    ],
)
def test_a_tensor_that_contradicts_itself_is_refused(request_, says):
    with pytest.raises(InvalidArgument, match=says):
        tensors.read(request_)


def test_shared_memory_is_refused():
    request = asked()
    request.inputs[0].parameters["shared_memory_region"].string_param = "region"
    with pytest.raises(Unimplemented, match="send the bytes themselves") as refusal:
        tensors.read(request)
    assert isinstance(refusal.value, OctavoError)
