"""A broker's door without a broker behind it: the real socket and access control, served by the test."""

import socket
from types import TracebackType
from typing import Self

import zmq

from koubou_broker.access import AccessControl, open_router
from koubou_common.keys import KeyPair, new_key_pair
from koubou_common.messages.values import Role
from support.waiting import eventually


class Door:
    """Bound on a free port of the loopback; `restart` comes back on the same one."""

    def __init__(self, pair: KeyPair | None = None) -> None:
        self.pair = pair or new_key_pair()
        self.context = zmq.Context()
        self.access = AccessControl(self.context)
        self.access.start()
        self.router = open_router(self.context, self.access, self.pair, "tcp://127.0.0.1:*")
        self.address = self.router.get_string(zmq.LAST_ENDPOINT)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def enrol(self, name: str = "lan_001", role: Role = Role.WORKER) -> KeyPair:
        """A fresh key on the allow-list."""
        pair = new_key_pair()
        self.access.allow(pair.public, name, role)
        return pair

    def receive(self, timeout_s: float = 5.0) -> tuple[bytes, zmq.Frame]:
        """The next message: its sender's routing id and its one frame."""
        assert self.router.poll(round(timeout_s * 1_000)), "no message arrived"
        sender, frame = self.router.recv_multipart(copy=False)
        return sender.bytes, frame

    def send(self, sender: bytes, *frames: bytes) -> None:
        self.router.send_multipart([sender, *frames], zmq.NOBLOCK)

    def go_away(self, linger_s: float = 0.0) -> None:
        """Stop listening and drop every connection."""
        self.router.close(round(linger_s * 1_000))

    def restart(self) -> None:
        """Listen again, as a broker does after its restart."""
        eventually(self._port_is_free, what="the port is free again")
        self.router = open_router(self.context, self.access, self.pair, self.address)

    def close(self) -> None:
        self.router.close(0)
        self.access.stop()
        self.context.term()

    def _port_is_free(self) -> bool:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", self.port))
            except OSError:
                return False
        return True
