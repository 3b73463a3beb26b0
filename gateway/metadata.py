"""Headers to gRPC metadata and back, and the deadline of a call. Hop-by-hop headers never cross."""

import base64
import binascii
import re
from collections.abc import Iterable, Sequence

from gateway.problems import Problem, refusal
from octavo.errors import InvalidArgument
from octavo.v1.errors_pb2 import Reason

Headers = Iterable[tuple[bytes, bytes]]
Metadata = tuple[tuple[str, str | bytes], ...]

FORWARDED = frozenset({b"authorization", b"x-api-key", b"traceparent", b"tracestate", b"baggage"})
_PREFIX = b"grpc-metadata-"
_KEY = re.compile(r"[0-9a-z_.-]+")
_VALUE = re.compile(r"[ -~]*")  # printable ASCII, as gRPC allows
_TIMEOUT = re.compile(r"([0-9]{1,8})([HMSmun])")
_SECONDS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
# What gRPC itself speaks, or what this hop has answered already.
_RESERVED = re.compile(r"grpc-|:|(?:te|host|connection|content-type|user-agent|x-request-id|x-forwarded-for)$")
# Initial metadata of a service that sets the HTTP status of a success (201, 202, 204).
STATUS_KEY = "x-http-code"


def metadata_of(headers: Headers) -> list[tuple[str, str | bytes]]:
    """Credentials and tracing headers as they are, `Grpc-Metadata-Foo` as `foo`; others stay outside.

    Raises Problem (400) when a `-bin` header is not base64.
    """
    found: list[tuple[str, str | bytes]] = []
    for raw_name, raw_value in headers:
        name = raw_name.lower()
        if name.startswith(_PREFIX):
            name = name[len(_PREFIX) :]
            if name in FORWARDED or _RESERVED.match(name.decode("latin-1")):
                continue
        elif name not in FORWARDED:
            continue
        key, value = name.decode("latin-1"), raw_value.decode("latin-1")
        if not _KEY.fullmatch(key) or not _VALUE.fullmatch(value):
            continue
        found.append((key, _bytes(key, value) if key.endswith("-bin") else value))
    return found


def _bytes(key: str, value: str) -> bytes:
    try:
        return base64.b64decode(value + "=" * (-len(value) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise _invalid(f"Grpc-Metadata-{key}", "is not base64, as names that end in '-bin' must be") from None


def timeout_s(headers: Headers, *, default_s: float | None, highest_s: float) -> float | None:
    """Seconds that a call may take, from `Grpc-Timeout: 8DIGITS + H|M|S|m|u|n`, else the default; capped."""
    for name, value in headers:
        if name.lower() == b"grpc-timeout":
            parsed = _TIMEOUT.fullmatch(value.decode("latin-1"))
            if parsed is None:
                raise _invalid("Grpc-Timeout", "is not up to eight digits and one of H M S m u n, like '30S'")
            return min(int(parsed[1]) * _SECONDS[parsed[2]], highest_s)
    return default_s


def headers_of(metadata: Sequence[tuple[str, str | bytes]]) -> list[tuple[bytes, bytes]]:
    """Initial metadata of an answer as `Grpc-Metadata-*` headers."""
    found: list[tuple[bytes, bytes]] = []
    for key, value in metadata:
        if _RESERVED.match(key) or key == STATUS_KEY:
            continue
        text = base64.b64encode(value) if isinstance(value, bytes) else value.encode("latin-1", "replace")
        found.append((_PREFIX + key.encode("ascii"), text))
    return found


def http_status_of(metadata: Sequence[tuple[str, str | bytes]]) -> int:
    """200, or the success status that the service has set with `x-http-code`."""
    for key, value in metadata:
        if key == STATUS_KEY and isinstance(value, str) and value.isdigit() and 200 <= int(value) <= 299:
            return int(value)
    return 200


def _invalid(header: str, what: str) -> Problem:
    return refusal(InvalidArgument(Reason.REASON_INVALID_HEADER, f"{header} {what}", header=header))
