"""One streamed call to Ollama over a connection that any thread can interrupt."""

import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from koubou_agent.verdict import End, Observed
from koubou_common.errors import ConfigError

_READ_BYTES = 64 * 1024
_ERROR_BODY_BYTES_MAX = 64 * 1024  # Ollama's longest error text is a few hundred bytes
# The last line carries every token id of the prompt: a task of 16 MiB has some five million.
_LINE_BYTES_MAX = 64 * 2**20
_KEEPALIVE_IDLE_S = 30  # a box that lost its power says nothing: the system's probes notice
_KEEPALIVE_PROBES = 4


@dataclass(frozen=True, slots=True)
class Address:
    """Where an Ollama listens."""

    host: str
    port: int
    prefix: str = ""  # of the path, without a slash at its end

    @classmethod
    def of(cls, url: str) -> "Address":
        """From `http://host:port`; anything else is a mistake in the configuration."""
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            port = parts.port
        except ValueError as error:
            raise ConfigError(f"ollama_url {url!r} cannot be read: {error}", _URL_HINT) from error
        if parts.scheme != "http" or not parts.hostname or parts.username or parts.query:
            raise ConfigError(f"ollama_url {url!r} is not the address of an Ollama", _URL_HINT)
        return cls(parts.hostname, port or 11434, parts.path.rstrip("/"))

    @property
    def url(self) -> str:
        """The address as a URL, without a slash at its end."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}{self.prefix}"


_URL_HINT = "write it like http://127.0.0.1:11434"


@dataclass(frozen=True, slots=True)
class Durations:
    """Ollama's own clocks of one answer; 0 where it gave none."""

    load_ms: int = 0
    prompt_ms: int = 0
    eval_ms: int = 0
    total_ms: int = 0


@dataclass(slots=True)
class Heard:
    """What has been heard so far; written by the calling thread only, read by all."""

    status: int = 0
    lines: int = 0
    output_chunks: int = 0
    thinking_chunks: int = 0
    durations: Durations = Durations()


class Upstream:
    """One request and its answer; `run` blocks, `interrupt` ends it from any thread, at any moment."""

    def __init__(self, address: Address, connect_s: float) -> None:
        self.heard = Heard()
        self._address = address
        self._connection = http.client.HTTPConnection(address.host, address.port, timeout=connect_s)
        self._lock = threading.Lock()  # guards the socket against being closed while it is shut down
        self._socket: socket.socket | None = None
        self._interrupted = False

    def run(
        self,
        body: Mapping[str, object],
        *,
        output_bytes_max: int,
        on_connected: Callable[[], None],
        on_byte: Callable[[], None],
        on_line: Callable[[], None],
    ) -> Observed:
        """Send `body` to the generate endpoint and read the answer to its end, whatever that is.

        `on_connected` comes before the first byte is sent, `on_byte` at the answer's head, `on_line` with
        each line of it.
        """
        payload = json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")
        reader = _Reader(self.heard, output_bytes_max, on_line)
        try:
            failed = self._connect()
            if failed is not None:
                return failed
            on_connected()
            try:
                self._connection.request(
                    "POST",
                    f"{self._address.prefix}/api/generate",
                    payload,
                    {"Content-Type": "application/json", "Accept": "application/x-ndjson"},
                )
                response = self._connection.getresponse()
            except (http.client.RemoteDisconnected, OSError) as error:
                return reader.observed(End.CUT, _words(error))
            except http.client.HTTPException as error:
                return reader.observed(End.NOT_HTTP, f"{type(error).__name__}: {error}")
            with response:
                self.heard.status = response.status
                on_byte()
                return reader.read(response)
        finally:
            self._close()

    def interrupt(self) -> None:
        """End the call at once: a blocked read or write returns."""
        with self._lock:
            self._interrupted = True
            if self._socket is not None:
                _shut(self._socket)

    def _connect(self) -> Observed | None:
        try:
            self._connection.connect()
        except OSError as error:
            return Observed(End.UNREACHABLE, detail=f"{self._address.url}: {_words(error)}")
        with self._lock:
            connected: socket.socket = self._connection.sock
            self._socket = connected
            connected.settimeout(None)
            _keep_alive(connected)
            if self._interrupted:
                _shut(connected)
        return None

    def _close(self) -> None:
        with self._lock:
            self._connection.close()
            if self._socket is not None:
                self._socket.close()
                self._socket = None


