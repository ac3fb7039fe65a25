"""One life of the broker's program, and the connections of its peers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from koubou_broker.core import CoreSettings
from koubou_broker.effects import Now
from koubou_broker.lock import Term
from koubou_common.messages import Message
from koubou_common.messages.values import Role
from sim.bugs import Bugs
from sim.disk import Disk
from sim.fit_checks import check_fit
from sim.life import Life
from sim.privacy_checks import check_privacy
from sim.promise_checks import LawBrokenError, check_promise
from sim.world import Action, World

HEARTBEAT_TIMEOUT_S = 15.0  # ZMTP's: then a silent peer's connection is over
_WITNESS_EVERY_S = 5.0
_LINGERS = 0.3  # of the messages, where stale ones arrive
_LINGERS_S = (2.0, 60.0)


@dataclass(slots=True, eq=False)
class Connection:
    """One peer's connection to one process; a new one after every break."""

    process: "Process"
    node: str
    public_key: str
    reaches: Callable[[Message, int, "Connection"], None]  # a message and its epoch arrive at the peer
    broken: Callable[["Connection"], None]  # the peer's side learns that it is over
    number: int = 0  # of the session, where the process gives one
    is_open: bool = True
    noticed_at_s: float = 0.0  # when the broker's side learns that it is over

    def say(self, message: Message) -> None:
        """The peer sends."""
        if self.is_open:
            process = self.process
            frame = process.frame_of(message, self)
            process.world.deliver(self.node, lambda: process.arrives(self, frame))

    def close(self, *, unnoticed_s: float = 0.0) -> None:
        """The peer's side is gone; the broker notices when it sends, or after a while."""
        if self.is_open:
            self.is_open = False
            self.noticed_at_s = self.process.world.now_s + unnoticed_s


@dataclass(frozen=True, slots=True)
class Start:
    """What a process begins with."""

    world: World
    disk: Disk
    term: Term
    settings: CoreSettings
    seed: int
    bugs: Bugs
    died: Callable[["Process"], None]


