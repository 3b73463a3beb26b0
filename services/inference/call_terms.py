"""What a request of the Open Inference Protocol says of how it is to be served: how urgent, how long, how it ends.

Clients send these among the parameters under reserved names. Values are read leniently: older clients know no
floating-point parameters and send text.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from octavo.errors import InvalidArgument, Unimplemented
from octavo.open_inference.open_inference_pb2 import InferParameter, ModelInferRequest
from octavo.v1.errors_pb2 import Reason

PRIORITY_LEVELS = 201
"""The protocol counts from 1, the most urgent, on; ours go from 100, the most urgent, to -100."""
USUAL_LEVEL = 101
SECONDS_LIMIT = 86_400

_RESERVED = ("triton_", "sequence_", "binary_data_output", "headers", "priority", "timeout")


@dataclass(frozen=True, slots=True)
class CallTerms:
    """`priority` is ours, -100 to 100; `timeout_s` counts from arrival."""

    priority: int
    timeout_s: float | None
    wants_final: bool
    """Whether an empty last answer is to say that it was the last."""


def read(request: ModelInferRequest) -> CallTerms:
    """The terms of a request. Raises InvalidArgument for values that are none, Unimplemented for sequences."""
    parameters = request.parameters
    if any(
        _value(parameters[name]) for name in ("sequence_id", "sequence_start", "sequence_end") if name in parameters
    ):
        raise Unimplemented(Reason.REASON_NOT_IMPLEMENTED, "no model here keeps state between requests: no sequences")
    level = _read(parameters, "priority", whole, 0)
    if not 0 <= level <= PRIORITY_LEVELS:
        raise InvalidArgument.field(
            "parameters['priority']", f"{level} is not between 0 (usual), 1 (most urgent) and {PRIORITY_LEVELS}"
        )
    timeout_us = _read(parameters, "timeout", whole, 0)
    if not 0 <= timeout_us <= SECONDS_LIMIT * 1_000_000:
        raise InvalidArgument.field(
            "parameters['timeout']",
            f"{timeout_us} is not between 0 (none) and {SECONDS_LIMIT * 1_000_000} microseconds",
        )
    return CallTerms(
        priority=USUAL_LEVEL - (level or USUAL_LEVEL),
        timeout_s=timeout_us / 1e6 if timeout_us else None,
        wants_final=_read(parameters, "triton_enable_empty_final_response", truth, default=False),
    )


def own_parameters(request: ModelInferRequest) -> dict[str, Any]:
    """The parameters that are not reserved by the protocol, by name: what is meant for the model itself."""
    return {name: _value(parameter) for name, parameter in request.parameters.items() if not name.startswith(_RESERVED)}


def whole(value: Any) -> int:
    """A whole number, sent as such or otherwise. Raises ValueError."""
    if isinstance(value, str):
        return int(value)
    number = float(value)
    if number != int(number):
        raise ValueError
    return int(value)


def truth(value: Any) -> bool:
    """A truth value, sent as such or otherwise. Raises KeyError."""
    return {"true": True, "1": True, "false": False, "0": False}[str(value).lower()]


def _read(parameters: Mapping[str, InferParameter], name: str, reader: Callable[[Any], Any], default: Any) -> Any:
    if name not in parameters:
        return default
    value = _value(parameters[name])
    try:
        return reader(value)
    except (ValueError, KeyError, OverflowError):
        raise InvalidArgument.field(f"parameters[{name!r}]", f"{value!r} is not a value of it") from None


def _value(parameter: InferParameter) -> Any:
    kind = parameter.WhichOneof("parameter_choice")
    return getattr(parameter, kind) if kind else ""
