"""The broker of the simulation: the real core, a modelled store, sends released when they are durable."""

from collections.abc import Callable
from dataclasses import dataclass, field

from koubou_broker.core import Core, CoreSettings
from koubou_broker.effects import Alert, Allow, Close, Effect, Found, Lookup, Now, Peer, Revoke, Save, Send
from koubou_broker.records import Record
from koubou_common.codec import decode, encode
from koubou_common.messages import (
    Changes,
    Dispatch,
    FromBroker,
    Message,
    ResultStored,
    Submitted,
)
from koubou_common.messages.values import Disposition, TaskState
from sim.world import World
from support.shelf import Shelf

Reaches = Callable[[FromBroker, int], None]  # a message and its epoch arrive at a peer


@dataclass(slots=True)
class Connection:
    """One peer's connection: a new one after every break."""

    node: str
    peer: Peer
    reaches: Reaches
    broken: Callable[[], None]
    alive: bool = True


@dataclass(slots=True)
class Bugs:
    """Bugs planted in this node; the cores' own are planted by `bugs.py`."""

    speaks_before_store: bool = False
    forgets_saves: float = 0.0  # share of commits that lose their rows although they are said to be durable


@dataclass(slots=True)
class BrokerNode:
    """Crashes at any instant: between receiving and committing, committing and speaking."""

    world: World
    settings: CoreSettings
    disk: Shelf
    wire: bool  # messages pass the codec
    bugs: Bugs = field(default_factory=Bugs)
    core: Core | None = None
    starts: int = 0
    _connections: dict[int, Connection] = field(default_factory=dict)
    _next_session: int = 1
    _batch: list[Effect] = field(default_factory=list)
    _committing: bool = False
    _tick_at_s: float | None = None

    def start(self) -> None:
        """A new process on the same disk."""
        self.starts += 1
        self.core = Core(
            self.settings, self.disk.snapshot(self.starts), self.world.seed * 1_000 + self.starts, self._now()
        )
        self._committing = False
        self._batch = []
        self._tick_at_s = None
        self._take(self.core.start())

    def crash(self) -> None:
        """Everything in memory is gone, at once."""
        if self.core is None:
            return
        self.world.note("broker crashes")
        self.core = None
        for connection in self._connections.values():
            connection.alive = False
            self.world.after(self.world.latency_s(), connection.broken)
        self._connections = {}
        self.world.after(self.world.draws.choice((0.5, 3.0, 40.0)), self.start)

    def connect(self, node: str, peer: Peer, reaches: Reaches, broken: Callable[[], None]) -> int | None:
        """A new connection's number; None while the broker is down."""
        if self.core is None:
            return None
        number = self._next_session
        self._next_session += 1
        self._connections[number] = Connection(node, peer, reaches, broken)
        return number

    def arrives(self, number: int, message: Message) -> None:
        """A peer's message reaches the broker, if it and the connection still are."""
        connection = self._connections.get(number)
        if self.core is None or connection is None or not connection.alive:
            return
        if self.wire:
            message = decode(encode(message)).message
        self.world.note(f"{connection.node} -> broker: {message!r:.300}")
        self._take(self.core.receive(connection.peer, number, message, self._now()))  # type: ignore[arg-type]  # peers send only these

    def disconnect(self, number: int) -> None:
        """A peer closed its connection (or its process died): ZeroMQ tells the broker nothing."""
        connection = self._connections.get(number)
        if connection is not None:
            connection.alive = False

    def _now(self) -> Now:
        return Now(self.world.now_s, self.world.wall_ms)

    def _take(self, effects: list[Effect]) -> None:
        assert self.core is not None
        self.core.check()
        self._batch += effects
        self._plan_tick()
        if self.bugs.speaks_before_store:
            self._release([effect for effect in effects if isinstance(effect, Send)], check=False)
        if not self._committing:
            self._commit()

    def _commit(self) -> None:
        """Everything gathered meanwhile is one transaction, as in the real store thread."""
        if not self._batch or self.core is None:
            return
        core, batch, self._batch = self.core, self._batch, []
        number = core.end_batch()
        self._committing = True
        records: list[Record] = [record for effect in batch if isinstance(effect, Save) for record in effect.records]

        def durable() -> None:
            if self.core is not core:
                return  # the crash came first: nothing of this happened
            if self.world.draws.random() >= self.bugs.forgets_saves:
                for record in records:
                    self.disk.put(record)
            self.world.after(self.world.draws.expovariate(1 / 0.001), told)

        def told() -> None:
            if self.core is not core:
                return  # committed, and nobody was told
            self._committing = False
            self._take_quietly(core.durable(number, self._now()))
            self._release(batch, check=True)
            self._commit()

        self.world.after(self.world.draws.expovariate(1 / self.world.faults.commit_s), durable)

    def _take_quietly(self, effects: list[Effect]) -> None:
        self._batch += effects
        self._plan_tick()

    def _release(self, effects: list[Effect], *, check: bool) -> None:
        for effect in effects:
            match effect:
                case Send(session, message):
                    if check and not self.bugs.forgets_saves:
                        self._check_promise(message)
                    if check and self.bugs.speaks_before_store:
                        continue
                    self._send(session, message)
                case Lookup(token, query):
                    found = self.disk.find(query)
                    self.world.after(self.world.draws.expovariate(1 / 0.002), self._found(self.core, token, found))
                case Close(session):
                    self._connections.pop(session, None)
                case Save() | Alert() | Allow() | Revoke():
                    pass

    def _found(self, core: Core | None, token: int, found: Found) -> Callable[[], None]:
        def arrive() -> None:
            if core is not None and self.core is core:
                self._take(core.found(token, found, self._now()))

        return arrive

    def _send(self, session: int, message: FromBroker) -> None:
        connection = self._connections.get(session)
        if connection is None:
            return
        if not connection.alive:
            # The ROUTER notices only now (EHOSTUNREACH).
            del self._connections[session]
            assert self.core is not None
            self._take_quietly(self.core.closed(session, self._now()))
            return
        epoch = self.starts
        if self.wire:
            message = decode(encode(message, epoch)).message  # type: ignore[assignment]  # what went in comes out

        def arrive() -> None:
            if connection.alive:
                self.world.note(f"broker -> {connection.node}: {message!r:.300}")
                connection.reaches(message, epoch)

        self.world.deliver(connection.node, arrive)

    def _plan_tick(self) -> None:
        assert self.core is not None
        deadline = self.core.next_deadline
        if deadline is None or (self._tick_at_s is not None and self._tick_at_s <= deadline):
            return
        core = self.core
        self._tick_at_s = deadline

        def tick() -> None:
            if self.core is core and self._tick_at_s == deadline:
                self._tick_at_s = None
                self._take(core.tick(self._now()))

        self.world.after(max(0.0, deadline - self.world.now_s) + 0.001, tick)

    def _check_promise(self, message: FromBroker) -> None:
        """Law 1: what is said is on disk."""
        disk = self.disk
        match message:
            case Submitted(tasks=tasks):
                for task in tasks:
                    assert task.task_id in disk.tasks, f"task {task.task_id} is acknowledged and not on disk"
            case Dispatch(attempt_uid=uid):
                assert uid in disk.attempts, f"attempt {uid} is dispatched and not on disk"
            case ResultStored(uid, disposition):
                if disposition is Disposition.PARKED:
                    assert uid in disk.parked, f"attempt {uid} is said to be parked and is not"
                else:
                    assert uid in disk.attempts, f"attempt {uid} is unknown, its result said to be stored"
            case Changes(changes=changes):
                for change in changes:
                    recorded = disk.progress[change.task_id]
                    if change.changed and change.state is TaskState.CANCELLED:
                        assert recorded.state.is_terminal or recorded.generation > 1, f"{change} is not on disk"
            case _:
                pass
