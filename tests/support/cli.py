"""What tests of gemini-repo-cli need: an Ollama in a few lines, the environments to test, a look at processes."""

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from koubou_agent.setup_cli import STAND_IN, setup_cli

REAL_CLI_VARIABLE = "KOUBOU_TEST_CLI_PYTHON"  # the interpreter of an environment with the real gemini-repo-cli
CLI_KINDS = ("stand-in", "real") if os.environ.get(REAL_CLI_VARIABLE) else ("stand-in",)


@dataclass(frozen=True, slots=True)
class Received:
    """One request as it arrived."""

    path: str
    headers: dict[str, str]
    body: dict[str, object]


@dataclass(slots=True)
class Reply:
    """What is sent back, byte for byte; `length` may lie about it, `hold` delays it."""

    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None
    hold: threading.Event | None = None


class TinyOllama:
    """Answers every POST with what `answer` makes of it."""

    def __init__(self, port: int, received: list[Received]) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.received = received
        self.answer: Callable[[Received], Reply] = lambda _request: says("ok")


def says(text: str | None, **more: object) -> Reply:
    """An answer as Ollama words it."""
    answer = {"model": "m", "created_at": "2026-01-01T00:00:00Z", "response": text, "done": True, **more}
    return Reply(json.dumps(answer).encode())


@contextmanager
def tiny_ollama() -> Iterator[TinyOllama]:
    """A running one; every connection is over when this is left."""
    received: list[Received] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            request = Received(self.path, dict(self.headers), json.loads(body))
            received.append(request)
            reply = ollama.answer(request)
            if reply.hold is not None:
                reply.hold.wait(30)
            try:
                self.send_response(reply.status)
                for name, value in {"Content-Type": "application/json", **reply.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(reply.length or len(reply.body)))
                self.end_headers()
                self.wfile.write(reply.body)
            except ConnectionError:
                return  # the caller was killed, which many tests are about

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is inherited
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = False  # joined on closing
        request_queue_size = 64

    with Server(("127.0.0.1", 0), Handler) as server:
        ollama = TinyOllama(server.server_port, received)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield ollama
        finally:
            server.shutdown()
            thread.join()


def stand_in_python(home: Path) -> Path:
    """The interpreter of a fresh environment with the stand-in."""
    return Path(setup_cli(home, STAND_IN).python)


def cli_python(kind: str, home: Path) -> Path:
    """The interpreter for one of CLI_KINDS."""
    return Path(os.environ[REAL_CLI_VARIABLE]) if kind == "real" else stand_in_python(home)


def children_of(pid: int) -> list[int]:
    """The living children of a process (Linux)."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(parent) == pid and state not in "ZX":
            found.append(int(stat.parent.name))
    return found


def is_alive(pid: int) -> bool:
    """False for a process that is gone or only waits to be reaped (Linux)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"
