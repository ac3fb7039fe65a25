"""The operator of the simulation: pauses, drains, removes, revokes - and invites anew whoever is locked out."""

from collections.abc import Callable

from koubou_common.errors import Code
from koubou_common.messages import (
    Enrol,
    Enrolled,
    Error,
    Invite,
    Invited,
    Keys,
    Message,
    RemoveWorker,
    RevokeKey,
    SetWorkerMode,
    Workers,
)
from koubou_common.messages.values import Role, WorkerMode
from sim.agent_node import AgentNode
from sim.broker_node import BrokerNode, Connection
from sim.client_node import ClientNode
from sim.talker import REPEAT_S, Request, Talker
from sim.world import World

_LOOK_S = 20.0  # how often it looks whether somebody cannot get in
_TTL_S = 3_600.0
_GIVE_UP_S = 120.0  # an invitation that nobody could follow is followed by another
_ENDED = (Code.TOKEN_USED, Code.TOKEN_INVALID, Code.NOT_AUTHORISED, Code.REFUSED)

Joined = Callable[[str], None]


class OperatorNode(Talker):
    """Everything it breaks it mends again: every task must be able to end."""

    def __init__(
        self,
        world: World,
        broker: BrokerNode,
        public_key: str,
        agents: list[AgentNode],
        clients: list[ClientNode],
    ) -> None:
        super().__init__(world, broker, "boss", public_key)
        self._agents = agents
        self._clients = clients
        self._invited: dict[str, float] = {}  # name -> when
        self._keys = 0

    def act(self) -> None:
        """One of the things that operators do."""
        draws = self.world.draws
        agent = draws.choice(self._agents)
        client = draws.choice(self._clients)
        what = draws.choice(("pause", "drain", "resume", "remove", "revoke"))
        self.world.note(f"boss: {what} {agent.worker_id if what != 'revoke' else client.name}")
        match what:
            case "pause":
                self.ask(SetWorkerMode(self.request_id(), agent.worker_id, WorkerMode.PAUSED))
            case "drain":
                self.ask(SetWorkerMode(self.request_id(), agent.worker_id, WorkerMode.DRAINING))
            case "resume":
                self.ask(SetWorkerMode(self.request_id(), agent.worker_id, WorkerMode.ACTIVE))
            case "remove":
                self.ask(RemoveWorker(self.request_id(), agent.worker_id))
            case _:
                self.ask(RevokeKey(self.request_id(), client.name))

    def heal(self) -> None:
        """Every worker is to work again."""
        self._pending.clear()
        for agent in self._agents:
            self.ask(SetWorkerMode(self.request_id(), agent.worker_id, WorkerMode.ACTIVE))

    def began(self) -> None:
        """Look around from now on."""
        self._look_around()

    def took(self, message: Message, epoch: int) -> None:
        """Answers."""
        match message:
            case Workers() | Keys():
                self.answered(message.request_id)
            case Invited():
                asked = self.answered(message.request_id)
                if asked is not None:
                    self._invitation_left(asked)
            case _:
                pass

    def refused(self, error: Error, asked: Request | None) -> None:
        """What an operator asks for may be impossible by now: a worker is gone, a name was invited already."""
        assert error.code in (Code.NOT_FOUND, Code.REFUSED), f"boss: {error}"

    def _look_around(self) -> None:
        """Invite whoever cannot get in."""
        self._life.after(_LOOK_S, self._look_around)
        if not self._is_welcome:
            return
        for client in self._clients:
            if self.broker.admits(client.public_key) is False:
                self._invite(client.name, Role.CLIENT)
        for agent in self._agents:
            if agent.is_removed or self.broker.admits(agent.public_key) is False:
                self._invite(agent.worker_id, Role.WORKER)

    def _invite(self, name: str, role: Role) -> None:
        if self.world.now_s - self._invited.get(name, 0.0) < _GIVE_UP_S:
            return
        self._invited[name] = self.world.now_s
        self._keys += 1
        enrol_key = f"e{self.lives}.{self._keys}.{name}".ljust(40, "e")
        self.ask(Invite(self.request_id(), name, role, enrol_key, _TTL_S))

    def _invitation_left(self, asked: Request) -> None:
        """The person in question follows it, on the other side."""
        invite: Invite = asked.message
        new_key = f"n{self.lives}.{self._keys}.{invite.name}".ljust(40, "n")
        self.world.note(f"boss invites {invite.name}")

        def joined(public_key: str) -> None:
            self.world.note(f"{invite.name} has joined anew")
            for client in self._clients:
                if client.name == invite.name:
                    client.take_key(public_key)
            for agent in self._agents:
                if agent.worker_id == invite.name:
                    agent.take_key(public_key)

        Joiner(self.world, self.broker, invite, new_key, joined).start()


class Joiner:
    """Who holds a token: repeats its Enrol until it is answered."""

    def __init__(self, world: World, broker: BrokerNode, invite: Invite, new_key: str, joined: Joined) -> None:
        self._world = world
        self._broker = broker
        self._name = invite.name
        self._enrol_key = invite.enrol_key
        self._new_key = new_key
        self._joined = joined
        self._is_over = False
        self._give_up_s = world.now_s + _GIVE_UP_S
        self._connection: Connection | None = None

    def start(self) -> None:
        """Try, and try again."""
        if self._is_over:
            return
        if self._world.now_s > self._give_up_s:
            self._end()
            return
        if self._connection is None:
            self._connection = self._broker.connect(self._name, self._enrol_key, self._reaches, self._broken)
        if self._connection is not None:
            self._connection.say(Enrol("join", self._new_key))
        self._world.after(REPEAT_S, self.start)

    def _end(self) -> None:
        self._is_over = True
        if self._connection is not None:
            self._connection.close()

    def _reaches(self, message: Message, epoch: int, connection: Connection) -> None:
        if self._is_over:
            return
        if isinstance(message, Enrolled):
            assert message.public_key == self._new_key, f"{self._name} was enrolled with a key that is not its own"
            self._end()
            self._joined(self._new_key)
        elif isinstance(message, Error) and message.code in _ENDED:
            self._end()

    def _broken(self, connection: Connection) -> None:
        if connection is self._connection:
            self._connection = None
