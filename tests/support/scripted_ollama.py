"""A server that answers like Ollama, or as wrongly as a test wants: each reply is a script over the raw socket."""

import contextlib
import json
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType

Script = Callable[["Peer"], None]


@dataclass(frozen=True, slots=True)
class Asked:
    """One request as it came."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: Mapping[str, object]


class Peer:
    """One connection to the code under test."""

    def __init__(self, connection: socket.socket, asked: Asked, stopping: threading.Event) -> None:
        self.asked = asked
        self._connection = connection
        self._stopping = stopping

    def raw(self, data: bytes) -> None:
        """Send bytes as they are."""
        self._connection.sendall(data)

    def reply(self, status: int, body: bytes, content_type: str = "application/json", **headers: str) -> None:
        """A whole answer with its length."""
        head = f"HTTP/1.1 {status} X\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
        for name, value in headers.items():
            head += f"{name}: {value}\r\n"
        self.raw(head.encode() + b"\r\n" + body)

    def fields(self, status: int, **fields: object) -> None:
        """A whole answer of JSON."""
        self.reply(status, json.dumps(fields).encode())

    def head(self) -> None:
        """The head of a streamed answer."""
        self.raw(b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n")

    def chunk(self, data: bytes) -> None:
        """One chunk of a streamed answer."""
        self.raw(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def line(self, **fields: object) -> None:
        """One line of JSON in a chunk of its own."""
        self.chunk(json.dumps(fields).encode() + b"\n")

    def token(self, text: str) -> None:
        """One token of an answer."""
        self.line(model="m", response=text, done=False)

    def thought(self, text: str) -> None:
        """One token of thinking."""
        self.line(model="m", response="", thinking=text, done=False)

    def end(self, reason: str = "stop", prompt: int = 10, tokens: int = 5, **fields: object) -> None:
        """The last line and the closing chunk."""
        self.line(
            model="m", response="", done=True, done_reason=reason, prompt_eval_count=prompt, eval_count=tokens, **fields
        )
        self.close_chunks()

    def close_chunks(self) -> None:
        """The closing chunk alone."""
        self.raw(b"0\r\n\r\n")

    def reset(self) -> None:
        """RST instead of an orderly end."""
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def hung_up(self, timeout_s: float) -> bool:
        """Whether the other side closes within `timeout_s`."""
        self._connection.settimeout(timeout_s)
        try:
            return self._connection.recv(1) == b""
        except TimeoutError:
            return False
        except OSError:
            return True
        finally:
            with contextlib.suppress(OSError):
                self._connection.settimeout(None)

    def hold(self) -> None:
        """Say nothing until the other side closes or the server stops."""
        while not self._stopping.is_set() and not self.hung_up(0.05):
            pass


class ScriptedOllama:
    """Listens on loopback; /api/generate is answered by `script`, /api/ps by what `loaded` holds."""

    def __init__(self, script: Script, loaded: tuple[tuple[str, int], ...] = ()) -> None:
        self.script = script
        self.loaded = loaded
        self.asked: list[Asked] = []
        self.hangups = 0
        self._stopping = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._threads: list[threading.Thread] = []
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> "ScriptedOllama":
        self._spawn(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in list(self._threads):
            thread.join(5)

    @property
    def generated(self) -> list[Mapping[str, object]]:
        """The bodies of the generating requests."""
        return [asked.body for asked in self.asked if asked.path.endswith("/api/generate")]

    def _spawn(self, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._stopping.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._spawn(lambda connection=connection: self._serve(connection))  # type: ignore[misc]  # a bound default

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            asked = _read(connection)
            self.asked.append(asked)
            peer = Peer(connection, asked, self._stopping)
            if asked.path == "/api/ps":
                peer.fields(200, models=[{"name": name, "context_length": ctx} for name, ctx in self.loaded])
            else:
                self.script(peer)


def _read(connection: socket.socket) -> Asked:
    with connection.makefile("rb") as reader:
        method, path, _ = reader.readline().decode().split(" ", 2)
        headers: dict[str, str] = {}
        while (line := reader.readline().decode().strip()) != "":
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        body = reader.read(int(headers.get("content-length", "0")))
    return Asked(method, path, headers, json.loads(body) if body else {})
