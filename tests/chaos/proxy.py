"""A TCP proxy in user space whose connections meet the faults that a seed draws: no root, no kernel module."""

import contextlib
import queue
import random
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType

from chaos.pipe import Pipe
from chaos.weather import FAIR, Climate, Gust, Kind, draw

_READ_BYTES = 65_536
_IDLE_S = 0.5
_CONNECT_S = 2.0  # to the target, on this machine
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER of 0 s: close sends an RST

Told = Callable[[str, Gust], None]  # the door's name and what happens to one of its connections


@dataclass(eq=False, slots=True)
class _Connection:
    """A peer, the target, and what lies between."""

    door: str
    peer: socket.socket
    target: socket.socket
    gusts: list[Gust]
    began_s: float
    up: Pipe = field(default_factory=Pipe)
    down: Pipe = field(default_factory=Pipe)
    cut_at_s: float | None = None
    finished: set[socket.socket] = field(default_factory=set)  # whose writing side we have shut

    def ways(self) -> tuple[tuple[socket.socket, Pipe, socket.socket], ...]:
        return (self.peer, self.up, self.target), (self.target, self.down, self.peer)


class FaultProxy:
    """One thread, any number of doors (listening ports), all leading to one target; a context manager.

    `told` is called on the proxy's thread for every fault that begins.
    """

    def __init__(self, target: tuple[str, int], *, seed: int = 0, climate: Climate = FAIR, told: Told | None = None):
        self._target = target
        self._seed = seed
        self._climate = climate
        self._told = told or (lambda _door, _gust: None)
        self._listeners: dict[socket.socket, str] = {}
        self._connections: list[_Connection] = []
        self._opened: dict[str, int] = {}
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._is_over = False
        self._thread = threading.Thread(target=self._run, name="fault-proxy")

    def open_door(self, name: str, host: str = "127.0.0.1") -> int:
        """Listen on a free port; every peer should have a door of its own, named after it. Before `start`."""
        listener = socket.create_server((host, 0))
        listener.setblocking(False)
        self._listeners[listener] = name
        port: int = listener.getsockname()[1]
        return port

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def strike(self, gust: Gust, door: str = "") -> None:
        """Do this at once to the connections of one door, or of all."""
        self._do(lambda: self._strike(gust, door))

    def heal(self) -> None:
        """Fair weather from now on: what stalls goes on, what is half-open is cut."""
        self._do(self._heal)

    def close(self) -> None:
        """End everything."""
        self._do(lambda: setattr(self, "_is_over", True))
        if self._thread.is_alive():
            self._thread.join()
        for one in (*self._listeners, self._wake_in, self._wake_out):
            one.close()
        for connection in self._connections:
            connection.peer.close()
            connection.target.close()

    def __enter__(self) -> "FaultProxy":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _do(self, command: Callable[[], None]) -> None:
        self._commands.put(command)
        with contextlib.suppress(OSError):  # full: it wakes already
            self._wake_out.send(b"\0")

    # All below runs on the proxy's own thread.

    def _run(self) -> None:
        while not self._is_over:
            self._wait()
            while not self._commands.empty():
                self._commands.get()()
            self._accept()
            now_s = time.monotonic()
            for connection in list(self._connections):
                self._serve(connection, now_s)

    def _wait(self) -> None:
        now_s = time.monotonic()
        until_s = now_s + _IDLE_S
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake_in, selectors.EVENT_READ)
            for listener in self._listeners:
                selector.register(listener, selectors.EVENT_READ)
            for connection in self._connections:
                wanted = {connection.peer: 0, connection.target: 0}
                for source, pipe, sink in connection.ways():
                    if pipe.has_room and not pipe.is_ended:
                        wanted[source] |= selectors.EVENT_READ
                    next_s = pipe.next_s(now_s)
                    if next_s is not None and next_s <= now_s:
                        wanted[sink] |= selectors.EVENT_WRITE
                    elif next_s is not None:
                        until_s = min(until_s, next_s)
                for one, events in wanted.items():
                    if events:
                        selector.register(one, events)
                if connection.gusts:
                    until_s = min(until_s, connection.began_s + connection.gusts[0].after_s)
                if connection.cut_at_s is not None:
                    until_s = min(until_s, connection.cut_at_s)
            selector.select(max(0.0, until_s - now_s))
        with contextlib.suppress(BlockingIOError):
            while self._wake_in.recv(4_096):
                pass

    def _accept(self) -> None:
        for listener, door in self._listeners.items():
            with contextlib.suppress(BlockingIOError):
                while True:
                    peer, _ = listener.accept()
                    self._begin(door, peer)

    def _begin(self, door: str, peer: socket.socket) -> None:
        try:
            target = socket.create_connection(self._target, _CONNECT_S)
        except OSError:
            _cut(peer)  # nobody listens there: nor here
            return
        number = self._opened[door] = self._opened.get(door, 0) + 1
        for one in (peer, target):
            one.setblocking(False)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        gusts = draw(random.Random(f"{self._seed} {door} {number}"), self._climate)
        self._connections.append(_Connection(door, peer, target, gusts, time.monotonic()))

    def _serve(self, connection: _Connection, now_s: float) -> None:
        while connection.gusts and connection.began_s + connection.gusts[0].after_s <= now_s:
            self._blow(connection, connection.gusts.pop(0), now_s)
        if connection not in self._connections:
            return  # a gust has ended it
        if connection.cut_at_s is not None and connection.cut_at_s <= now_s:
            self._end(connection, reset=True)
            return
        try:
            for source, pipe, sink in connection.ways():
                _read(source, pipe, now_s)
                _write(pipe, sink, now_s)
                if pipe.is_ended and pipe.is_empty and not pipe.is_dead and sink not in connection.finished:
                    connection.finished.add(sink)
                    sink.shutdown(socket.SHUT_WR)
        except OSError:
            if connection.cut_at_s is None:
                self._end(connection, reset=True)
            else:
                # Half-open: what one end does now is not told to the other before the cut.
                for pipe in (connection.up, connection.down):
                    pipe.die()
                    pipe.is_ended = True
            return
        if len(connection.finished) == len(connection.ways()):
            self._end(connection, reset=False)

    def _blow(self, connection: _Connection, gust: Gust, now_s: float) -> None:
        self._told(connection.door, gust)
        until_s = now_s + gust.lasts_s
        match gust.kind:
            case Kind.RESET:
                self._end(connection, reset=True)
            case Kind.CLOSE:
                self._end(connection, reset=False)
            case Kind.STALL:
                connection.up.stall(until_s)
                connection.down.stall(until_s)
            case Kind.HALF_OPEN:
                (connection.up if gust.upwards else connection.down).die()
                connection.cut_at_s = until_s
            case Kind.DELAY | Kind.THROTTLE:
                for pipe in (connection.up, connection.down):
                    pipe.slow(until_s, latency_s=gust.latency_s, bytes_per_s=gust.bytes_per_s)

    def _strike(self, gust: Gust, door: str) -> None:
        now_s = time.monotonic()
        for connection in list(self._connections):
            if door in ("", connection.door):
                self._blow(connection, gust, now_s)

    def _heal(self) -> None:
        self._climate = FAIR
        for connection in list(self._connections):
            connection.gusts.clear()
            if connection.up.is_dead or connection.down.is_dead:
                self._end(connection, reset=True)
                continue
            connection.up.heal()
            connection.down.heal()

    def _end(self, connection: _Connection, *, reset: bool) -> None:
        self._connections.remove(connection)
        for one in (connection.peer, connection.target):
            if reset:
                _cut(one)
            else:
                one.close()


def _read(source: socket.socket, pipe: Pipe, now_s: float) -> None:
    with contextlib.suppress(BlockingIOError):
        while pipe.has_room and not pipe.is_ended:
            data = source.recv(_READ_BYTES)
            pipe.take(data, now_s)
            if not data:
                pipe.is_ended = True  # also of a dead pipe: there is nothing more to swallow


def _write(pipe: Pipe, sink: socket.socket, now_s: float) -> None:
    with contextlib.suppress(BlockingIOError):
        while data := pipe.ready(now_s):
            pipe.sent(sink.send(data))


def _cut(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    one.close()
