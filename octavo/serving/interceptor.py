"""What happens around every call: keys, deadlines, errors, spans, metrics and the access log. Once, for all.

Servicers raise errors of octavo.errors and know nothing of this.
"""

import asyncio
import inspect
import logging
import time
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError
from opentelemetry import propagate, trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from octavo.errors import (
    Cancelled,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    OctavoError,
    Unavailable,
    Unimplemented,
)
from octavo.serving.auth import PUBLIC_PREFIXES, Keyring
from octavo.serving.telemetry import Telemetry
from octavo.v1 import errors_pb2

CODES = {code.value[0]: code for code in grpc.StatusCode}
DEFECTS = {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
"""The codes that mark a server's span as failed (OpenTelemetry's RPC conventions); the others are the caller's."""
REFUSAL_INTERVAL_S = 1.0
"""How often at most a method's refusals for want of room are logged, in seconds: who sheds load has better to do."""

# Generic in their stubs only.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps each handler of one service, once."""

    def __init__(self, telemetry: Telemetry, keyring: Keyring | None, deadline_s: float) -> None:
        self._telemetry = telemetry
        self._keyring = keyring
        self._deadline_s = deadline_s
        self._refusals: defaultdict[str, Refusals] = defaultdict(Refusals)
        self._wrapped: dict[str, Handler] = {}
        self._watches: set[asyncio.Task[Any]] = set()
        self._is_draining = False

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], "Awaitable[Handler | None]"],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        method = handler_call_details.method
        if method not in self._wrapped:
            handler = await continuation(handler_call_details)
            if handler is None or method.startswith(PUBLIC_PREFIXES):
                return handler
            self._wrapped[method] = self._wrap(method, handler)
        return self._wrapped[method]

    def drain(self) -> None:
        """Ends the watches, which would never end by themselves; their callers reconnect to whoever comes next."""
        self._is_draining = True
        for task in self._watches:
            task.cancel()

    def _observed(self, method: str, context: Context) -> "Observation":
        return Observation(self._telemetry, method, context, self._refusals[method])

    def _wrap(self, method: str, handler: Handler) -> Handler:
        read, write = handler.request_deserializer, handler.response_serializer
        if handler.unary_unary:
            unary = self._unary(method, _reading(handler.unary_unary, read))
            return grpc.unary_unary_rpc_method_handler(unary, None, write)
        if handler.unary_stream:
            stream = self._stream(method, _reading(handler.unary_stream, read))
            return grpc.unary_stream_rpc_method_handler(stream, None, write)
        if handler.stream_unary:
            return grpc.stream_unary_rpc_method_handler(self._unary(method, handler.stream_unary), read, write)
        return grpc.stream_stream_rpc_method_handler(self._stream(method, handler.stream_stream), read, write)

    def _unary(self, method: str, behaviour: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
        # Uploads last as long as they last; only what answers one request with one reply has a default deadline.
        deadline_s = self._deadline_s if not method.endswith("/WriteBlob") else None

        async def call(request: Any, context: Context) -> Any:
            with self._observed(method, context) as observation:
                try:
                    self._admit(context)
                    async with asyncio.timeout(deadline_s):
                        reply = behaviour(request, context)
                        return await reply if inspect.isawaitable(reply) else reply
                except BaseException as error:
                    await self._fail(error, observation, context)

        return call

    def _stream(self, method: str, behaviour: Any) -> Callable[..., AsyncIterator[Any]]:
        is_watch = method.rpartition("/")[2].startswith("Watch")
        sent = self._telemetry.process.rpc.messages.labels(method[1:])

        async def call(request: Any, context: Context) -> AsyncIterator[Any]:
            task = asyncio.current_task()
            if is_watch and task:
                self._watches.add(task)
                task.add_done_callback(self._watches.discard)
            with self._observed(method, context) as observation:
                try:
                    self._admit(context)
                    async for message in behaviour(request, context):
                        sent.inc()
                        yield message
                except GeneratorExit:
                    observation.code = "CANCELLED"
                    raise
                except BaseException as error:
                    await self._fail(error, observation, context)

        return call

    def _admit(self, context: Context) -> None:
        if self._keyring:
            self._keyring.check({str(key): value for key, value in context.invocation_metadata() or ()})

    async def _fail(self, error: BaseException, observation: "Observation", context: Context) -> None:
        failure = self._translated(error, observation)
        observation.code = CODES[failure.code].name
        observation.reason = failure.reason_name
        if isinstance(error, asyncio.CancelledError) and not self._is_draining:
            raise error
        await context.abort(
            CODES[failure.code],
            failure.message,
            (("grpc-status-details-bin", failure.to_status().SerializeToString()),),
        )

    def _translated(self, error: BaseException, observation: "Observation") -> OctavoError:
        """Any error as one of ours. What is not ours is a defect: logged in full, told in one sentence."""
        match error:
            case OctavoError():
                return error
            case asyncio.CancelledError() if self._is_draining:
                return Unavailable(errors_pb2.REASON_SHUTTING_DOWN, "this server is shutting down", retry_after_s=1.0)
            case asyncio.CancelledError():
                return Cancelled(errors_pb2.REASON_CANCELLED, "the caller went away")
            case TimeoutError():
                return DeadlineExceeded(errors_pb2.REASON_DEADLINE_EXCEEDED, f"took longer than {self._deadline_s:g} s")
            case NotImplementedError():
                call = observation.method.rpartition("/")[2]
                return Unimplemented(errors_pb2.REASON_NOT_IMPLEMENTED, f"this server cannot {call} yet", call=call)
        request_id = observation.request_id
        self._telemetry.logger.error(
            "a defect in %s", observation.method, exc_info=error, extra={"request_id": request_id}
        )
        return Internal(
            errors_pb2.REASON_INTERNAL,
            f"a defect of this server; its log has the details under request id {request_id}",
            request_id=request_id,
        )


def _reading(behaviour: Callable[..., Any], read: Callable[[bytes], Any] | None) -> Callable[..., Any]:
    """Takes a request as bytes: one that cannot be read is then refused like all bad input, not logged as a defect."""

    def call(request: bytes, context: Context) -> Any:
        try:
            message = read(request) if read else request
        except DecodeError as error:
            raise InvalidArgument(
                errors_pb2.REASON_INVALID_BODY, f"the request cannot be read: {error}; texts are UTF-8"
            ) from None
        return behaviour(message, context)

    return call


class Refusals:
    """How many calls of a method were refused for want of room since the log last said so."""

    def __init__(self) -> None:
        self._kept_back = 0
        self._told_s = -REFUSAL_INTERVAL_S

    def told(self, now_s: float) -> int:
        """How many there are to be told now, this one included; 0 where it is too early."""
        self._kept_back += 1
        if now_s < self._told_s + REFUSAL_INTERVAL_S:
            return 0
        self._told_s, count, self._kept_back = now_s, self._kept_back, 0
        return count


class Observation:
    """One call, watched from its beginning to its end: span, metrics, access log."""

    def __init__(self, telemetry: Telemetry, method: str, context: Context, refusals: Refusals) -> None:
        self.method = method
        self.code = "OK"
        self.reason = ""
        self._refusals = refusals
        self._telemetry = telemetry
        self._context = context
        self._stack = ExitStack()
        self._span: trace.Span | None = None

    @property
    def request_id(self) -> str:
        """The caller's own id for this call, or a new one."""
        metadata = dict(self._context.invocation_metadata() or ())
        return str(metadata.get("x-request-id") or uuid.uuid4())

    def __enter__(self) -> "Observation":
        self._start = time.perf_counter()
        self._telemetry.process.rpc.running.labels(self.method[1:]).inc()
        if self._telemetry.is_tracing:
            carrier = {str(key): str(value) for key, value in self._context.invocation_metadata() or ()}
            self._span = self._stack.enter_context(
                self._telemetry.tracer.start_as_current_span(
                    self.method[1:],
                    propagate.extract(carrier),
                    SpanKind.SERVER,
                    {"rpc.system.name": "grpc", "rpc.method": self.method[1:]},
                    record_exception=False,
                    set_status_on_exception=False,
                )
            )
        return self

    def __exit__(self, *_: object) -> None:
        duration_s = time.perf_counter() - self._start
        self._telemetry.process.rpc.running.labels(self.method[1:]).dec()
        self._telemetry.process.rpc.duration.labels(self.method[1:], self.code).observe(duration_s)
        if self._span:
            self._span.set_attribute("rpc.response.status_code", self.code)
            if self.code in DEFECTS:
                self._span.set_status(Status(StatusCode.ERROR, self.reason))
        self._log(duration_s)
        self._stack.close()

    def _log(self, duration_s: float) -> None:
        level = logging.DEBUG if self.code in {"OK", "CANCELLED"} else logging.INFO
        count = self._refusals.told(time.perf_counter()) if self.code == "RESOURCE_EXHAUSTED" else 1
        if count and self._telemetry.logger.isEnabledFor(level):
            facts: dict[str, object] = {
                "code": self.code,
                "duration_ms": round(duration_s * 1e3, 2),
                "peer": self._context.peer(),
            }
            if self.reason:
                facts["reason"] = self.reason
            if count > 1:
                facts["count"] = count
            self._telemetry.logger.log(level, self.method[1:], extra=facts)
