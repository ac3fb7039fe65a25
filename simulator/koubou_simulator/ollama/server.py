"""Sockets: listen, one thread a connection, and notice at once when a client leaves."""

import contextlib
import selectors
import socket
import threading
from collections.abc import Callable
from typing import Final

from .errors import Gone
from .wire import BadRequest, Reply, Request, RequestReader, SocketLink, reset
from .world import Stopped, World

_BACKLOG: Final = 512
_JOIN_S: Final = 5.0


class Connection:
    """One client; `left` tells whether it is still there."""

    def __init__(self, sock: socket.socket, world: World) -> None:
        self.sock = sock
        self.link = SocketLink(sock)
        self._world = world
        self._left = False
        self._on_leave: list[Callable[[], None]] = []

    def left(self) -> bool:
        return self._left

    def on_leave(self, act: Callable[[], None]) -> None:
        """Once, when the client leaves while its request is being answered; at once if it has left."""
        with self._world.lock():
            self._on_leave.append(act)
            if self._left:
                act()

    def answered(self) -> None:
        with self._world.lock():
            self._on_leave.clear()

    def leave(self) -> None:
        with self._world.lock():
            if self._left:
                return
            self._left = True
            for act in self._on_leave:
                act()
            self._world.changed()

    def drop(self) -> None:
        """As if the server's process ended: the client sees the end of the stream."""
        self.leave()
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def reset(self) -> None:
        self.leave()
        with contextlib.suppress(OSError):
            reset(self.sock)


class HttpServer:
    """Listens on a loopback port; `handle(request, reply, connection)` runs in the connection's thread."""

    def __init__(
        self, host: str, port: int, world: World, handle: Callable[[Request, Reply, Connection], None]
    ) -> None:
        self._host = host
        self._world = world
        self._handle = handle
        self._watch = _PeerWatch()
        self._lock = threading.Lock()
        self._connections: dict[Connection, threading.Thread] = {}
        self._closing = False
        self._listener = self._bound(port)
        self.port: int = self._listener.getsockname()[1]
        self._acceptor: threading.Thread | None = None
        self._answering: set[Connection] = set()
        self.begun = 0  # requests read so far

    def start(self) -> None:
        self._watch.start()
        self.listen()

    def listen(self) -> None:
        """Accept from now on; harmless if it does already."""
        with self._lock:
            if self._acceptor is not None or self._closing:
                return
            self._listener.listen(_BACKLOG)
            self._acceptor = threading.Thread(
                target=self._accept, args=(self._listener,), name="simulated listener", daemon=True
            )
            self._acceptor.start()

    def refuse(self) -> None:
        """Keep the port, but let nothing listen on it."""
        with self._lock:
            acceptor, self._acceptor = self._acceptor, None
            old = self._listener
            with contextlib.suppress(OSError):
                old.shutdown(socket.SHUT_RDWR)
        if acceptor is not None:
            acceptor.join(_JOIN_S)
        old.close()
        with self._lock:
            self._listener = self._bound(self.port)

    @property
    def attended(self) -> int:
        """Requests being answered whose client is still there."""
        with self._lock:
            return sum(not connection.left() for connection in self._answering)

    def drop_all(self, but: Connection | None = None) -> None:
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            if connection is not but:
                connection.drop()

    def stop(self) -> None:
        """Everything at once, answers in the middle too."""
        with self._lock:
            self._closing = True
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
        self.drop_all()
        if self._acceptor is not None:
            self._acceptor.join(_JOIN_S)
        self._listener.close()
        with self._lock:
            threads = list(self._connections.values())
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(_JOIN_S)
        self._watch.stop()

    def _bound(self, port: int) -> socket.socket:
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((self._host, port))
        except OSError:
            listener.close()
            raise
        return listener

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = Connection(sock, self._world)
            thread = threading.Thread(target=self._serve, args=(connection,), name="simulated connection", daemon=True)
            with self._lock:
                if self._closing:
                    sock.close()
                    return
                self._connections[connection] = thread
                thread.start()

    def _serve(self, connection: Connection) -> None:
        reader = RequestReader(connection.sock)
        try:
            with contextlib.suppress(Gone, Stopped, OSError):
                while self._answer_one(reader, connection):
                    pass
        finally:
            connection.leave()
            with contextlib.suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)
            connection.sock.close()
            with self._lock:
                self._connections.pop(connection, None)

    def _answer_one(self, reader: RequestReader, connection: Connection) -> bool:
        try:
            request = reader.read()
        except BadRequest as error:
            text = f"400 Bad Request: {error}".encode()
            connection.link.send(
                b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n"
                + text
            )
            return False
        if request is None:
            return False
        with self._world.acting():
            with self._lock:
                self._answering.add(connection)
                self.begun += 1
            self._watch.add(connection)
            try:
                self._handle(request, Reply(request, connection.link), connection)
            finally:
                self._watch.remove(connection)
                connection.answered()
                with self._lock:
                    self._answering.discard(connection)
        return not request.close and not connection.left()


class _PeerWatch:
    """Tells a connection when its client hangs up: nothing is read, the socket is only looked at."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._lock = threading.Lock()
        self._watched: dict[socket.socket, Connection] = {}
        self._wake_in, self._wake_out = socket.socketpair()
        self._selector.register(self._wake_in, selectors.EVENT_READ)
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="simulated hang-up watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def add(self, connection: Connection) -> None:
        with self._lock:
            self._selector.register(connection.sock, selectors.EVENT_READ)
            self._watched[connection.sock] = connection
        # Not every system's selector sees a new socket while it waits.
        self._wake_out.send(b"!")

    def remove(self, connection: Connection) -> None:
        """Must come before the socket is read or closed: from then on it is not looked at."""
        with self._lock:
            self._forget(connection.sock)

    def stop(self) -> None:
        self._stopping = True
        if self._thread.ident is not None:
            self._wake_out.send(b"!")
            self._thread.join(_JOIN_S)
        self._selector.close()
        self._wake_in.close()
        self._wake_out.close()

    def _run(self) -> None:
        while not self._stopping:
            gone: list[Connection] = []
            for key, _ in self._selector.select():
                if key.fileobj is self._wake_in:
                    self._wake_in.recv(4096)
                    continue
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                with self._lock:
                    connection = self._watched.get(sock)
                    # Either way it is looked at no more: it has left, or has sent its next request already.
                    if connection is not None:
                        self._forget(sock)
                        if _has_left(sock):
                            gone.append(connection)
            for connection in gone:
                connection.leave()

    def _forget(self, sock: socket.socket) -> None:
        if self._watched.pop(sock, None) is not None:
            self._selector.unregister(sock)


def _has_left(sock: socket.socket) -> bool:
    try:
        return sock.recv(1, socket.MSG_PEEK) == b""
    except OSError:
        return True
