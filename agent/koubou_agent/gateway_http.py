"""The HTTP side of the gateway: one path per open door on 127.0.0.1, and nothing else."""

import contextlib
import json
import logging
import socket
import socketserver
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler

from koubou_agent.gateway_door import Door, Reply, to_json

_log = logging.getLogger("koubou_agent")

_REQUEST_BYTES_MAX = 20 * 2**20  # a task's 16 MiB of files, escaped, and its prompt
_REQUEST_S = 30.0  # for a request to arrive over loopback; an answer may take hours
_CONNECTIONS_MAX = 64  # of one box's few slots; whoever opens more is no CLI of ours
_DRAIN_BYTES = 64 * 1024  # read before refusing, so that a small request's sender reads the refusal
_PATH_PARTS = ("", "t")  # /t/<secret>/api/generate


class GatewayServer(socketserver.ThreadingTCPServer):
    """Listens on a free port of 127.0.0.1; `find` gives the door of a secret."""

    daemon_threads = True
    request_queue_size = _CONNECTIONS_MAX

    def __init__(self, find: Callable[[str], Door | None]) -> None:
        self.find = find
        self._room = threading.BoundedSemaphore(_CONNECTIONS_MAX)
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def port(self) -> int:
        """Where it listens."""
        port = self.server_address[1]
        assert isinstance(port, int)
        return port

    def stop(self) -> None:
        """Stop listening; connections that are being served end by themselves."""
        asking = threading.Thread(target=self.shutdown, daemon=True)
        asking.start()
        # The loop looks up every half second, or when somebody comes.
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), timeout=1.0).close()
        asking.join()
        self.server_close()

    def process_request(self, request: socket.socket | tuple[bytes, socket.socket], client_address: object) -> None:
        """Take the connection into a thread, or close it where there are too many."""
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(
        self, request: socket.socket | tuple[bytes, socket.socket], client_address: object
    ) -> None:
        """Serve one connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002 - socketserver's
        """Note what broke; a CLI that was killed is no news."""
        error = sys.exception()
        if not isinstance(error, OSError):
            _log.error("gateway request failed", exc_info=error)


class _Handler(BaseHTTPRequestHandler):
    """One request a connection; http.server caps its lines at 64 KiB and its headers at 100."""

    server: GatewayServer
    timeout = _REQUEST_S
    server_version = "koubou-gateway"
    sys_version = ""
    error_message_format = '{"error":"%(code)d"}'
    error_content_type = "application/json"

    def do_POST(self) -> None:
        """Ask through the door, if there is one."""
        self._serve()

    def do_GET(self) -> None:
        """Refused like any other method."""
        self._serve()

    do_HEAD = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_GET  # noqa: N815 - http.server's names

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
        """Silence: paths hold secrets."""

    def _serve(self) -> None:
        door, path = self._door()
        if door is None:
            # Nothing tells a stranger whether the secret, the path or the method was wrong.
            self._drain()
            self._send(Reply(403, {"error": "forbidden"}))
        elif path != "/api/generate" or self.command != "POST":
            self._drain()
            self._send(door.refuse(404, "only POST /api/generate is served"))
        else:
            self._send(self._ask(door))

    def _door(self) -> tuple[Door | None, str]:
        parts = self.path.split("/", 3)
        if len(parts) < 3 or tuple(parts[:2]) != _PATH_PARTS:
            return None, ""
        return self.server.find(parts[2]), f"/{parts[3]}" if len(parts) > 3 else ""

    def _ask(self, door: Door) -> Reply:
        length = self._length()
        if length is None:
            return door.refuse(411, "the request does not say how long it is")
        if length > _REQUEST_BYTES_MAX:
            return door.refuse(413, f"the request is over {_REQUEST_BYTES_MAX} bytes")
        body = self.rfile.read(length)
        if len(body) < length:
            return door.refuse(400, "the request ended early")
        try:
            fields = json.loads(body)
        except (ValueError, RecursionError):
            fields = None
        return door.answer(fields if isinstance(fields, dict) else None, self._is_gone)

    def _length(self) -> int | None:
        text = self.headers.get("Content-Length", "")
        # isdigit alone would let other scripts' digits through, and int() takes them.
        return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else None

    def _drain(self) -> None:
        self.rfile.read(min(self._length() or 0, _DRAIN_BYTES))

    def _is_gone(self) -> bool:
        try:
            self.connection.settimeout(0)
            return not self.connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True
        finally:
            self.connection.settimeout(_REQUEST_S)

    def _send(self, reply: Reply) -> None:
        payload = to_json(reply.fields)
        self.close_connection = True
        self.send_response(reply.status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(payload)))
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(payload)
