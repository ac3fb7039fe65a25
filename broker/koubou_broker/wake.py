"""How the broker's threads wake its loop: a pair of sockets that a poller understands on every platform."""

import contextlib
import socket


class Wake:
    """`set` from any thread makes `fileno` readable until `clear`."""

    def __init__(self) -> None:
        self._hearing, self._ringing = socket.socketpair()
        self._hearing.setblocking(False)
        self._ringing.setblocking(False)

    def fileno(self) -> int:
        """What to poll."""
        return self._hearing.fileno()

    def set(self) -> None:
        """Wake the loop; more than it can hear at once is as good as one."""
        with contextlib.suppress(BlockingIOError):
            self._ringing.send(b"!")

    def clear(self) -> None:
        """Forget all wake-ups so far; must come before looking what they were about."""
        with contextlib.suppress(BlockingIOError):
            while self._hearing.recv(4096):
                pass

    def close(self) -> None:
        """Close both ends."""
        self._hearing.close()
        self._ringing.close()
