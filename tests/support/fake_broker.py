"""A broker by hand: a real CURVE ROUTER with an allow-list, whose answers the test gives itself."""

import contextlib
import time
from types import TracebackType
from typing import Self, TypeVar

import zmq

from koubou_broker.access import AccessControl, open_router
from koubou_common.codec import decode, encode
from koubou_common.keys import KeyPair, new_key_pair
from koubou_common.messages import (
    AgentHello,
    ClientHello,
    ClientWelcome,
    Heartbeat,
    HeartbeatAck,
    Message,
    Welcome,
)
from koubou_common.messages.values import Role, WorkerConfig, WorkerMode

Kind = TypeVar("Kind")

EPOCH = 7


class FakeBroker:
    """Answers Hello and Heartbeat by itself; everything else is for `expect` and `send`."""

    def __init__(
        self, worker: WorkerConfig, *, address: str = "tcp://127.0.0.1:*", pair: KeyPair | None = None
    ) -> None:
        self.worker = worker
        self.pair = pair or new_key_pair()
        self.epoch = EPOCH
        self.session = 0
        self.hellos: list[AgentHello] = []
        self.heartbeats: list[Heartbeat] = []
        self._asked_address = address
        self._peer = b""
        self._context = zmq.Context()
        self.access = AccessControl(self._context)

    def __enter__(self) -> Self:
        self.access.start()
        self._router = open_router(self._context, self.access, self.pair, self._asked_address)
        self.address = self._router.getsockopt_string(zmq.LAST_ENDPOINT)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Gone at once, as when it is killed; may be called twice."""
        self._router.close(0)
        self.access.stop()
        self._context.term()

    def enrolled(self, name: str = "lan_001", role: Role = Role.WORKER) -> KeyPair:
        """A key that is on the allow-list."""
        pair = new_key_pair()
        self.access.allow(pair.public, name, role)
        return pair

    def send(self, message: Message) -> None:
        """To the peer heard last."""
        self._router.send_multipart([self._peer, encode(message, self.epoch)])

    def expect(self, kind: type[Kind], timeout_s: float = 15.0, *, answered: bool = True) -> Kind:
        """The next message of that kind; Hellos and Heartbeats are answered, others before it are a failure."""
        deadline_s = time.monotonic() + timeout_s
        while (left_s := deadline_s - time.monotonic()) > 0:
            if not self._router.poll(int(left_s * 1000) + 1):
                break
            self._peer, data = self._router.recv_multipart()
            message = decode(data).message
            if answered:
                self._answer(message)
            if isinstance(message, kind):
                return message
            assert isinstance(message, AgentHello | Heartbeat | ClientHello), f"{message} where {kind.__name__} was due"
        raise AssertionError(f"no {kind.__name__} within {timeout_s} s")

    def expect_heartbeat(self, running: int, timeout_s: float = 15.0) -> Heartbeat:
        """The next heartbeat that lists so many attempts."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            heartbeat = self.expect(Heartbeat, deadline_s - time.monotonic())
            if len(heartbeat.status.running) == running:
                return heartbeat

    def _answer(self, message: Message) -> None:
        with contextlib.suppress(zmq.ZMQError):  # it has left meanwhile
            self._answer_by_itself(message)

    def _answer_by_itself(self, message: Message) -> None:
        match message:
            case AgentHello():
                self.hellos.append(message)
                self.session += 1
                self.send(Welcome(1, self.session, self.worker, WorkerMode.ACTIVE, 0.2, 30.0))
            case ClientHello():
                self.send(ClientWelcome(1, 1, "operator", Role.OPERATOR, 1, 1, 1, 1))
            case Heartbeat():
                self.heartbeats.append(message)
                self.send(HeartbeatAck(message.sent_ms, WorkerMode.ACTIVE))
            case _:
                pass
