"""The Open Inference Protocol's tensors of text: read into our requests, written as its answers.

BYTES travel as little-endian length (32 bits) and bytes, element by element, or typed. What clients send as
parameters is read leniently: older ones know no floating-point parameters and send text.
"""

from collections.abc import Callable, Mapping
from typing import Any

from octavo.errors import InvalidArgument, Unimplemented
from octavo.open_inference.open_inference_pb2 import InferParameter, ModelInferRequest, ModelInferResponse
from octavo.v1.errors_pb2 import Reason
from octavo.v1.inference_pb2 import GenerateRequest, StreamGenerateRequest

INPUT, OUTPUT = "text_input", "text_output"

_LENGTH_BYTES = 4
_RESERVED = ("triton_", "sequence_", "binary_data_output", "headers", "priority", "timeout")


def read(request: ModelInferRequest, asked: GenerateRequest | StreamGenerateRequest) -> None:
    """Fills prompt and parameters of `asked`. Raises InvalidArgument naming what is wrong."""
    if len(request.inputs) != 1 or request.inputs[0].name != INPUT or request.inputs[0].datatype != "BYTES":
        raise InvalidArgument.field("inputs", f"send one input, {INPUT!r}, of datatype BYTES and shape [1]")
    if request.inputs[0].parameters:
        raise Unimplemented(Reason.REASON_NOT_IMPLEMENTED, "shared memory is not served; send the bytes themselves")
    elements = _raw(request.raw_input_contents[0]) if request.raw_input_contents else _typed(request)
    if len(elements) != 1:
        raise InvalidArgument.field("inputs[0]", f"{len(elements)} texts; send one in each request")
    try:
        asked.prompt = elements[0].decode()
    except UnicodeDecodeError as error:
        raise InvalidArgument.field("inputs[0]", f"not UTF-8 at byte {error.start}") from None
    for name, parameter in request.parameters.items():
        if not name.startswith(_RESERVED):
            _set(asked, name, parameter)


def answer(request: ModelInferRequest, version: str, texts: list[str]) -> ModelInferResponse:
    """An answer with one BYTES tensor; `version` is `models/poet/versions/3`, or empty for the request's own."""
    content = b"".join(len(data := text.encode()).to_bytes(_LENGTH_BYTES, "little") + data for text in texts)
    number = version.rpartition("/")[2] or request.model_version
    output = ModelInferResponse.InferOutputTensor(name=OUTPUT, datatype="BYTES", shape=[len(texts)])
    return ModelInferResponse(
        model_name=request.model_name,
        model_version=number,
        id=request.id,
        outputs=[output],
        raw_output_contents=[content],
    )


def _typed(request: ModelInferRequest) -> list[bytes]:
    return list(request.inputs[0].contents.bytes_contents)


def _raw(content: bytes) -> list[bytes]:
    elements, at = [], 0
    while at < len(content):
        size = int.from_bytes(content[at : at + _LENGTH_BYTES], "little")
        at += _LENGTH_BYTES
        if at + size > len(content):
            raise InvalidArgument.field("raw_input_contents[0]", f"an element of {size} bytes goes beyond the end")
        elements.append(content[at : at + size])
        at += size
    return elements


def _whole(value: Any) -> int:
    number = float(value)
    if number != int(number):
        raise ValueError
    return int(value)


def _truth(value: Any) -> bool:
    return {"true": True, "1": True, "false": False, "0": False}[str(value).lower()]


_READERS: Mapping[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("temperature", "top_p", "min_p"), float),
    **dict.fromkeys(("repetition_penalty", "presence_penalty", "frequency_penalty"), float),
    **dict.fromkeys(("top_k", "seed", "max_tokens"), _whole),
    **dict.fromkeys(("ignore_eos", "echo"), _truth),
}


def _set(asked: GenerateRequest | StreamGenerateRequest, name: str, parameter: InferParameter) -> None:
    kind = parameter.WhichOneof("parameter_choice")
    value = getattr(parameter, kind) if kind else ""
    field = f"parameters[{name!r}]"
    if name == "stop":
        asked.parameters.stop.append(str(value))
        return
    if name not in _READERS:
        known = ", ".join(sorted((*_READERS, "stop")))
        raise InvalidArgument.field(field, f"is not a parameter; there are {known}", reason=Reason.REASON_UNKNOWN_FIELD)
    try:
        setattr(asked.parameters, name, _READERS[name](value))
    except (ValueError, KeyError, OverflowError):
        raise InvalidArgument.field(field, f"{value!r} is not a value of it") from None
