"""What a request asks for, checked: every wrong field at once, with what would be right.

Knows the contract's fields and limits; nothing of engines.
"""

import math
import secrets
from collections.abc import Mapping

from octavo.errors import InvalidArgument, Unimplemented
from octavo.v1.errors_pb2 import Reason
from octavo.v1.inference_pb2 import GenerateRequest, GenerationParameters, StreamGenerateRequest
from services.inference.sampler import Sampling

STOP_LIMIT = 16
STOP_LENGTH_LIMIT = 256
STOP_TOKEN_LIMIT = 64

# The least and the greatest value, and what is said where a value is outside.
_RANGES: Mapping[str, tuple[float, float, str]] = {
    "temperature": (0, 100, "0 (most probable token) to 100; 0.8 is usual"),
    "top_k": (0, 2**31 - 1, "0 (all tokens) or more; 40 is usual"),
    "top_p": (math.ulp(0), 1, "above 0 and at most 1 (all tokens); 0.95 is usual"),
    "min_p": (0, 1, "0 (all tokens) to 1"),
    "max_tokens": (1, 2**31 - 1, "1 or more; left out, it is what the context has room for"),
}

# Fields of the contract that this server cannot honour yet, with the values that ask for nothing.
_UNBUILT: Mapping[str, tuple[object, ...]] = {
    "repetition_penalty": (1.0,),
    "presence_penalty": (0.0,),
    "frequency_penalty": (0.0,),
    "min_tokens": (0,),
    "n": (1,),
    "best_of": (1,),
    "logprobs": (),
    "prompt_logprobs": (),
    "echo": (False,),
    "structured_output": (),
}


def check(request: GenerateRequest | StreamGenerateRequest) -> None:
    """Raises InvalidArgument with every wrong field, Unimplemented with what this server cannot do yet."""
    wrong = _wrong_ranges(request.parameters) | _wrong_stops(request.parameters)
    if request.HasField("priority") and not -100 <= request.priority <= 100:
        wrong["priority"] = f"{request.priority} is not between -100 and 100; 0 is usual"
    if wrong:
        raise InvalidArgument.fields(wrong)
    _refuse_unbuilt(request.parameters)


def sampling(parameters: GenerationParameters) -> Sampling:
    """How tokens are chosen; with a seed of the server's own where the request has none."""
    given = {
        name: getattr(parameters, name)
        for name in ("temperature", "top_k", "top_p", "min_p", "seed")
        if parameters.HasField(name)
    }
    return Sampling(**({"seed": secrets.randbits(64)} | given))


def _wrong_ranges(parameters: GenerationParameters) -> dict[str, str]:
    wrong = {}
    for name, (least, greatest, right) in _RANGES.items():
        value = getattr(parameters, name)
        # Written so that NaN, which compares with nothing, is wrong too.
        if parameters.HasField(name) and not least <= value <= greatest:  # type: ignore[arg-type]
            wrong[f"parameters.{name}"] = f"{value:g} is not {right}"
    return wrong


def _wrong_stops(parameters: GenerationParameters) -> dict[str, str]:
    wrong = {}
    if len(parameters.stop) > STOP_LIMIT:
        wrong["parameters.stop"] = f"{len(parameters.stop)} texts are more than {STOP_LIMIT}"
    if len(parameters.stop_token_ids) > STOP_TOKEN_LIMIT:
        wrong["parameters.stop_token_ids"] = f"{len(parameters.stop_token_ids)} tokens are more than {STOP_TOKEN_LIMIT}"
    for index, stop in enumerate(parameters.stop[:STOP_LIMIT]):
        if not 1 <= len(stop) <= STOP_LENGTH_LIMIT:
            wrong[f"parameters.stop[{index}]"] = f"{len(stop)} characters; a stop has 1 to {STOP_LENGTH_LIMIT}"
    return wrong


def _refuse_unbuilt(parameters: GenerationParameters) -> None:
    asked = [
        name
        for name, neutral in _UNBUILT.items()
        if parameters.HasField(name) and getattr(parameters, name) not in neutral  # type: ignore[arg-type]
    ]
    if parameters.logit_bias:
        asked.append("logit_bias")
    if asked:
        fields = ", ".join(f"parameters.{name}" for name in asked)
        raise Unimplemented(
            Reason.REASON_NOT_IMPLEMENTED, f"this server cannot honour {fields} yet; leave it out", fields=fields
        )