class _Reader:
    """Turns the bytes of one answer into what was observed."""

    def __init__(self, heard: Heard, output_bytes_max: int, on_line: Callable[[], None]) -> None:
        self._heard = heard
        self._output_bytes_max = output_bytes_max
        self._on_line = on_line
        self._pieces: list[str] = []
        self._output_bytes = 0
        self._error_text = ""
        self._malformed = ""  # why, in our words
        self._last: dict[str, object] = {}  # the line with done: true

    def read(self, response: http.client.HTTPResponse) -> Observed:
        """Read to the end; an end that was not announced is a cut."""
        if response.status != 200:
            return self._read_error(response)
        buffer = bytearray()
        while True:
            try:
                data = response.read1(_READ_BYTES)
            except (http.client.HTTPException, OSError, ValueError) as error:
                return self.observed(End.CUT, _words(error))
            if not data:
                break
            buffer += data
            if b"\n" in data:
                *lines, rest = bytes(buffer).split(b"\n")
                for line in lines:
                    self._take(line)
                    if self._is_over():
                        return self.observed(self._end_of(response))
                buffer = bytearray(rest)
            if len(buffer) > _LINE_BYTES_MAX:
                self._malformed = "a line without an end"
                return self.observed(End.COMPLETE)
        if _is_cut(response):
            return self.observed(End.CUT, "the connection closed")
        self._take(bytes(buffer))  # a whole JSON ends without a newline
        return self.observed(self._end_of(response))

    def observed(self, end: End, detail: str = "") -> Observed:
        """Everything known now."""
        last = self._last
        self._heard.durations = Durations(
            load_ms=_number(last, "load_duration") // 1_000_000,
            prompt_ms=_number(last, "prompt_eval_duration") // 1_000_000,
            eval_ms=_number(last, "eval_duration") // 1_000_000,
            total_ms=_number(last, "total_duration") // 1_000_000,
        )
        return Observed(
            end=end,
            status=self._heard.status,
            detail=detail or self._malformed,
            error_text=self._error_text,
            malformed=bool(self._malformed),
            lines=self._heard.lines,
            text=_sound("".join(self._pieces)),
            done=bool(last),
            done_reason=_word(last, "done_reason"),
            prompt_tokens=_number(last, "prompt_eval_count"),
            eval_tokens=_number(last, "eval_count"),
            thinking_chunks=self._heard.thinking_chunks,
        )

    def _read_error(self, response: http.client.HTTPResponse) -> Observed:
        try:
            body = response.read(_ERROR_BODY_BYTES_MAX)
        except (http.client.HTTPException, OSError, ValueError):
            body = b""  # the status says enough
        fields = _object(body)
        if fields is not None:
            error = fields.get("error")
            # llama-server's own errors are objects with a message in them.
            self._error_text = _word(error, "message") if isinstance(error, dict) else _word(fields, "error")
        elif response.status != 404 and not body.lstrip().startswith(b"<"):
            # Some of Ollama's errors are plain text; a 404 in plain text is not about a model.
            self._error_text = body.decode("utf-8", "replace").strip()
        return self.observed(End.COMPLETE)

    def _take(self, line: bytes) -> None:
        if not line.strip():
            return
        fields = _object(line)
        if fields is None:
            self._malformed = "no JSON" if self._heard.lines == 0 else "a line that is no JSON"
            return
        if "error" in fields:
            self._error_text = _word(fields, "error") or "an error without words"
            return
        piece, thinking = fields.get("response"), fields.get("thinking")
        if not isinstance(piece, str):
            self._malformed = "a line without an answer in it"
            return
        self._heard.lines += 1
        if piece:
            self._heard.output_chunks += 1
            self._output_bytes += len(piece.encode("utf-8", "surrogatepass"))
            self._pieces.append(piece)
        elif isinstance(thinking, str) and thinking:
            self._heard.thinking_chunks += 1
        if fields.get("done") is True:
            self._last = fields
        self._on_line()

    def _is_over(self) -> bool:
        """Whether nothing that may still come could change the verdict."""
        return bool(self._last or self._error_text or self._malformed) or self._is_too_large()

    def _is_too_large(self) -> bool:
        return self._output_bytes > self._output_bytes_max

    def _end_of(self, response: http.client.HTTPResponse) -> End:
        if self._is_too_large():
            return End.TOO_LARGE
        # Without a length and without chunks the end of the connection proves nothing.
        announced = response.chunked or response.length is not None
        return End.COMPLETE if announced or self._is_over() else End.CUT


def _words(error: Exception) -> str:
    """What happened to a connection, without Python's or the system's numbers."""
    if isinstance(error, OSError):
        return error.strerror or str(error) or "it broke"
    return "the connection closed"


def _is_cut(response: http.client.HTTPResponse) -> bool:
    """Whether a body of announced length ended before it (http.client tells only for chunks)."""
    return bool(response.length)


def _object(line: bytes) -> dict[str, object] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _word(fields: Mapping[str, object], name: str) -> str:
    value = fields.get(name)
    return value if isinstance(value, str) else ""


def _number(fields: Mapping[str, object], name: str) -> int:
    value = fields.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _sound(text: str) -> str:
    """Lone halves of a surrogate pair become U+FFFD: no file and no wire could carry them."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _shut(connected: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the other side was faster
        connected.shutdown(socket.SHUT_RDWR)


def _keep_alive(connected: socket.socket) -> None:
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", _KEEPALIVE_IDLE_S),
        ("TCP_KEEPINTVL", _KEEPALIVE_IDLE_S),
        ("TCP_KEEPCNT", _KEEPALIVE_PROBES),
    ):
        option = getattr(socket, name, None)  # macOS and Windows lack some of them
        if option is not None:
            connected.setsockopt(socket.IPPROTO_TCP, option, value)
