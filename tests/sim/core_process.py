"""A broker process around the bare core: messages as objects, the ledger and the store's timeline as in the server."""

from collections.abc import Iterable
from typing import assert_never

from koubou_broker.batches import Claimed, Durable, Failed, Probed, Purged
from koubou_broker.core import Core
from koubou_broker.effects import Alert, Allow, AskBackup, Close, Effect, Erase, Lookup, Peer, Revoke, Save, Send
from koubou_broker.reader import Find, FoundRows
from koubou_broker.turns import Ledger, Turn
from koubou_common.messages import Message
from koubou_common.messages.values import Role
from sim.process import Connection, Process, Start
from sim.store_node import ReaderModel, StoreModel

_CHECK_EVERY = 16  # steps: the core's own check costs a pass over everything


class CoreProcess(Process):
    """A small server of its own, so that the core is tried without what stands around it."""

    def __init__(self, start: Start) -> None:
        super().__init__(start)
        self.core = Core(start.settings, self.disk.now.snapshot(self.epoch), start.seed, self.now())
        self._store = StoreModel(start, self, self._wake)
        self._reader = ReaderModel(start, self, self._wake)
        self._ledger = Ledger()
        self._turn = Turn()
        self._is_turn_planned = False
        self._sessions: dict[int, Connection] = {}
        self._last_session = 0
        self._tick_at_s: float | None = None
        self._steps = 0

    @property
    def event_seq(self) -> int:
        """The highest durable event."""
        return self._ledger.event_seq

    def begin(self) -> None:
        """Start the core."""
        self._take(self.core.start())

    def frame_of(self, message: Message, connection: Connection) -> Message:
        """Nothing is encoded here."""
        return message

    def hears(self, connection: Connection, frame: Message) -> None:
        """A message came."""
        self.world.note(f"{connection.node} -> broker: ", frame)
        if self._sessions.get(connection.number) is not connection:
            self._last_session += 1
            connection.number = self._last_session
            self._sessions[connection.number] = connection
        name, role = self.grants.get(connection.public_key, ("", Role.REMOVED))
        peer = Peer(connection.public_key, name, role)
        self._take(self.core.receive(peer, connection.number, frame, self.now()))  # type: ignore[arg-type]  # peers send only these

    def missed(self, gap_s: float) -> None:
        """As the server's loop does after a gap."""
        self._take(self.core.stretch(gap_s, self.now()))

    def _wake(self) -> None:
        if self.is_alive:
            self.after(self.world.draw_s(0.0002), self._hear)

    def _hear(self) -> None:
        for outcome in self._store.take():
            match outcome:
                case Durable(number=number):
                    self._take(self.core.durable(number, self.now()))
                    self._release(self._unsaid(self._ledger.durable(number)))
                    self.note_progress()
                case Failed(error=error):
                    self.world.note(f"broker stops: {error}")
                    self.kill()
                case Claimed() | Probed() | Purged():
                    pass
                case _:
                    assert_never(outcome)
            if not self.is_alive:
                return
        for answer in self._reader.take():
            assert isinstance(answer, FoundRows), "only rows are asked for"
            self._take(self.core.found(answer.token, answer.found, self.now()))

    def _take(self, effects: list[Effect]) -> None:
        self._steps += 1
        if self._steps % _CHECK_EVERY == 0 and not self.is_replaced:
            self.core.check()
        self._turn.add(effects)
        if self.bugs.speaks_before_store:
            self._release(effect for effect in effects if isinstance(effect, Send))
        self._plan_tick()
        if not self._is_turn_planned:
            self._is_turn_planned = True
            self.after(self.world.draw_s(0.0005), self._end_turn)

    def _end_turn(self) -> None:
        if self.step("between receiving and committing"):
            return
        self._is_turn_planned = False
        turn, self._turn = self._turn, Turn()
        batch, released = self._ledger.seal(turn)
        if batch is not None:
            number = self.core.end_batch()
            assert number == batch.number, "every batch of the core is one of the store"
            self._store.put(batch)
        self._release(self._unsaid(released))

    def _unsaid(self, effects: Iterable[Effect]) -> Iterable[Effect]:
        if self.bugs.speaks_before_store:
            return [effect for effect in effects if not isinstance(effect, Send)]
        return effects

    def _release(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(session, message):
                    if self.step("in the midst of speaking"):
                        return
                    self._send(session, message)
                case Lookup(token, query):
                    self._reader.ask(Find(0, token, query))
                case Close(session):
                    self._sessions.pop(session, None)
                case Allow(key, name, role):
                    self._check_key(key)
                    self.grants[key] = (name, role)
                case Revoke(key):
                    self.grants.pop(key, None)
                case Alert():
                    pass
                case AskBackup() | Erase():
                    raise AssertionError("nobody asks for that here")
                case Save():
                    raise AssertionError("a Save goes to the store")
                case _:
                    assert_never(effect)

    def _check_key(self, key: str) -> None:
        assert self.bugs.forgets_saves or key in self.disk.now.principals, f"key {key} is let in and not on disk"

    def _send(self, session: int, message: Message) -> None:
        connection = self._sessions.get(session)
        if connection is None:
            return
        self.check_promise(message)
        if not self.hand(connection, message):
            del self._sessions[session]
            self.forget(connection)
            self._take(self.core.closed(session, self.now()))

    def _plan_tick(self) -> None:
        deadline = self.core.next_deadline
        if deadline is None or (self._tick_at_s is not None and self._tick_at_s <= deadline):
            return
        self._tick_at_s = deadline

        def tick() -> None:
            if self._tick_at_s == deadline:
                self._tick_at_s = None
                self._take(self.core.tick(self.now()))

        self.after(max(0.0, deadline - self.now().mono_s) + 0.001, tick)
