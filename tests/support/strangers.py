"""Ports that are no broker's: they say nothing, hang up, or speak something else."""

import socket
import threading
from types import TracebackType
from typing import Self


class TcpPort:
    """Accepts on a free loopback port (or on `port`) and says `words` to each caller; then it stays silent,
    or hangs up: at once, or having heard `hangs_up_after` bytes."""

    def __init__(self, words: bytes = b"", *, hangs_up: bool = False, hangs_up_after: int = 0, port: int = 0) -> None:
        self.words = words
        self.hangs_up = hangs_up or hangs_up_after > 0
        self.hangs_up_after = hangs_up_after
        self.accepted = 0
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(("127.0.0.1", port))
        self._listener.listen()
        self._callers: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    @property
    def address(self) -> str:
        return f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes the accept
        self._thread.join()
        self._listener.close()
        for caller in self._callers:
            caller.close()

    def _serve(self) -> None:
        while True:
            try:
                caller, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            self._callers.append(caller)
            try:
                if self.words:
                    caller.sendall(self.words)
                heard = 0
                while heard < self.hangs_up_after and (data := caller.recv(100)):
                    heard += len(data)
                if self.hangs_up:
                    caller.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # the caller was faster


def unused_address() -> str:
    """A loopback address where nothing listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{probe.getsockname()[1]}"
