"""A broker process around the real conductor: bytes through the codec, bodies that travel, a store that fails."""

from dataclasses import dataclass
from typing import Any

import msgpack

from koubou_broker.access import Grant
from koubou_broker.batches import FailureKind
from koubou_broker.conductor import Conductor
from koubou_broker.disk_watch import PAUSE_S
from koubou_broker.parts import Parts, StopBroker
from koubou_broker.server import GAP_S
from koubou_broker.sessions import NoSuchPeerError
from koubou_common.codec import decode, encode
from koubou_common.messages import Message
from koubou_common.messages.values import Role
from sim.process import Connection, Process, Start
from sim.store_node import ReaderModel, StoreModel

_CHECK_EVERY = 16  # turns: the core's own check costs a pass over everything
_SKEWED = 0.1  # of the messages, in a run with peers of other versions


@dataclass(frozen=True, slots=True)
class Frame:
    """What travels to the broker; `message` only for the trace."""

    data: bytes
    message: Message | None = None


class _KilledError(Exception):
    """The process was killed in the midst of a turn."""


class _AllowList:
    """The allow-list of one process."""

    def __init__(self, process: "ServerProcess") -> None:
        self._process = process

    def grant_of(self, public_key: str) -> Grant | None:
        """What a key is good for now."""
        granted = self._process.grants.get(public_key)
        return Grant(*granted) if granted else None

    def allow(self, public_key: str, principal_name: str, role: Role) -> None:
        """Let a key in."""
        process = self._process
        assert process.bugs.forgets_saves or public_key in process.disk.now.principals, (
            f"{principal_name} is not on disk"
        )
        process.grants[public_key] = (principal_name, role)

    def revoke(self, public_key: str) -> None:
        """Let a key in no more."""
        self._process.grants.pop(public_key, None)


