"""Peers of other versions: what they say is ignored and counted, or refused clearly, and hurts nobody."""

import msgpack

from koubou_common.errors import Code
from koubou_common.messages import PROTO_MAX, AgentHello, ClientHello, Error, Message
from koubou_common.messages.values import AgentHealth, AgentStatus
from sim.broker_node import BrokerNode, Connection
from sim.server_node import Frame, ServerProcess
from sim.world import World

_REPEAT_S = 30.0


class FromTheFuture:
    """A peer that speaks a protocol range which does not meet ours: all it may hear is that."""

    def __init__(self, world: World, broker: BrokerNode, name: str, public_key: str, *, is_agent: bool) -> None:
        self._world = world
        self._broker = broker
        self._name = name
        self._public_key = public_key
        self._is_agent = is_agent
        self._connection: Connection | None = None
        self.refusals = 0

    def start(self) -> None:
        """Say hello again and again."""
        if self._connection is None:
            self._connection = self._broker.connect(self._name, self._public_key, self._reaches, self._broken)
        if self._connection is not None:
            self._connection.say(self._hello())
        if not self._world.healed:
            self._world.after(_REPEAT_S, self.start)

    def _hello(self) -> Message:
        first, last = PROTO_MAX + 1, PROTO_MAX + 2
        if not self._is_agent:
            return ClientHello(first, last, "koubou-ctl 9")
        status = AgentStatus(free_slots=8)
        return AgentHello(first, last, "koubou-agent 9", "linux", "f" * 32, 0, status, AgentHealth(True))

    def _reaches(self, message: Message, epoch: int, connection: Connection) -> None:
        assert isinstance(message, Error), f"{self._name} speaks no protocol of ours, and was told {message!r:.200}"
        assert message.code in (Code.VERSION, Code.HELLO_REQUIRED), f"{self._name}: {message}"
        self.refusals += 1

    def _broken(self, connection: Connection) -> None:
        if connection is self._connection:
            self._connection = None


def send_nonsense(world: World, broker: BrokerNode) -> None:
    """Somebody's frame is no message, or one of a later version: it is counted, and nothing else happens."""
    process = broker.process
    if not isinstance(process, ServerProcess) or process.is_paused:
        return
    there = [one for one in process.connections if one.is_open]
    if not there:
        return
    kinds = (
        msgpack.packb({"v": 1, "type": "fold_laundry", "shirts": 3}),
        msgpack.packb({"v": 9, "type": "client_hello"}),
        b"\xc1 no msgpack",
        b"",
    )
    before = process.conductor.undecodable
    if process.can_read:
        process.hears(world.draws.choice(there), Frame(world.draws.choice(kinds)))
        assert process.conductor.undecodable == before + 1, "a frame that is no message was not counted"
