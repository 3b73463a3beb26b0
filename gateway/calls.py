"""One HTTP request, one RPC: the ASGI application that the contract's routes lead to."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from typing import Any

import grpc
from opentelemetry import propagate
from starlette.types import Receive, Scope, Send

from gateway import metadata, problems
from gateway.contract import Contract
from gateway.json_reader import JsonReader
from gateway.json_writer import JsonWriter
from gateway.middleware import request_id_of, set_route
from gateway.parameters import Query, QueryError, parse_query
from gateway.problems import Problem, refusal
from gateway.routes import MethodNotAllowed, Route, RouteNotFound, RouteTable
from gateway.settings import GatewaySettings
from gateway.streams import Dialect, Framing, RawBytes, Stream, framing, wants_bytes
from gateway.templates import PathError
from gateway.transcode import Transcoding
from gateway.upstreams import Upstreams
from octavo.errors import InvalidArgument, NotFound, Unimplemented
from octavo.serving.auth import Keyring
from octavo.v1.errors_pb2 import Reason

_TRUE = {"true", "1", ""}


class Binding:
    """A route with all that its calls need."""

    def __init__(self, route: Route, transcoding: Transcoding, upstreams: Upstreams) -> None:
        self.transcoding = transcoding
        self.upstream = upstreams.of(route.method)
        self._route = route
        self._upstreams = upstreams

    @cached_property
    def open(self) -> Any:
        """Begins a call: request, metadata and timeout in seconds."""
        return self._upstreams.callable(self._route.method)

    def problem_of(self, error: grpc.aio.AioRpcError) -> Problem:
        """What a call of this route failed with."""
        return problems.of_call(error, self.upstream.program, self.upstream.address)


@dataclass(frozen=True, slots=True)
class Exchange:
    """One HTTP request on its way through: the ASGI parts, its binding and the metadata of its call."""

    binding: Binding
    scope: Scope
    receive: Receive
    send: Send
    carried: tuple[tuple[str, str | bytes], ...]
    headers: Mapping[bytes, bytes]

    @property
    def is_head(self) -> bool:
        """Whether only the status and the headers are wanted."""
        return bool(self.scope["method"] == "HEAD")


class Transcoder:
    """Answers every path that the contract binds, and refuses all others."""

    def __init__(self, contract: Contract, upstreams: Upstreams, settings: GatewaySettings) -> None:
        """Raises TemplateError when a binding breaks the grammar, is there twice or does not fit its messages."""
        self._settings = settings
        self._contract = contract
        self._writer = JsonWriter(contract.pool)
        self._watches: set[Stream] = set()
        self._is_draining = False
        self._keyring = Keyring.read(settings.api_keys) if settings.api_keys else None
        reader = JsonReader(contract.pool)
        self.table = RouteTable.of(contract, upstreams.services)
        self._bindings = {
            id(route): Binding(route, Transcoding(route, contract, reader, self._writer), upstreams)
            for route in self.table.routes
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one HTTP request; raises Problem for the middleware to tell."""
        raw_path = _raw_path(scope)
        if scope["method"] == "OPTIONS":
            await self._options(raw_path, scope, send)
            return
        route, bindings = self._find(scope["method"], raw_path)
        set_route(scope, route.template.source)
        binding = self._bindings[id(route)]
        headers = dict(scope["headers"])
        exchange = Exchange(binding, scope, receive, send, self._metadata(scope), headers)
        query = _query(scope)
        body = await read_body(receive)
        request = binding.transcoding.request(bindings, query, body, headers.get(b"content-type", b""))
        await (self._stream if route.method.server_streaming else self._unary)(exchange, request)

    def drain(self) -> None:
        """Ends the streams that can go on elsewhere: a watch never ends by itself, an answer does."""
        self._is_draining = True
        for stream in self._watches:
            stream.interrupt()

    def _find(self, http_method: str, raw_path: str) -> tuple[Route, dict[str, str]]:
        try:
            return self.table.find(http_method, raw_path)
        except PathError as error:
            raise refusal(InvalidArgument(Reason.REASON_INVALID_PATH, str(error))) from None
        except MethodNotAllowed as refused:
            allowed = ", ".join(refused.allowed)
            message = f"{http_method} is not for {raw_path[:200]}; {allowed} are"
            unimplemented = Unimplemented(Reason.REASON_METHOD_NOT_ALLOWED, message, allow=allowed)
            raise refusal(unimplemented, http_status=405, headers={"Allow": allowed}) from None
        except RouteNotFound:
            message = f"nothing is at {raw_path[:200]}; /docs lists all there is"
            raise refusal(NotFound(Reason.REASON_ROUTE_NOT_FOUND, message)) from None

    async def _options(self, raw_path: str, scope: Scope, send: Send) -> None:
        try:
            allowed = self.table.allowed(raw_path)
        except PathError as error:
            raise refusal(InvalidArgument(Reason.REASON_INVALID_PATH, str(error))) from None
        if not allowed:
            self._find(scope["method"], raw_path)
        await _respond(send, 204, [(b"allow", ", ".join(allowed).encode())], b"")

    def _metadata(self, scope: Scope) -> tuple[tuple[str, str | bytes], ...]:
        carried = metadata.metadata_of(scope["headers"])
        credentials = {key: value for key, value in carried if key in {"authorization", "x-api-key"}}
        if self._keyring is not None:
            self._keyring.check(credentials)
        if not credentials and self._settings.api_key:
            carried.append(("authorization", f"Bearer {self._settings.api_key}"))
        if scope.get("client"):
            # Who really called; what a client claims in this header of its own is not passed on.
            carried.append(("x-forwarded-for", scope["client"][0]))
        trace: dict[str, str] = {}
        propagate.inject(trace)
        own = [(key, value) for key, value in carried if key not in trace]
        return (*own, *trace.items(), ("x-request-id", request_id_of(scope)))

    async def _unary(self, exchange: Exchange, request: Any) -> None:
        binding = exchange.binding
        timeout_s = self._timeout_s(exchange.scope, self._settings.timeout_s)
        call = binding.open(request, metadata=exchange.carried, timeout=timeout_s)
        departure = asyncio.ensure_future(_departure(exchange.receive, call))
        try:
            answer = await call
            initial = tuple(await call.initial_metadata())
        except grpc.aio.AioRpcError as error:
            raise binding.problem_of(error) from None
        except asyncio.CancelledError:
            if not departure.done() or departure.cancelled():
                raise
            return  # the client has left; nobody hears an answer
        finally:
            departure.cancel()
            call.cancel()
        content_type, body = binding.transcoding.answer(answer, pretty=_is_pretty(exchange.scope))
        headers = [(b"content-type", content_type), *metadata.headers_of(initial)]
        await _respond(exchange.send, metadata.http_status_of(initial), headers, body, is_head=exchange.is_head)

    async def _stream(self, exchange: Exchange, request: Any) -> None:
        binding = exchange.binding
        _resume(binding.transcoding, request, exchange.headers.get(b"last-event-id", b""))
        dialect = self._dialect(binding, exchange.headers.get(b"accept", b""))
        timeout_s = self._timeout_s(exchange.scope, None)
        call = binding.open(request, metadata=exchange.carried, timeout=timeout_s)
        stream = Stream(call, dialect)
        if binding.transcoding.cursor is not None:
            self._watches.add(stream)
        if self._is_draining:
            stream.interrupt()
        departure = asyncio.ensure_future(_departure(exchange.receive, call))
        try:
            first = await stream.first()
            if binding.transcoding.answers_raw and isinstance(dialect.framing, RawBytes) and first is not grpc.aio.EOF:
                dialect.framing.content_type = binding.transcoding.answer(first)[0]
            await stream.respond(exchange.send, is_head=exchange.is_head)
        except asyncio.CancelledError:
            if not departure.done() or departure.cancelled():
                raise
        finally:
            departure.cancel()
            self._watches.discard(stream)
            await stream.close()

    def _dialect(self, binding: Binding, accept: bytes) -> Dialect:
        transcoding, pool = binding.transcoding, self._contract.pool
        is_content = bool(transcoding.chunk) and wants_bytes(accept)
        is_raw = transcoding.answers_raw or is_content
        chosen: Framing = RawBytes() if is_raw else framing(accept)
        encode = attrgetter(transcoding.chunk) if is_content else lambda message: transcoding.answer(message)[1]
        return Dialect(
            framing=chosen,
            encode=encode,
            problem_of=binding.problem_of,
            problem_body=lambda problem: problem.body(pool),
            idle_s=self._settings.idle_s,
            heartbeat_s=self._settings.heartbeat_s,
            first_message_s=None if is_raw else min(5.0, self._settings.heartbeat_s),
        )

    def _timeout_s(self, scope: Scope, default_s: float | None) -> float | None:
        return metadata.timeout_s(scope["headers"], default_s=default_s, highest_s=self._settings.max_timeout_s)


