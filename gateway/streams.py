"""Server streams over HTTP: SSE or NDJSON by Accept, or the bytes themselves. Knows nothing of routes.

The first message is awaited before the status line, so that an error at the start has its true status; a
stream that stays quiet opens anyway after a while, for whoever waits on it sees headers and heartbeats.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
from starlette.types import Send

from gateway.problems import Problem, refusal
from octavo.errors import DeadlineExceeded, Unavailable
from octavo.v1.errors_pb2 import Reason

FIRST_MESSAGE_S = 5.0
HEARTBEAT_S = 15.0

_SSE = b"text/event-stream"
_NDJSON = b"application/x-ndjson"


class Framing(Protocol):
    """How messages, errors and silence are written."""

    content_type: bytes
    heartbeat: bytes
    end: bytes

    def message(self, data: bytes, identity: str) -> bytes: ...
    def error(self, data: bytes) -> bytes: ...


class ServerSentEvents:
    """`event: message`, `event: error`, and `event: done` once all is said; `id` where messages are numbered."""

    content_type = b"text/event-stream; charset=utf-8"
    heartbeat = b": ping\n\n"
    end = b"event: done\ndata: {}\n\n"

    def message(self, data: bytes, identity: str) -> bytes:
        """One message; JSON has no line breaks, so one data line holds it."""
        prefix = f"id: {identity}\nevent: message\ndata: " if identity else "event: message\ndata: "
        return b"%b%b\n\n" % (prefix.encode("ascii"), data)

    def error(self, data: bytes) -> bytes:
        """The last event of a stream that failed."""
        return b"event: error\ndata: %b\n\n" % data


class NdJson:
    """One object a line: `{"result":…}`, or `{"error":…}` as the last one."""

    content_type = _NDJSON
    heartbeat = b""
    end = b""

    def message(self, data: bytes, identity: str) -> bytes:
        """One line."""
        return b'{"result":%b}\n' % data

    def error(self, data: bytes) -> bytes:
        """The last line of a stream that failed: the error body as it is."""
        return data + b"\n"


def wants_bytes(accept: bytes) -> bool:
    """Whether a client asks for content itself, not for messages about it."""
    return b"application/octet-stream" in accept.lower()


def framing(accept: bytes) -> Framing:
    """SSE where the client asks for it, else NDJSON."""
    return ServerSentEvents() if _SSE in accept.lower() else NdJson()


class RawBytes:
    """Chunks as they come; of HttpBody messages, the first one's content type counts."""

    content_type = b"application/octet-stream"
    heartbeat = b""
    end = b""

    def message(self, data: bytes, identity: str) -> bytes:
        """The chunk."""
        return data

    def error(self, data: bytes) -> bytes:
        """Bytes leave no room for an error: the connection is cut, so that nobody takes half for the whole."""
        raise ConnectionAbortedError(data.decode("utf-8", "replace"))


class _SilentTooLong(Exception):
    pass


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one route's messages and errors become bytes, and whose silence is how long."""

    framing: Framing
    encode: Callable[[Any], bytes]
    problem_of: Callable[[grpc.aio.AioRpcError], Problem]
    problem_body: Callable[[Problem], bytes]
    idle_s: float
    heartbeat_s: float = HEARTBEAT_S
    first_message_s: float | None = FIRST_MESSAGE_S


class Stream:
    """A call under way whose messages are told as they come; one message is read ahead."""

    def __init__(self, call: Any, dialect: Dialect) -> None:
        self._call = call
        self._dialect = dialect
        self._reading: asyncio.Future[Any] = asyncio.ensure_future(call.read())
        self._is_interrupted = False

    async def first(self) -> Any:
        """The first message, EOF, or None when the stream is still quiet; raises Problem for an error."""
        await asyncio.wait({self._reading}, timeout=self._dialect.first_message_s)
        if not self._reading.done():
            return None
        try:
            return self._reading.result()
        except grpc.aio.AioRpcError as error:
            raise self._dialect.problem_of(error) from None
        except asyncio.CancelledError:
            if self._is_interrupted:
                raise _shutting_down() from None
            raise

    def interrupt(self) -> None:
        """Ends the stream with an error that says to come again: this process is going away."""
        self._is_interrupted = True
        self._call.cancel()

    async def respond(self, send: Send, *, is_head: bool) -> None:
        """Sends the whole answer, from the status line to the last byte; to HEAD, the status line alone."""
        framing = self._dialect.framing
        headers = [
            (b"content-type", framing.content_type),
            (b"cache-control", b"no-store"),
            (b"x-accel-buffering", b"no"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if is_head:
            await send({"type": "http.response.body", "body": b""})
            return
        end = framing.end
        try:
            await self._messages(send)
        except grpc.aio.AioRpcError as error:
            end = framing.error(self._dialect.problem_body(self._dialect.problem_of(error)))
        except asyncio.CancelledError:
            if not self._is_interrupted:
                raise
            end = framing.error(self._dialect.problem_body(_shutting_down()))
        except _SilentTooLong:
            end = framing.error(self._dialect.problem_body(_silence(self._dialect.idle_s)))
        await send({"type": "http.response.body", "body": end, "more_body": False})

    async def close(self) -> None:
        """Cancels the call and waits until nothing of it is left."""
        self._call.cancel()
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)

    async def _messages(self, send: Send) -> None:
        while True:
            if not self._reading.done():
                await self._wait(send)
            message = self._reading.result()
            if message is grpc.aio.EOF:
                return
            data = self._dialect.framing.message(self._dialect.encode(message), _identity(message))
            self._reading = asyncio.ensure_future(self._call.read())
            await send({"type": "http.response.body", "body": data, "more_body": True})

    async def _wait(self, send: Send) -> None:
        """Waits for the next message, with a heartbeat now and then; silence has a limit."""
        silent_s = 0.0
        while True:
            pause_s = min(self._dialect.heartbeat_s, self._dialect.idle_s - silent_s)
            await asyncio.wait({self._reading}, timeout=pause_s)
            if self._reading.done():
                return
            silent_s += pause_s
            if silent_s >= self._dialect.idle_s:
                raise _SilentTooLong
            if self._dialect.framing.heartbeat:
                await send({"type": "http.response.body", "body": self._dialect.framing.heartbeat, "more_body": True})


def _shutting_down() -> Problem:
    text = "the gateway is shutting down; open the stream again, behind the last message"
    return refusal(Unavailable(Reason.REASON_SHUTTING_DOWN, text, retry_after_s=1.0))


def _silence(idle_s: float) -> Problem:
    return refusal(
        DeadlineExceeded(Reason.REASON_DEADLINE_EXCEEDED, f"nothing came for {idle_s:g} s; open the stream again")
    )


def _identity(message: Any) -> str:
    """The message's number; 0 is no event, and an `id: 0` would make a browser begin again from the start."""
    sequence = getattr(message, "sequence", None)
    return str(sequence) if sequence and type(sequence) is int else ""