class Process(Life):
    """What every broker process has: a life, connections, an allow-list."""

    def __init__(self, start: Start) -> None:
        super().__init__(start.world, "broker")
        self.disk = start.disk
        self.term = start.term
        self.bugs = start.bugs
        self._workers = start.settings.workers
        self.grants: dict[str, tuple[str, Role]] = {}  # public key -> principal, role
        self.connections: list[Connection] = []
        self.is_replaced = False  # another process has begun its term; this one may not know
        self._died = start.died
        self._witnessed_s = 0.0

    @property
    def epoch(self) -> int:
        """The broker's term."""
        return self.term.epoch

    def begin(self) -> None:
        """Start the core."""
        raise NotImplementedError

    def hears(self, connection: Connection, frame: Any) -> None:
        """A message came."""
        raise NotImplementedError

    @property
    def event_seq(self) -> int:
        """The highest durable event."""
        raise NotImplementedError

    def frame_of(self, message: Message, connection: Connection) -> Any:
        """How the peer's message travels."""
        raise NotImplementedError

    def now(self) -> Now:
        """Its clocks."""
        return Now(self.clock_s, self.world.wall_ms)

    def step(self, point: str) -> bool:
        """A point where it may be killed; True if it just was, or has been."""
        if self.is_alive and self.world.happens(self.world.faults.crash_at_step):
            self.world.fault(f"broker is killed {point}")
            self.kill()
        return not self.is_alive

    def arrives(self, connection: Connection, frame: Any) -> None:
        """A message reaches this process, unless it went with its connection."""
        if not self.is_alive:
            return
        if not connection.is_open and not self.world.happens(self.world.faults.stale):
            return
        self.take_in(lambda: self.work(lambda: self.hears(connection, frame)))

    def work(self, action: Action) -> None:
        """Do something; a process that was replaced may meet rows it cannot understand, and dies of them."""
        if not self.is_replaced:
            action()
            return
        try:
            action()
        except LawBrokenError:
            raise
        except (AssertionError, KeyError) as error:
            self.world.note(f"broker that was replaced stops: {error!r}")
            self.kill()

    def after(self, delay_s: float, action: Action) -> None:
        """Do it later, if it still lives; once it goes on if it stands still then."""
        super().after(delay_s, lambda: self.work(action))

    def accept(self, connection: Connection) -> None:
        """A peer has connected."""
        self.connections.append(connection)

    def admits(self, public_key: str) -> bool:
        """Whether access control lets this key in."""
        return public_key in self.grants

    def hand(self, connection: Connection, message: Message) -> bool:
        """Give a message to a connection; False where the ROUTER knows that it is gone."""
        if not connection.is_open and self.world.now_s >= connection.noticed_at_s:
            return False
        name, role = self._holder(connection.public_key)
        check_privacy(self.disk.now, name, role, message)
        check_fit(self.disk.now, self._workers, name, message)
        epoch = self.epoch

        def arrive() -> None:
            self.world.note(f"broker -> {connection.node}: ", message)
            connection.reaches(message, epoch, connection)

        def arrive_after_its_end() -> None:
            if not connection.is_open:
                arrive()

        self.world.deliver(connection.node, arrive)
        if self.world.happens(self.world.faults.stale * _LINGERS):
            # A copy hangs somewhere until the connection is over: peers hear late what an earlier broker said.
            self.world.after(self.world.draws.uniform(*_LINGERS_S), arrive_after_its_end)
        return True

    def check_promise(self, message: Message) -> None:
        """Law 1, as the message leaves."""
        if not self.bugs.forgets_saves and not self.bugs.speaks_before_store:
            check_promise(self.disk.now, message)

    def pause(self, length_s: float, *, is_suspend: bool) -> bool:
        """Stand still for a while; the peers' sides time out meanwhile."""
        if not super().pause(length_s, is_suspend=is_suspend):
            return False
        if length_s > HEARTBEAT_TIMEOUT_S:
            for connection in self.connections:
                late_s = HEARTBEAT_TIMEOUT_S + self.world.draws.uniform(0.0, 3.0)
                self.world.after(late_s, self._given_up(connection, length_s))
        return True

    def kill(self, *, silently: bool = False) -> None:
        """Everything in memory is gone, at once; `silently`: with the power, no peer is told."""
        if not self.is_alive:
            return
        self.is_alive = False
        for connection in self.connections:
            if connection.is_open:
                wait_s = HEARTBEAT_TIMEOUT_S if silently else self.world.latency_s()
                self.world.after(wait_s, self._lost(connection))
        self._died(self)

    def note_progress(self, *, at_once: bool = False) -> None:
        """Every few seconds, and at a clean stop: the witness learns how far the database has come."""
        if at_once or self.world.now_s - self._witnessed_s >= _WITNESS_EVERY_S:
            self._witnessed_s = self.world.now_s
            self.disk.write_witness(self.epoch, self.event_seq)

    def forget(self, connection: Connection) -> None:
        """The connection is gone."""
        if connection in self.connections:
            self.connections.remove(connection)

    def _holder(self, public_key: str) -> tuple[str, Role]:
        """Who this key stands for, or stood for: what was on its way when it was revoked is still its holder's."""
        row = self.disk.now.principals.get(public_key)
        if row is None:
            return self.grants.get(public_key, ("", Role.REMOVED))
        return row.name, Role.WORKER if row.role is Role.REMOVED else row.role

    def _given_up(self, connection: Connection, length_s: float) -> Action:
        def give_up() -> None:
            if connection.is_open and (self.is_paused or not self.is_alive):
                # Whatever the process says when it wakes goes to a connection that only it believes in.
                connection.close(unnoticed_s=length_s + HEARTBEAT_TIMEOUT_S)
                connection.broken(connection)

        return give_up

    def _lost(self, connection: Connection) -> Action:
        def lose() -> None:
            if connection.is_open:
                connection.close()
                connection.broken(connection)

        return lose
