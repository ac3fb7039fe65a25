"""Peers as plain as libzmq allows: a DEALER with any security or none, that knows how its handshake ended."""

from contextlib import suppress

import zmq
from zmq.utils.monitor import recv_monitor_message

from koubou_common.keys import KeyPair
from support.door import Door


class Peer:
    """A plain DEALER with whatever security is set on it; knows what became of its handshake."""

    def __init__(self) -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.monitor = self.socket.get_monitor_socket()

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.disable_monitor()
        self.monitor.close(0)
        self.socket.close(0)
        self.context.term()

    def curve(self, server_public: str, pair: KeyPair | None) -> "Peer":
        self.socket.curve_serverkey = server_public.encode()
        if pair:
            self.socket.curve_publickey = pair.public.encode()
            self.socket.curve_secretkey = pair.secret.encode()
        return self

    def enter(self, address: str, timeout_s: float = 8.0, saying: bytes = b"") -> bool:
        """Connect, with a message that waits to leave at the first chance; whether the handshake succeeded."""
        self.socket.connect(address)
        if saying:
            with suppress(zmq.Again):  # refused already
                self.socket.send(saying, zmq.NOBLOCK)
        while self.monitor.poll(round(timeout_s * 1_000)):
            match recv_monitor_message(self.monitor)["event"]:
                case zmq.EVENT_HANDSHAKE_SUCCEEDED:
                    return True
                case zmq.EVENT_DISCONNECTED:
                    return False
        return False


def expect_service(door: Door) -> None:
    """An enrolled peer gets through, and its message is the first to arrive."""
    with Peer().curve(door.pair.public, door.enrol("somebody_good")) as good:
        assert good.enter(door.address)
        good.socket.send(b"good")
        sender, frame = door.receive()
        assert frame.bytes == b"good"
        door.send(sender, b"answer")
        assert good.socket.poll(5_000)
        assert good.socket.recv() == b"answer"
