"""HTTP/1.1 as Go's server speaks it: a request read from a socket, an answer written with the recorded headers."""

import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import formatdate
from typing import Final, Protocol

from .errors import Gone

_HEADER_LIMIT_BYTES: Final = 1 << 20  # Go's own
_BODY_LIMIT_BYTES: Final = 64 << 20
_BUFFERED_BYTES: Final = 2048  # what fits Go's buffer goes out with its length, what is longer in chunks
_REASONS: Final = {
    200: "OK", 204: "No Content", 302: "Found", 307: "Temporary Redirect", 400: "Bad Request", 403: "Forbidden",
    404: "Not Found", 405: "Method Not Allowed", 500: "Internal Server Error", 501: "Not Implemented",
    503: "Service Unavailable",
}  # fmt: skip
JSON_TYPE: Final = "application/json; charset=utf-8"


class BadRequest(Exception):  # noqa: N818 - the peer's mistake, answered and closed
    """What came is no HTTP request."""


@dataclass(frozen=True, slots=True)
class Request:
    """Header names in lower case."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes
    close: bool


class Link(Protocol):
    """Where the bytes of an answer go; a fault may stand between."""

    def send(self, data: bytes) -> None: ...


class RequestReader:
    """Reads one request after the other from a connection."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = b""

    def read(self) -> Request | None:
        """None at the end of the connection. Raises BadRequest."""
        head = self._read_head()
        if head is None:
            return None
        lines = head.decode("latin-1").split("\r\n")
        words = lines[0].split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            raise BadRequest("malformed HTTP request")
        headers: dict[str, str] = {}
        for line in lines[1:]:
            name, colon, value = line.partition(":")
            if not colon or not name or name != name.strip():
                raise BadRequest("malformed MIME header line")
            headers[name.lower()] = value.strip()
        if headers.get("expect", "").lower() == "100-continue":
            self._sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = self._read_body(headers)
        path, _, query = words[1].partition("?")
        wish = headers.get("connection", "").lower()
        close = "close" in wish or (words[2] == "HTTP/1.0" and "keep-alive" not in wish)
        return Request(words[0], path, query, headers, body, close)

    def _read_head(self) -> bytes | None:
        while b"\r\n\r\n" not in self._buffer:
            if len(self._buffer) > _HEADER_LIMIT_BYTES:
                raise BadRequest("header too large")
            data = self._receive()
            if not data:
                return None
            self._buffer += data
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        return head

    def _read_body(self, headers: Mapping[str, str]) -> bytes:
        if headers.get("transfer-encoding", "").lower() == "chunked":
            parts: list[bytes] = []
            while size := self._chunk_size():
                parts.append(self._exactly(size))
                self._exactly(2)
            self._line()
            return b"".join(parts)
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > _BODY_LIMIT_BYTES:
            raise BadRequest("bad Content-Length")
        return self._exactly(int(length))

    def _chunk_size(self) -> int:
        try:
            size = int(self._line().split(b";")[0], 16)
        except ValueError:
            raise BadRequest("malformed chunked encoding") from None
        if not 0 <= size <= _BODY_LIMIT_BYTES:
            raise BadRequest("malformed chunked encoding")
        return size

    def _line(self) -> bytes:
        while b"\r\n" not in self._buffer:
            self._more()
        line, _, self._buffer = self._buffer.partition(b"\r\n")
        return line

    def _exactly(self, size: int) -> bytes:
        if len(self._buffer) < size:
            parts = [self._buffer]
            missing = size - len(self._buffer)
            while missing > 0:
                data = self._receive()
                if not data:
                    raise BadRequest("unexpected EOF")
                parts.append(data)
                missing -= len(data)
            self._buffer = b"".join(parts)
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    def _more(self) -> None:
        data = self._receive()
        if not data:
            raise BadRequest("unexpected EOF")
        self._buffer += data

    def _receive(self) -> bytes:
        try:
            return self._sock.recv(1 << 16)
        except OSError:
            return b""


class SocketLink:
    """Straight to the client."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def send(self, data: bytes) -> None:
        try:
            self._sock.sendall(data)
        except OSError:
            raise Gone from None


class Reply:
    """One answer: whole, or streamed chunk by chunk. `status` and `chunks` tell what went out."""

    def __init__(self, request: Request, link: Link) -> None:
        self.status: int | None = None
        self.chunks = 0
        self._request = request
        self._link = link
        self._head = b""

    def json(self, status: int, body: bytes, content_type: str = JSON_TYPE) -> None:
        self.whole(status, body, content_type)

    def whole(self, status: int, body: bytes, content_type: str, extra: Mapping[str, str] | None = None) -> None:
        """With its length if it is short, else as one chunk."""
        if len(body) > _BUFFERED_BYTES:
            self.begin(status, content_type)
            self.chunk(body)
            self.finish()
            return
        before = {name: value for name, value in (extra or {}).items() if name == "Allow"}
        after = {name: value for name, value in (extra or {}).items() if name != "Allow"}
        typed = {"Content-Type": content_type} if content_type else {}
        headers = {**before, **typed, **after, "Date": formatdate(usegmt=True), "Content-Length": str(len(body))}
        self._send_head(status, headers, b"" if self._request.method == "HEAD" else body)

    def begin(self, status: int, content_type: str) -> None:
        """The head of a chunked answer; it leaves together with the first chunk."""
        self.status = status
        headers = {"Content-Type": content_type, "Date": formatdate(usegmt=True)}
        self._head = self._render(status, headers, chunked=True)

    def chunk(self, data: bytes) -> None:
        head, self._head = self._head, b""
        if self._request.method == "HEAD":
            self._link.send(head)
            return
        self.chunks += 1
        self._link.send(head + f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def finish(self) -> None:
        head, self._head = self._head, b""
        self._link.send(head if self._request.method == "HEAD" else head + b"0\r\n\r\n")

    def head_only(self, status: int, content_type: str) -> None:
        """Headers that promise more; nothing follows."""
        self.begin(status, content_type)
        head, self._head = self._head, b""
        self._link.send(head)

    def _send_head(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.status = status
        self._link.send(self._render(status, headers, chunked=False) + body)

    def _render(self, status: int, headers: Mapping[str, str], *, chunked: bool) -> bytes:
        lines = [f"HTTP/1.1 {status} {_REASONS.get(status, 'status code ' + str(status))}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if self._request.close:
            lines.append("Connection: close")
        if chunked:
            lines.append("Transfer-Encoding: chunked")
        return "\r\n".join([*lines, "", ""]).encode("latin-1")


def reset(sock: socket.socket) -> None:
    """Close so that the peer sees a reset, not an end."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
