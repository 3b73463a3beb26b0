"""HTTP/1.1 with a limit on what comes before a body: uvicorn's httptools protocol takes headers without end."""

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 << 10
"""The largest request line with all its headers, in bytes."""

_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Type: text/plain\r\n"
    b"Content-Length: 0\r\nConnection: close\r\n\r\n"
)


class BoundedProtocol(HttpToolsProtocol):
    """Answers 431 and hangs up when the request line and the headers are larger than 64 KiB."""

    _head_bytes = 0
    _is_in_head = True

    def data_received(self, data: bytes) -> None:
        """Counts what arrives until the headers are complete."""
        if self._is_in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._is_in_head and self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.transport.write(_TOO_LARGE)
            self.transport.close()

    def on_message_begin(self) -> None:
        """A request begins: its head counts from here."""
        self._is_in_head = True
        self._head_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The rest is body, which the application limits."""
        self._is_in_head = False
        super().on_headers_complete()
