"""A whole broker in this process, on real sockets and a real database; and peers that speak its messages."""

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import zmq

from koubou_broker.config import Configuration
from koubou_broker.parts import StopBroker
from koubou_broker.server import Server
from koubou_broker.start import running
from koubou_common.codec import decode, encode
from koubou_common.home import Home
from koubou_common.keys import KeyPair, new_key_pair, read_key_pair, read_public
from koubou_common.messages import (
    AgentHello,
    BlobChunk,
    BlobGet,
    ClientHello,
    ClientWelcome,
    Dispatch,
    Enrol,
    Enrolled,
    Invite,
    Invited,
    Message,
    Result,
    ResultStored,
    Submit,
    Submitted,
    Welcome,
)
from koubou_common.messages.limits import CHUNK_BYTES
from koubou_common.messages.values import (
    AgentHealth,
    AgentStatus,
    AttemptProgress,
    Body,
    File,
    Metrics,
    ModelSeen,
    Role,
    TaskSpec,
)
from koubou_common.settings import BrokerSettings, WorkersFile, loads

MODEL = "gpt-oss:20b"
WORKERS = f"""
workers:
  local_workers:
    - {{worker_id: lan_001, model: "{MODEL}", options: {{num_ctx: 262144}}}}
    - {{worker_id: lan_002, model: "{MODEL}", options: {{num_ctx: 262144}}}}
"""
BROKER = """
bind: tcp://127.0.0.1:0
disk: {reserve_bytes: 1048576, min_free_bytes: 0}
"""

Kind = TypeVar("Kind")


def a_configuration(broker: str = BROKER, workers: str = WORKERS) -> Configuration:
    """Settings as files would hold them, with a free port."""
    return Configuration(loads(broker, BrokerSettings), loads(workers, WorkersFile))


@dataclass(slots=True)
class BrokerPlay:
    """A running broker; `server` is it, `context` is the peers' own."""

    home: Home
    address: str
    server: Server
    context: zmq.Context[zmq.Socket[bytes]]
    stopped: list[StopBroker] = field(default_factory=list)

    def peer(self, pair: KeyPair, *, rcvhwm: int = 1_000) -> "Peer":
        """A connection with this key."""
        return Peer(self.context, self.address, read_public(self.home.keys / "broker.pub"), pair, rcvhwm=rcvhwm)

    @contextmanager
    def operator(self) -> Iterator["Peer"]:
        """The key of the first start, after its hello."""
        with self.peer(read_key_pair(self.home.key_file("operator"))) as peer:
            peer.hello()
            yield peer

    @contextmanager
    def agent(self, name: str = "lan_001") -> Iterator["Peer"]:
        """A new worker's agent, after its hello."""
        with self.peer(self.enrol(name, Role.WORKER)) as peer:
            peer.ask(an_agent_hello(), Welcome)
            yield peer

    def enrol(self, name: str, role: Role) -> KeyPair:
        """A new key of this name, by invitation as for anybody."""
        invitation, own = new_key_pair(), new_key_pair()
        with self.operator() as operator:
            operator.ask(Invite("i", name, role, invitation.public, 60.0), Invited)
        with self.peer(invitation) as guest:
            guest.ask(Enrol("e", own.public), Enrolled)
        return own


