"""Text as tensors: a request of the Open Inference Protocol as one of ours, and our answer as its tensor of BYTES."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from octavo.errors import InvalidArgument
from octavo.open_inference.open_inference_pb2 import ModelInferRequest, ModelInferResponse
from octavo.v1.errors_pb2 import Reason
from octavo.v1.inference_pb2 import FinishReason, GenerateRequest, StreamGenerateRequest, Usage
from services.inference import tensors
from services.inference.call_terms import own_parameters, truth, whole

INPUT, OUTPUT = "text_input", "text_output"


def read(request: ModelInferRequest, asked: GenerateRequest | StreamGenerateRequest) -> None:
    """Fills prompt and parameters of `asked`. Raises InvalidArgument naming what is wrong."""
    arrays = tensors.read(request)
    if list(arrays) != [INPUT] or arrays[INPUT].dtype != np.object_:
        raise InvalidArgument.field("inputs", f"send one input, {INPUT!r}, of datatype BYTES and shape [1]")
    for index, output in enumerate(request.outputs):
        if output.name != OUTPUT:
            raise InvalidArgument.field(f"outputs[{index}].name", f"{output.name!r} is not an output; {OUTPUT!r} is")
    texts = arrays[INPUT].ravel().tolist()
    if len(texts) != 1:
        raise InvalidArgument.field("inputs[0]", f"{len(texts)} texts; send one in each request")
    try:
        asked.prompt = texts[0].decode()
    except UnicodeDecodeError as error:
        raise InvalidArgument.field("inputs[0]", f"not UTF-8 at byte {error.start}") from None
    for name, value in own_parameters(request).items():
        _set(asked, name, value)


def answer(request: ModelInferRequest, version: str, texts: list[str]) -> ModelInferResponse:
    """An answer with one BYTES tensor; `version` is `models/poet/versions/3`, or empty for the request's own."""
    response = empty_answer(request, version)
    tensors.add_output(response, OUTPUT, np.array(texts, np.object_))
    return response


def empty_answer(request: ModelInferRequest, version: str = "") -> ModelInferResponse:
    """An answer without tensors, with the request's names."""
    number = version.rpartition("/")[2] or request.model_version
    return ModelInferResponse(model_name=request.model_name, model_version=number, id=request.id)


def add_ending(response: ModelInferResponse, reason: FinishReason.ValueType, usage: Usage) -> None:
    """Says how a text ended and what it took: `finish_reason`, `prompt_tokens` and `completion_tokens`."""
    word = FinishReason.Name(reason).removeprefix("FINISH_REASON_").lower()
    response.parameters["finish_reason"].string_param = word
    response.parameters["prompt_tokens"].int64_param = usage.prompt_tokens
    response.parameters["completion_tokens"].int64_param = usage.completion_tokens


_READERS: Mapping[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("temperature", "top_p", "min_p"), float),
    **dict.fromkeys(("repetition_penalty", "presence_penalty", "frequency_penalty"), float),
    **dict.fromkeys(("top_k", "seed", "max_tokens", "min_tokens", "best_of"), whole),
    **dict.fromkeys(("ignore_eos", "echo"), truth),
}

_FORMS = ("json_schema", "regex", "grammar")


def _set(asked: GenerateRequest | StreamGenerateRequest, name: str, value: Any) -> None:
    field = f"parameters[{name!r}]"
    if name == "stop":
        asked.parameters.stop.append(str(value))
        return
    if name in _FORMS:
        if asked.parameters.HasField("structured_output"):
            raise InvalidArgument.field(field, f"is one form too many; send one of {', '.join(_FORMS)}")
        setattr(asked.parameters.structured_output, name, str(value))
        return
    if name not in _READERS:
        known = ", ".join(sorted((*_READERS, *_FORMS, "stop")))
        raise InvalidArgument.field(field, f"is not a parameter; there are {known}", reason=Reason.REASON_UNKNOWN_FIELD)
    try:
        setattr(asked.parameters, name, _READERS[name](value))
    except (ValueError, KeyError, OverflowError):
        raise InvalidArgument.field(field, f"{value!r} is not a value of it") from None