class ServerProcess(Process):
    """What `koubou_broker.server` does with a conductor, in virtual time."""

    def __init__(self, start: Start) -> None:
        super().__init__(start)
        self._seed = start.seed
        self._store = StoreModel(start, self, self._wake)
        self._reader = ReaderModel(start, self, self._wake)
        self._routes: dict[bytes, Connection] = {}
        self._last_route = 0
        self._unread: list[tuple[Connection, Frame]] = []  # while the disk is full, nothing is read
        self._unread_since_s = 0.0
        self._pause_s = 0.0  # between two tries to write to a full disk
        self._is_turn_planned = False
        self._tick_at_s: float | None = None
        self._turns = 0
        parts = Parts(_AllowList(self), self._store, self._reader, start.settings, self.epoch, self._transmit)
        self.conductor = Conductor(parts, self.disk.now.snapshot(self.epoch), start.seed, self.now())

    @property
    def event_seq(self) -> int:
        """The highest durable event."""
        return self.conductor.event_seq

    def begin(self) -> None:
        """The loop begins."""
        if self.term.was_restored:
            self.conductor.alert("restored", "the database was restored from a backup", self.now())
        self._plan_turn()

    def frame_of(self, message: Message, connection: Connection) -> Frame:
        """As the peer encodes it; one of a newer version says more than we know."""
        return Frame(self._skewed(encode(message)), message)

    def hears(self, connection: Connection, frame: Frame) -> None:
        """A frame came."""
        self.world.note(f"{connection.node} -> broker: ", frame.message or frame.data)
        if self.can_read:
            self._read(connection, frame)
        else:
            if not self._unread:
                self._unread_since_s = self.clock_s
            self._unread.append((connection, frame))

    def missed(self, gap_s: float) -> None:
        """As the server's loop does after a gap."""
        self.conductor.stretch(gap_s, self.now())
        self._plan_turn()

    def _read(self, connection: Connection, frame: Frame) -> None:
        if not connection.number:
            self._last_route += 1
            connection.number = self._last_route
        route = connection.number.to_bytes(8, "big")
        self._routes[route] = connection
        self.conductor.receive(route, connection.public_key, frame.data, self.now())
        self._plan_turn()

    @property
    def can_read(self) -> bool:
        """Whether frames are taken in now."""
        return not self.conductor.is_full and not self.conductor.is_held_up

    def _wake(self) -> None:
        if self.is_alive:
            self._plan_turn()

    def _plan_turn(self) -> None:
        if not self._is_turn_planned:
            self._is_turn_planned = True
            self.after(self.world.draw_s(0.0005), self._turn)

    def _turn(self) -> None:
        self._is_turn_planned = False
        try:
            self._work()
        except _KilledError:
            return
        except StopBroker as error:
            self.world.note(f"broker stops: {error}")
            self.kill()

    def _work(self) -> None:
        conductor, now = self.conductor, self.now()
        conductor.hear(now)
        if conductor.failed:
            self._recover()
        self._hear_of_disk()
        if self.can_read:
            self._read_on()
            conductor.tick(self.now())
        if self.step("between receiving and committing"):
            return
        conductor.end_turn(self.now())
        self.note_progress()
        self._turns += 1
        if self._turns % _CHECK_EVERY == 0 and not self.is_replaced:
            conductor._core.check()
        if conductor.has_work:
            self._plan_turn()
        self._plan_tick()

    def _read_on(self) -> None:
        if not self._unread:
            return
        if self.clock_s - self._unread_since_s > GAP_S:
            self.conductor.stretch(self.clock_s - self._unread_since_s, self.now())
        unread, self._unread = self._unread, []
        for connection, frame in unread:
            self._read(connection, frame)

    def _recover(self) -> None:
        failed = self.conductor.failed
        assert failed is not None, "something has failed"
        match failed.kind:
            case FailureKind.FATAL | FailureKind.BUSY:
                raise StopBroker(failed.error)
            case FailureKind.FULL:
                self.conductor.pause(self.now())
                self.conductor.refuse("the broker's disk is full")
                self._pause_s, _ = PAUSE_S
                self.after(self._pause_s, self._store.probe)
            case FailureKind.BROKEN:
                pass
        self._seed += 7_919
        self.conductor.rebuild(self.disk.now.snapshot(self.epoch), self._seed, self.now())

    def _hear_of_disk(self) -> None:
        """As the disk watch: what takes nothing is tried again, less and less often."""
        conductor = self.conductor
        probed, conductor.probed = conductor.probed, None
        if probed is None or conductor.is_writable:
            return
        if probed.can_write:
            conductor.resume(self.now())
            conductor.accept()
        else:
            self._pause_s = min(self._pause_s * 2, PAUSE_S[1])
            self.after(self._pause_s, self._store.probe)

    def _transmit(self, route: bytes, data: bytes) -> None:
        if self.step("in the midst of speaking"):
            raise _KilledError
        connection = self._routes.get(route)
        message = decode(self._skewed(data)).message
        self.check_promise(message)
        if connection is None or not self.hand(connection, message):
            self._routes.pop(route, None)
            raise NoSuchPeerError

    def _skewed(self, data: bytes) -> bytes:
        if not self.world.faults.skew or self.world.draws.random() >= _SKEWED:
            return data
        fields: dict[str, Any] = msgpack.unpackb(data)
        later = {"mood": "fine", "more": [1, {"deep": None}]}
        return bytes(msgpack.packb({**fields, **later, f"x{self.world.draws.randrange(9)}": 1.5}))

    def _plan_tick(self) -> None:
        deadline = self.conductor.next_deadline
        if deadline is None or (self._tick_at_s is not None and self._tick_at_s <= deadline):
            return
        self._tick_at_s = deadline

        def tick() -> None:
            if self._tick_at_s == deadline:
                self._tick_at_s = None
                self._plan_turn()

        self.after(max(0.0, deadline - self.now().mono_s) + 0.001, tick)
