"""What a request asks for, checked: every wrong field at once, with what would be right.

Knows the contract's fields and limits; nothing of engines.
"""

import math
import secrets
from collections.abc import Mapping
from typing import Any

from octavo.errors import InvalidArgument
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
    "best_of": (1, 16, "1 to 16"),
    "logprobs": (0, 20, "0 to 20; left out, there are none"),
    "prompt_logprobs": (0, 20, "0 to 20; left out, there are none"),
    "max_tokens": (1, 2**31 - 1, "1 or more; left out, it is what the context has room for"),
    "min_tokens": (0, 2**31 - 1, "0 (none) or more"),
}


def check(request: GenerateRequest | StreamGenerateRequest) -> None:
    """Raises InvalidArgument with every wrong field."""
    parameters = request.parameters
    wrong = _contradictions(parameters, is_streaming=isinstance(request, StreamGenerateRequest))
    wrong |= _wrong_ranges(parameters) | _wrong_stops(parameters) | _wrong_bias(parameters)
    if request.HasField("priority") and not -100 <= request.priority <= 100:
        wrong["priority"] = f"{request.priority} is not between -100 and 100; 0 is usual"
    if wrong:
        raise InvalidArgument.fields(wrong)


def samplings(parameters: GenerationParameters, defaults: Mapping[str, float]) -> list[Sampling]:
    """How the tokens of each completion are chosen; with a seed of the server's own where there is none.

    There are `best_of` of them where the request says so, else `n`. `defaults` are the model's own, for what the
    request leaves out.
    """
    given = _given(parameters, {name: name for name in ("temperature", "top_k", "top_p", "min_p", "seed")})
    bending = Bending(bias=dict(parameters.logit_bias), **_given(parameters, _PENALTIES))
    settings: dict[str, Any] = {"seed": secrets.randbits(64), "bending": bending} | dict(defaults) | given
    return [Sampling(**settings, stream=stream) for stream in range(parameters.best_of or parameters.n or 1)]


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


def _contradictions(parameters: GenerationParameters, *, is_streaming: bool) -> dict[str, str]:
    """Fields that are possible, but not together."""
    wrong = {}
    n = parameters.n or 1
    if parameters.HasField("best_of") and parameters.best_of < n:
        wrong["parameters.best_of"] = f"{parameters.best_of} are fewer than the {n} that n wants; send {n} or more"
    elif is_streaming and parameters.best_of > n:
        wrong["parameters.best_of"] = "which is best shows at the end: leave it out of a stream, or call Generate"
    if 0 < parameters.max_tokens < parameters.min_tokens:
        wrong["parameters.min_tokens"] = f"{parameters.min_tokens} is above max_tokens, {parameters.max_tokens}"
    if parameters.HasField("structured_output"):
        if not parameters.structured_output.WhichOneof("form"):
            wrong["parameters.structured_output"] = "no form; send one of json_schema, regex, grammar and choices"
        if parameters.min_tokens:
            wrong["parameters.min_tokens"] = "structured_output says where a text may end; say the length in the form"
    return wrong
