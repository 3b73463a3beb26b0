"""How the front door says no: google.rpc.Status as HTTP status, headers and JSON (AIP-193), from one table."""

import base64
from collections.abc import Mapping
from typing import Any

import grpc
import orjson
from google.protobuf import json_format
from google.protobuf.descriptor_pool import Default, DescriptorPool
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2, status_pb2

from gateway.violations import Violations
from octavo.errors import DeadlineExceeded, Internal, InvalidArgument, OctavoError, Unavailable
from octavo.v1.errors_pb2 import Reason

HTTP_STATUS: Mapping[int, int] = {
    code_pb2.OK: 200,
    code_pb2.CANCELLED: 499,
    code_pb2.UNKNOWN: 500,
    code_pb2.INVALID_ARGUMENT: 400,
    code_pb2.DEADLINE_EXCEEDED: 504,
    code_pb2.NOT_FOUND: 404,
    code_pb2.ALREADY_EXISTS: 409,
    code_pb2.PERMISSION_DENIED: 403,
    code_pb2.UNAUTHENTICATED: 401,
    code_pb2.RESOURCE_EXHAUSTED: 429,
    code_pb2.FAILED_PRECONDITION: 400,
    code_pb2.ABORTED: 409,
    code_pb2.OUT_OF_RANGE: 400,
    code_pb2.UNIMPLEMENTED: 501,
    code_pb2.INTERNAL: 500,
    code_pb2.UNAVAILABLE: 503,
    code_pb2.DATA_LOSS: 500,
}

_DETAILS_KEY = "grpc-status-details-bin"
_ANY_PREFIX = "type.googleapis.com/"


class Problem(Exception):
    """An answer that is an error: a google.rpc.Status, and the HTTP status and headers that go with it."""

    def __init__(
        self,
        status: status_pb2.Status,
        *,
        http_status: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status.message)
        self.status = status
        self.http_status = http_status or HTTP_STATUS.get(status.code, 500)
        self.headers = {**_headers(status), **(headers or {})}

    def tree(self, pool: DescriptorPool | None = None) -> dict[str, Any]:
        """The error as JSON values; details of a type that `pool` does not know keep their bytes."""
        known = code_pb2.Code.values()
        name = code_pb2.Code.Name(self.status.code) if self.status.code in known else "UNKNOWN"
        return {
            "error": {
                "code": self.http_status,
                "message": self.status.message,
                "status": name,
                "details": [_detail(detail, pool) for detail in self.status.details],
            }
        }

    def body(self, pool: DescriptorPool | None = None) -> bytes:
        """The error as JSON bytes."""
        return orjson.dumps(self.tree(pool))


def refusal(error: OctavoError, *, http_status: int | None = None, headers: Mapping[str, str] | None = None) -> Problem:
    """An error that the gateway itself makes; 405, 413 and 415 have no code of their own in gRPC."""
    return Problem(error.to_status(), http_status=http_status, headers=headers)


def invalid_fields(violations: Violations) -> Problem:
    """400 that names every wrong field."""
    found = violations.found
    reason = Reason.REASON_UNKNOWN_FIELD if all(v.is_unknown for v in found) else Reason.REASON_INVALID_FIELD
    return refusal(InvalidArgument.fields({v.field: v.description for v in found}, reason=reason))


def of_call(error: grpc.aio.AioRpcError, program: str, address: str) -> Problem:
    """What an upstream call failed with. A failure of the connection itself gets words that help."""
    packed = next((value for key, value in error.trailing_metadata() or () if key == _DETAILS_KEY), None)
    if packed is not None:
        try:
            return Problem(status_pb2.Status.FromString(packed))
        except DecodeError:
            pass  # a status in a form of its own: code and message still say what happened
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        return refusal(
            Unavailable(
                Reason.REASON_UPSTREAM_UNAVAILABLE,
                f"the {program} does not answer at {address}; is it running?",
                retry_after_s=1.0,
                program=program,
            )
        )
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return refusal(
            DeadlineExceeded(
                Reason.REASON_DEADLINE_EXCEEDED,
                f"the {program} did not answer in time; a Grpc-Timeout header allows more",
                program=program,
            )
        )
    return Problem(status_pb2.Status(code=error.code().value[0], message=error.details() or ""))


def internal(request_id: str) -> Problem:
    """A defect of the gateway: the log has the traceback under the request id, the answer never does."""
    return refusal(
        Internal(
            Reason.REASON_INTERNAL,
            f"a defect of the gateway; its log has the details under request id {request_id}",
            request_id=request_id,
        )
    )


def _headers(status: status_pb2.Status) -> dict[str, str]:
    headers: dict[str, str] = {}
    if status.code == code_pb2.UNAUTHENTICATED:
        headers["WWW-Authenticate"] = 'Bearer realm="octavo"'
    retry = error_details_pb2.RetryInfo()
    for detail in status.details:
        if detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR) and detail.Unpack(retry):
            delay = retry.retry_delay
            # Whole seconds, rounded up: a client that comes too early is refused again.
            headers["Retry-After"] = str(max(0, delay.seconds + (delay.nanos > 0)))
    return headers


def _detail(detail: Any, pool: DescriptorPool | None) -> dict[str, Any]:
    for known in (Default(), pool):
        try:
            tree: dict[str, Any] = json_format.MessageToDict(detail, descriptor_pool=known)
        except (TypeError, ValueError, KeyError, json_format.Error, DecodeError):
            continue
        return tree
    type_url = detail.type_url if "/" in detail.type_url else _ANY_PREFIX + detail.type_url
    return {"@type": type_url, "value": base64.b64encode(detail.value).decode("ascii")}
