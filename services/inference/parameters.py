"""What a request asks for, checked: every wrong field at once, with what would be right.

Knows the contract's fields and limits; nothing of engines.
"""

import math
import secrets
from collections.abc import Mapping
from typing import Any

from octavo.errors import InvalidArgument, Unimplemented
from octavo.v1.errors_pb2 import Reason
from octavo.v1.inference_pb2 import GenerateRequest, GenerationParameters, StreamGenerateRequest
from services.inference.penalties import Bending
from services.inference.sampler import Sampling

STOP_LIMIT = 16
STOP_LENGTH_LIMIT = 256
STOP_TOKEN_LIMIT = 64
BIAS_LIMIT = 1024

# The least and the greatest value, and what is said where a value is outside.
_RANGES: Mapping[str, tuple[float, float, str]] = {
    "temperature": (0, 100, "0 (most probable token) to 100; 0.8 is usual"),
    "top_k": (0, 2**31 - 1, "0 (all tokens) or more; 40 is usual"),
    "top_p": (math.ulp(0), 1, "above 0 and at most 1 (all tokens); 0.95 is usual"),
    "min_p": (0, 1, "0 (all tokens) to 1"),
    "repetition_penalty": (1e-3, 1e3, "above 0; 1 is none and 1.1 is usual"),
    "presence_penalty": (-2, 2, "-2 to 2; 0 is none"),
    "frequency_penalty": (-2, 2, "-2 to 2; 0 is none"),
    "n": (1, 16, "1 to 16"),
    "logprobs": (0, 20, "0 to 20; left out, there are none"),
    "prompt_logprobs": (0, 20, "0 to 20; left out, there are none"),
    "max_tokens": (1, 2**31 - 1, "1 or more; left out, it is what the context has room for"),
}

# Fields of the contract that this server cannot honour yet, with the values that ask for nothing.
_UNBUILT: Mapping[str, tuple[object, ...]] = {
    "min_tokens": (0,),
    "best_of": (1,),
    "structured_output": (),
}


def check(request: GenerateRequest | StreamGenerateRequest) -> None:
    """Raises InvalidArgument with every wrong field, Unimplemented with what this server cannot do yet."""
    wrong = _wrong_ranges(request.parameters) | _wrong_stops(request.parameters) | _wrong_bias(request.parameters)
    if request.HasField("priority") and not -100 <= request.priority <= 100:
        wrong["priority"] = f"{request.priority} is not between -100 and 100; 0 is usual"
    if wrong:
        raise InvalidArgument.fields(wrong)
    _refuse_unbuilt(request)


def samplings(parameters: GenerationParameters, defaults: Mapping[str, float]) -> list[Sampling]:
    """How the tokens of each of the `n` completions are chosen; with a seed of the server's own where there is none.

    `defaults` are the model's own, for what the request leaves out.
    """
    given = _given(parameters, {name: name for name in ("temperature", "top_k", "top_p", "min_p", "seed")})
    bending = Bending(bias=dict(parameters.logit_bias), **_given(parameters, _PENALTIES))
    settings: dict[str, Any] = {"seed": secrets.randbits(64), "bending": bending} | dict(defaults) | given
    return [Sampling(**settings, stream=stream) for stream in range(parameters.n or 1)]


_PENALTIES: Mapping[str, str] = {
    "repetition": "repetition_penalty",
    "presence": "presence_penalty",
    "frequency": "frequency_penalty",
}


def sampling_defaults(generation_config: Mapping[str, Any]) -> dict[str, float]:
    """What a generation_config.json says of sampling, as far as it is possible."""
    if generation_config.get("do_sample") is False:
        return {"temperature": 0.0}
    return {
        name: generation_config[name]
        for name in ("temperature", "top_k", "top_p", "min_p")
        if isinstance(generation_config.get(name), int | float)
        and _RANGES[name][0] <= generation_config[name] <= _RANGES[name][1]
    }


def _given(parameters: GenerationParameters, fields: Mapping[str, str]) -> dict[str, Any]:
    """Those of `fields` (our name to the contract's) that the request sets."""
    return {
        ours: getattr(parameters, field)
        for ours, field in fields.items()
        if parameters.HasField(field)  # type: ignore[arg-type]
    }


def _wrong_bias(parameters: GenerationParameters) -> dict[str, str]:
    if len(parameters.logit_bias) > BIAS_LIMIT:
        return {"parameters.logit_bias": f"{len(parameters.logit_bias)} tokens are more than {BIAS_LIMIT}"}
    return {
        f"parameters.logit_bias[{token_id}]": f"{bias:g} is not between -100 and 100"
        for token_id, bias in parameters.logit_bias.items()
        if not -100 <= bias <= 100
    }


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


def _refuse_unbuilt(request: GenerateRequest | StreamGenerateRequest) -> None:
    parameters = request.parameters
    asked = [
        name
        for name, neutral in _UNBUILT.items()
        if parameters.HasField(name) and getattr(parameters, name) not in neutral  # type: ignore[arg-type]
    ]
    if parameters.HasField("prompt_logprobs") and isinstance(request, StreamGenerateRequest):
        asked.append("prompt_logprobs")
    if asked:
        fields = ", ".join(f"parameters.{name}" for name in asked)
        raise Unimplemented(
            Reason.REASON_NOT_IMPLEMENTED,
            f"this server cannot honour {fields} in {type(request).__name__} yet; leave it out",
            fields=fields,
        )
