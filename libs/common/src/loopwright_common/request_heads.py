"""HTTP with a limit to what a request may send besides its body: httptools, which uvicorn reads requests with, takes any number of bytes.

uvicorn's own limit (``h11_max_incomplete_event_size``) is for h11 alone, which serves .4 to .5 of the requests a second that httptools
serves on a route that does nothing. With this limit httptools serves .95 there, and ingest as many as without it, as far as can be told.
"""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES_MAX = 64 * 1024  # request line and headers; nginx takes 32 KiB, a browser's cookies of one site are 4 KiB each
READ_BYTES = 32 * 1024  # handed to the parser at once: a head that ends in the piece that passes the limit is still taken, 96 KiB at most
LINGER_SECONDS = 1.0  # a client that is still sending reads the answer only when the connection is not reset meanwhile

PROBLEM = b'{"type":"about:blank","title":"Request Header Fields Too Large","status":431,"detail":"The headers are over %d bytes."}'


class BoundedHeads(HttpToolsProtocol):
    """A connection that is answered 431 and closed after so many bytes from which neither a whole head nor a piece of a body came.

    So headers, trailers, an address or a chunk's extension without end, fast or drop by drop.
    """

    _idle_bytes = 0
    _body_came = False
    _refused = False

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return  # what still comes is dropped, until the connection is closed
        if len(data) > READ_BYTES:
            for start in range(0, len(data), READ_BYTES):
                if not self._refused and not self.transport.is_closing():
                    self._read(data[start : start + READ_BYTES])
        else:
            self._read(data)

    def _read(self, data: bytes) -> None:
        cycle, self._body_came = self.cycle, False
        super().data_received(data)
        if self._body_came or self.cycle is not cycle:  # a new cycle is a head that was complete
            self._idle_bytes = 0
            return
        self._idle_bytes += len(data)
        if self._idle_bytes >= HEAD_BYTES_MAX and not self.transport.is_closing():
            self._refuse()

    def on_body(self, body: bytes) -> None:
        self._body_came = True
        super().on_body(body)

    def _refuse(self) -> None:
        self._refused = True
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering:  # to the application its client is gone
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if not answering or not self.cycle.response_started:
            body = PROBLEM % HEAD_BYTES_MAX
            head = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/problem+json\r\nconnection: close\r\n"
            self.transport.write(head + b"content-length: %d\r\n\r\n" % len(body) + body)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(LINGER_SECONDS, self.transport.close)
