"""What happens around every request: its id, its span, its metrics, its log line, its limits, its errors."""

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from google.protobuf.descriptor_pool import DescriptorPool
from opentelemetry import propagate, trace
from opentelemetry.trace import SpanKind, Status, StatusCode
from prometheus_client import CollectorRegistry, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway import problems
from gateway.problems import Problem, refusal
from octavo.errors import DeadlineExceeded, OctavoError, ResourceExhausted
from octavo.serving import Telemetry
from octavo.serving.telemetry import DURATION_BUCKETS_S
from octavo.v1.errors_pb2 import Reason

_ROUTE = "octavo.route"
_REQUEST_ID = "octavo.request_id"
_IDENTIFIER = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_PROBES = frozenset({"/livez", "/healthz", "/metrics"})


def request_id_of(scope: Scope) -> str:
    """The request's id: the caller's own, or the one it was given here."""
    return str(scope[_REQUEST_ID])


def set_route(scope: Scope, template: str) -> None:
    """Names the template that the request matched: spans and metrics are by template, never by path."""
    scope[_ROUTE] = template


class HttpMetrics:
    """Rate, errors and duration of requests, named as OpenTelemetry's HTTP conventions say."""

    def __init__(self, collector: CollectorRegistry) -> None:
        self.duration = Histogram(
            "octavo_http_server_request_duration_seconds",
            "How long requests took, by method, route and status.",
            ("http_request_method", "http_route", "http_response_status_code"),
            buckets=DURATION_BUCKETS_S,
            registry=collector,
        )
        self.active = Gauge("octavo_http_server_active_requests", "Requests under way.", registry=collector)


class Observed:
    """Gives each request an id, and tells of it: one span, one measurement, one log line."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry, metrics: HttpMetrics) -> None:
        self._app = app
        self._telemetry = telemetry
        self._metrics = metrics
        self._tracer = telemetry.tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on and watches its answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope[_REQUEST_ID] = request_id = _request_id(scope)
        answer = _Answer(send, request_id.encode("ascii"))
        start = time.perf_counter()
        self._metrics.active.inc()
        with ExitStack() as stack:
            span = self._span(scope, stack)
            try:
                await self._app(scope, receive, answer.send)
            finally:
                self._metrics.active.dec()
                self._tell(scope, answer.status, time.perf_counter() - start, span)

    def _span(self, scope: Scope, stack: ExitStack) -> trace.Span | None:
        if not self._telemetry.is_tracing:
            return None
        carrier = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        return stack.enter_context(
            self._tracer.start_as_current_span(
                scope["method"] if scope["method"] in _METHODS else "HTTP",
                propagate.extract(carrier),
                SpanKind.SERVER,
                {"http.request.method": scope["method"], "url.scheme": scope["scheme"]},
                record_exception=False,
                set_status_on_exception=False,
            )
        )

    def _tell(self, scope: Scope, status: int, duration_s: float, span: trace.Span | None) -> None:
        method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
        route = scope.get(_ROUTE, "")
        self._metrics.duration.labels(method, route, status).observe(duration_s)
        if span is not None:
            span.update_name(f"{method} {route}".rstrip())
            span.set_attributes({"http.route": route, "http.response.status_code": status})
            if status >= 500:
                span.set_status(Status(StatusCode.ERROR))
        level = logging.DEBUG if scope["path"] in _PROBES else logging.INFO
        logger = self._telemetry.logger
        if logger.isEnabledFor(level):
            facts = {"status": status, "duration_ms": round(duration_s * 1e3, 2), "request_id": request_id_of(scope)}
            # Without the query: it may hold what should not be kept.
            logger.log(level, "%s %s", method, scope["path"][:200], extra=facts)


class _Answer:
    """Adds the headers that every answer has, and remembers the status; 499 until there is one."""

    def __init__(self, send: Send, request_id: bytes) -> None:
        self._send = send
        self._request_id = request_id
        self.status = 499

    async def send(self, message: Message) -> None:
        """Passes a part of the answer on."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [
                *message["headers"],
                (b"x-request-id", self._request_id),
                (b"x-content-type-options", b"nosniff"),
            ]
            message = {**message, "headers": headers}
        await self._send(message)


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _IDENTIFIER.fullmatch(value):
            return str(value.decode("ascii"))
    return str(uuid.uuid4())


class Guarded:
    """Keeps bodies within their limits, and turns every error into the answer that tells of it."""

    def __init__(
        self, app: ASGIApp, telemetry: Telemetry, pool: DescriptorPool, max_body_bytes: int, body_timeout_s: float
    ) -> None:
        self._app = app
        self._logger = telemetry.logger
        self._pool = pool
        self._max_body_bytes = max_body_bytes
        self._body_timeout_s = body_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on; answers what it raises, unless an answer has begun."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, self._limited(scope, receive), watched)
        except Exception as error:
            if begun:
                # Too late for words: the connection is cut, so that nobody takes half for the whole.
                raise
            await self._answer(self._problem(error, scope), scope, send)

    def _problem(self, error: Exception, scope: Scope) -> Problem:
        if isinstance(error, Problem):
            return error
        if isinstance(error, OctavoError):
            return refusal(error)
        request_id = request_id_of(scope)
        self._logger.error("a defect", exc_info=error, extra={"request_id": request_id})
        return problems.internal(request_id)

    async def _answer(self, problem: Problem, scope: Scope, send: Send) -> None:
        body = problem.body(self._pool)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **problem.headers}
        raw = [(name.lower().encode("ascii"), value.encode("latin-1", "replace")) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": problem.http_status, "headers": raw})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    def _limited(self, scope: Scope, receive: Receive) -> Receive:
        announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
        is_chunked = any(name == b"transfer-encoding" for name, _ in scope["headers"])
        # Most requests have no body: nothing to wait for, nothing to count.
        taken, is_whole = 0, not is_chunked and announced in {b"", b"0"}

        async def limited() -> Message:
            nonlocal taken, is_whole
            if is_whole:
                return await receive()
            if announced.isdigit() and int(announced) > self._max_body_bytes:
                raise self._too_large()
            message = await self._in_time(receive)
            taken += len(message.get("body", b""))
            is_whole = not message.get("more_body", False)
            if taken > self._max_body_bytes:
                raise self._too_large()
            return message

        return limited

    async def _in_time(self, receive: Callable[[], Any]) -> Message:
        try:
            async with asyncio.timeout(self._body_timeout_s):
                message: Message = await receive()
        except TimeoutError:
            text = f"the body did not go on for {self._body_timeout_s:g} s"
            error = DeadlineExceeded(Reason.REASON_DEADLINE_EXCEEDED, text)
            raise refusal(error, http_status=408, headers={"Connection": "close"}) from None
        return message

    def _too_large(self) -> Problem:
        error = ResourceExhausted(
            Reason.REASON_BODY_TOO_LARGE,
            f"the body is larger than {self._max_body_bytes} bytes; large files go up as blobs, over gRPC",
            limit_bytes=self._max_body_bytes,
        )
        return refusal(error, http_status=413, headers={"Connection": "close"})
