"""HTTP/1.1 as uvicorn's httptools protocol speaks it, with two things added that it lacks.

It takes headers without end: here a head has a limit. And it tells nobody when the server is about to leave,
but waits for answers that never end: here the application hears of it, in each worker process.
"""

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 << 10
"""The largest request line with all its headers, in bytes."""

_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Type: text/plain\r\n"
    b"Content-Length: 0\r\nConnection: close\r\n\r\n"
)


class BoundedProtocol(HttpToolsProtocol):
    """Answers 431 and hangs up when the request line and the headers are larger than 64 KiB.

    Calls `app.state.drain()`, where the application has one, when the server shuts down.
    """

    _head_bytes = 0
    _is_in_head = True
    _heads = 0

    def data_received(self, data: bytes) -> None:
        """Counts what arrives until the headers are complete."""
        was_in_head, heads = self._is_in_head, self._heads
        super().data_received(data)
        if not self._is_in_head:
            return
        # What came along with the end of an earlier request is not counted: one read more is let through.
        if was_in_head and heads == self._heads:
            self._head_bytes += len(data)
        if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.transport.write(_TOO_LARGE)
            self.transport.close()

    def shutdown(self) -> None:
        """The server leaves: the application ends what would go on for ever. Once for each connection."""
        drain = getattr(getattr(self.app, "state", None), "drain", None)
        if drain is not None:
            drain()
        super().shutdown()

    def on_headers_complete(self) -> None:
        """The rest is body, which the application limits."""
        self._is_in_head = False
        self._heads += 1
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """What comes next is another head."""
        self._is_in_head = True
        self._head_bytes = 0
        super().on_message_complete()