def _raw_path(scope: Scope) -> str:
    try:
        return bytes(scope["raw_path"]).decode("utf-8")
    except UnicodeDecodeError:
        raise refusal(InvalidArgument(Reason.REASON_INVALID_PATH, "the path is not UTF-8")) from None


def _query(scope: Scope) -> Query:
    try:
        return parse_query(scope["query_string"])
    except QueryError as error:
        raise refusal(InvalidArgument(Reason.REASON_INVALID_PATH, str(error))) from None


def _is_pretty(scope: Scope) -> bool:
    raw: bytes = scope["query_string"]
    return b"prettyPrint" in raw and any(
        key == "prettyPrint" and value.lower() in _TRUE for key, value in parse_query(raw)
    )


def _resume(transcoding: Transcoding, request: Any, last_event_id: bytes) -> None:
    """A browser that reconnects says which event it saw last: the watch goes on behind it."""
    if not last_event_id or transcoding.cursor is None:
        return
    text = last_event_id.decode("latin-1")
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        error = InvalidArgument(Reason.REASON_INVALID_HEADER, "Last-Event-ID is not the id of an event: a number")
        raise refusal(error)
    setattr(request, transcoding.cursor.name, int(text))


async def read_body(receive: Receive) -> bytes:
    """The whole body; the middleware beneath `receive` keeps its size and time within limits."""
    message = await receive()
    if not message.get("more_body", False):
        return bytes(message.get("body", b""))
    chunks = [message["body"]]
    while message.get("more_body", False):
        message = await receive()
        if message["type"] == "http.disconnect":
            raise asyncio.CancelledError
        chunks.append(message.get("body", b""))
    return b"".join(chunks)


async def _departure(receive: Receive, call: Any) -> None:
    """Cancels the call when the client leaves: the work behind it would be for nobody."""
    while (await receive())["type"] != "http.disconnect":
        pass
    call.cancel()


async def _respond(
    send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes, *, is_head: bool = False
) -> None:
    # RFC 9110 section 8.6: no Content-Length where there is no content by definition.
    length = [] if status == 204 else [(b"content-length", str(len(body)).encode("ascii"))]
    await send({"type": "http.response.start", "status": status, "headers": [*headers, *length]})
    await send({"type": "http.response.body", "body": b"" if status == 204 or is_head else body})