class Peer:
    """One DEALER: says messages, waits for answers by their type."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        address: str,
        server: str,
        pair: KeyPair,
        *,
        rcvhwm: int = 1_000,
    ) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.rcvhwm = rcvhwm
        self.socket.curve_serverkey = server.encode()
        self.socket.curve_publickey = pair.public.encode()
        self.socket.curve_secretkey = pair.secret.encode()
        self.socket.connect(address)
        self.heard: list[Message] = []
        self.epoch = 0

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.socket.close(0)

    def say(self, message: Message) -> None:
        """Send one message."""
        self.socket.send(encode(message))

    def next(self, kind: type[Kind], timeout_s: float = 10.0) -> Kind:
        """The next message of this type; others are kept in `heard`."""
        deadline = time.monotonic() + timeout_s
        while True:
            for number, message in enumerate(self.heard):
                if isinstance(message, kind):
                    del self.heard[number]
                    return message
            left_s = deadline - time.monotonic()
            assert self.socket.poll(max(0, round(left_s * 1_000))), f"no {kind.__name__}, but {self.heard}"
            self._read()

    def ask(self, message: Message, kind: type[Kind], timeout_s: float = 10.0) -> Kind:
        """Send, and wait for an answer of this type."""
        self.say(message)
        return self.next(kind, timeout_s)

    def drain(self, quiet_s: float = 0.2) -> list[Message]:
        """All that comes until nothing has for a while."""
        while self.socket.poll(round(quiet_s * 1_000)):
            self._read()
        heard, self.heard = self.heard, []
        return heard

    def hello(self) -> ClientWelcome:
        """A client's first message."""
        return self.ask(ClientHello(1, 1, "test"), ClientWelcome)

    def submit(self, *specs: TaskSpec, key: str = "k1", **more: object) -> Submitted:
        """Submit tasks."""
        return self.ask(Submit(f"r-{key}", key, specs, **more), Submitted)  # type: ignore[arg-type] # Submit's own fields

    def _read(self) -> None:
        envelope = decode(self.socket.recv())
        self.epoch = envelope.epoch
        self.heard.append(envelope.message)


def a_body(data: bytes, *, inline: bool = True) -> Body:
    """Bytes on their way."""
    return Body(hashlib.sha256(data).digest(), len(data), data if inline else None)


def a_spec(prompt: bytes = b"say hello", files: dict[str, bytes] | None = None, *, inline: bool = True) -> TaskSpec:
    """What a person asks for."""
    bodies = tuple(File(name, a_body(data, inline=inline)) for name, data in (files or {}).items())
    return TaskSpec(a_body(prompt), bodies)


def a_status(
    running: tuple[str, ...] = (), *, spooled: tuple[str, ...] = (), free: int = 2, last: int = 0
) -> AgentStatus:
    """What an agent holds."""
    return AgentStatus(tuple(AttemptProgress(uid, "answering") for uid in running), spooled, free, last)


def an_agent_hello(status: AgentStatus | None = None, boot_id: str = "b" * 32) -> AgentHello:
    """An agent's first message."""
    health = AgentHealth(ollama_ok=True, ollama_version="0.24.0", models=(ModelSeen(MODEL),))
    return AgentHello(1, 1, "test", "linux", boot_id, 2, status or a_status(), health)


def a_result(uid: str, raw: bytes = b"the answer", *, inline: bool = True, last: int = 1, free: int = 2) -> Result:
    """An attempt's success."""
    body = a_body(raw, inline=inline)
    metrics = Metrics(prompt_tokens=3, output_tokens=2, total_ms=5)
    return Result(uid, body, 0, len(raw), (), MODEL, "", metrics, "", a_status(spooled=(uid,), free=free, last=last))


def serve_chunk(peer: Peer, data: bytes) -> BlobGet:
    """Answer one BlobGet with its piece of `data`."""
    asked = peer.next(BlobGet)
    piece = data[asked.index * CHUNK_BYTES : (asked.index + 1) * CHUNK_BYTES]
    peer.say(BlobChunk(asked.sha256, asked.index, piece))
    return asked


def work_one(agent: Peer, raw: bytes = b"the answer") -> Dispatch:
    """Take the next dispatch and answer it."""
    dispatch = agent.next(Dispatch)
    agent.ask(a_result(dispatch.attempt_uid, raw, last=dispatch.number), ResultStored)
    return dispatch


@contextmanager
def a_broker(root: Path, configuration: Configuration | None = None) -> Iterator[BrokerPlay]:
    """A broker on `root`, served by a thread of its own; stopped as SIGTERM would."""
    home = Home(root)
    with ExitStack() as stack:
        broker = stack.enter_context(running(home, configuration or a_configuration()))
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        stack.callback(context.destroy, linger=0)
        play = BrokerPlay(home, broker.addresses[0], broker.server, context)

        def serve() -> None:
            try:
                broker.server.run()
            except StopBroker as stop:
                play.stopped.append(stop)

        thread = threading.Thread(target=serve, name="broker")
        thread.start()
        try:
            yield play
        finally:
            broker.server.stop()
            thread.join(30)
            assert not thread.is_alive(), "the broker did not stop"
