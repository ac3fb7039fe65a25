"""A TCP relay that counts what it passes on: what really crossed a connection."""

import contextlib
import socket
import threading
from types import TracebackType

_READ_BYTES = 65_536


class CountingRelay:
    """Leads every connection to one target on this machine; a context manager."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.received_bytes = 0  # from the target
        self._sockets: list[socket.socket] = [self._listener]
        self._threads = [threading.Thread(target=self._accept, name="relay")]
        self._lock = threading.Lock()
        self._threads[0].start()

    def __enter__(self) -> "CountingRelay":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            for one in self._sockets:
                with contextlib.suppress(OSError):  # the other side may have ended it
                    one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for one in self._sockets:
            one.close()

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return  # shut: the relay ends
            with self._lock:
                self._sockets.append(peer)
                try:
                    target = socket.create_connection(("127.0.0.1", self._target_port))
                except OSError:  # the broker is not there: neither is this connection
                    peer.shutdown(socket.SHUT_RDWR)
                    continue
                self._sockets.append(target)
            for source, sink in ((peer, target), (target, peer)):
                thread = threading.Thread(target=self._pass_on, args=(source, sink, source is target))
                self._threads.append(thread)
                thread.start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, counts: bool) -> None:
        with contextlib.suppress(OSError):  # either side may end at any time
            while data := source.recv(_READ_BYTES):
                if counts:
                    self.received_bytes += len(data)
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)
