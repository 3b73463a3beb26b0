"""A channel to one program: retries where a repeat does no harm, keepalive, keys and traces on every call.

What a server refuses arrives as the error of octavo.errors that it raised.
"""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions
from google.rpc import status_pb2
from grpc_status import rpc_status
from opentelemetry import propagate

from octavo.errors import OctavoError, Unavailable, from_status
from octavo.v1 import errors_pb2

Metadata = Sequence[tuple[str, str]]

_CUT = "Internal error from Core"
"""What grpc.aio says when it cannot write any more, whatever the server has answered (grpc/_cython/_cygrpc/aio)."""
UNARY_TIMEOUT_S = 60.0
"""How long a unary call may take unless its caller says otherwise, in seconds."""


def open_async(target: str, services: Sequence[ServiceDescriptor]) -> grpc.aio.Channel:
    """A channel for the event loop."""
    return grpc.aio.insecure_channel(target, options=_options(services))


def open_blocking(target: str, services: Sequence[ServiceDescriptor]) -> grpc.Channel:
    """A channel for threads."""
    return grpc.insecure_channel(target, options=_options(services))


def translated(error: grpc.RpcError) -> OctavoError:
    """The error that the server raised, or the one that its code implies.

    Unavailable where gRPC has lost the server's answer: it came while the request was still being written.
    """
    try:
        status = rpc_status.from_call(error)  # type: ignore[arg-type]
    except ValueError:  # a proxy changed code or message: the details no longer fit
        status = None
    if status is None:
        code: grpc.StatusCode = error.code()
        if code is grpc.StatusCode.INTERNAL and error.details() == _CUT:
            return Unavailable(
                errors_pb2.REASON_UPSTREAM_UNAVAILABLE, "the server has ended the call; ask it what it has"
            )
        status = status_pb2.Status(code=code.value[0], message=error.details())
    return from_status(status)


class AsyncCalls:
    """A stub for the event loop whose calls carry metadata and raise our errors."""

    def __init__(self, stub: object, metadata: Metadata) -> None:
        self._stub = stub
        self._metadata = metadata

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._stub, name)
        is_stream = isinstance(call, grpc.aio.UnaryStreamMultiCallable | grpc.aio.StreamStreamMultiCallable)
        wrapped = self._streaming(call) if is_stream else self._single(call)
        setattr(self, name, wrapped)
        return wrapped

    def _single(self, call: Any) -> Callable[..., Awaitable[Any]]:
        default_s = UNARY_TIMEOUT_S if isinstance(call, grpc.aio.UnaryUnaryMultiCallable) else None

        async def invoke(request: Any, *, timeout: float | None = default_s, metadata: Metadata = ()) -> Any:  # noqa: ASYNC109 - gRPC's own deadline
            try:
                return await call(request, timeout=timeout, metadata=_carried(self._metadata, metadata))
            except grpc.RpcError as error:
                raise translated(error) from None

        return invoke

    def _streaming(self, call: Any) -> Callable[..., AsyncIterator[Any]]:
        async def invoke(
            request: Any,
            *,
            timeout: float | None = None,  # noqa: ASYNC109 - gRPC's own deadline
            metadata: Metadata = (),
        ) -> AsyncIterator[Any]:
            stream = call(request, timeout=timeout, metadata=_carried(self._metadata, metadata))
            try:
                async for message in stream:
                    yield message
            except grpc.RpcError as error:
                raise translated(error) from None
            finally:
                stream.cancel()

        return invoke


class BlockingCalls:
    """A stub for threads whose calls carry metadata and raise our errors."""

    def __init__(self, stub: object, metadata: Metadata) -> None:
        self._stub = stub
        self._metadata = metadata

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._stub, name)
        is_stream = isinstance(call, grpc.UnaryStreamMultiCallable | grpc.StreamStreamMultiCallable)
        wrapped = self._streaming(call) if is_stream else self._single(call)
        setattr(self, name, wrapped)
        return wrapped

    def _single(self, call: Any) -> Callable[..., Any]:
        default_s = UNARY_TIMEOUT_S if isinstance(call, grpc.UnaryUnaryMultiCallable) else None

        def invoke(request: Any, *, timeout: float | None = default_s, metadata: Metadata = ()) -> Any:
            try:
                return call(request, timeout=timeout, metadata=_carried(self._metadata, metadata))
            except grpc.RpcError as error:
                raise translated(error) from None

        return invoke

    def _streaming(self, call: Any) -> Callable[..., Iterator[Any]]:
        def invoke(request: Any, *, timeout: float | None = None, metadata: Metadata = ()) -> Iterator[Any]:
            stream = call(request, timeout=timeout, metadata=_carried(self._metadata, metadata))
            try:
                yield from stream
            except grpc.RpcError as error:
                raise translated(error) from None
            finally:
                stream.cancel()

        return invoke


def _carried(own: Metadata, extra: Metadata) -> Metadata:
    """What travels with a call: keys, the caller's metadata, and the present trace if there is one."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return (*own, *extra, *carrier.items())


def _options(services: Sequence[ServiceDescriptor]) -> list[tuple[str, Any]]:
    return [
        ("grpc.service_config", json.dumps(_service_config(services))),
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.initial_reconnect_backoff_ms", 100),
    ]


def _service_config(services: Sequence[ServiceDescriptor]) -> dict[str, Any]:
    """Retries, with back-off, for the calls that the contract marks as reads: AIP-194 retries UNAVAILABLE alone."""
    reads = [
        {"service": service.full_name, "method": method.name}
        for service in services
        for method in service.methods
        if _is_read(method)
    ]
    policy = {
        "maxAttempts": 4,
        "initialBackoff": "0.05s",
        "maxBackoff": "1s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    return {
        "loadBalancingConfig": [{"round_robin": {}}],
        "methodConfig": [{"name": reads, "retryPolicy": policy}] if reads else [],
    }


def _is_read(method: MethodDescriptor) -> bool:
    options: MethodOptions = method.GetOptions()
    return options.idempotency_level == MethodOptions.NO_SIDE_EFFECTS
