"""Brings core, store, reader, sessions and allow-list together; knows neither socket nor clock.

What the calls between two `end_turn` add up to is one turn: its changes share a transaction.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import assert_never, get_args

from koubou_broker import blobs
from koubou_broker.backup import Answer as Told
from koubou_broker.batches import (
    Claim,
    Claimed,
    Durable,
    Failed,
    FailureKind,
    NewBlob,
    Probed,
    Purged,
    Quarantined,
)
from koubou_broker.blobs import Grants, Intake
from koubou_broker.bodies import BodyCache
from koubou_broker.core import Core
from koubou_broker.effects import (
    Alert,
    Allow,
    AskBackup,
    Close,
    Effect,
    Erase,
    Lookup,
    Now,
    Peer,
    Revoke,
    Save,
    Send,
    Snapshot,
    Upload,
)
from koubou_broker.outgoing import Outbound
from koubou_broker.parts import Parts, StopBroker
from koubou_broker.quarantine import Quarantine, source_of
from koubou_broker.questions import would_write
from koubou_broker.reader import Answer, Bodies, ChunkRead, Find, FoundRows, ReadBodies, ReadChunk, ReadFailed
from koubou_broker.sessions import Session, Sessions
from koubou_broker.turns import Ledger, Source, Turn
from koubou_broker.usage import OWED_EACH, Usage
from koubou_common.codec import DecodeError, decode, pack
from koubou_common.errors import Code
from koubou_common.messages import (
    AgentHello,
    BackupMade,
    BlobChunk,
    BlobGet,
    BlobMessage,
    BlobMissing,
    ClientHello,
    Error,
    FromAgent,
    FromBroker,
    FromClient,
    Result,
    Submit,
    ToBroker,
)
from koubou_common.messages.values import Role

FULL_RETRY_S = 5.0  # what a refused client is told to wait
CULPRITLESS = 3  # broken transactions in a row that no message is to blame for: then we stop
BUSY_RETRY_S = 2.0  # whoever sends faster than it is served is told to wait: a full line is served in about that time

log = logging.getLogger("koubou_broker")
_TO_BROKER = get_args(ToBroker)
_SUBMITTERS = (Role.CLIENT, Role.OPERATOR)
_BLOBLESS = (Role.ENROL, Role.REMOVED)


class Conductor:
    """The state of the loop."""

    def __init__(self, parts: Parts, snapshot: Snapshot, seed: int, now: Now) -> None:
        self._parts = parts
        self._cache = BodyCache()
        self._grants = Grants()
        self._sessions = Sessions(parts.epoch, parts.transmit)
        self._outbound = Outbound(self._sessions, self._cache, self._grants)
        self._intake = Intake(parts.settings.limits, self._cache)
        self._ledger = Ledger()
        self._turn = Turn()
        self._quarantine = Quarantine()
        self.usage = Usage()
        self._answers: deque[Answer] = deque()  # of the reader, not looked at yet
        self._refusal = ""
        self._culpritless = 0
        self.failed: Failed | None = None  # the store gave up: nothing but `rebuild` is of use now
        self.probed: Probed | None = None  # what the store found, until the loop has looked at it
        self._paused_s: float | None = None  # since when nothing can be written; None: it can
        self.undecodable = 0  # messages dropped because they are none
        self._alerts: dict[str, str] = {}  # the server's own: they outlive a core
        self._erases: dict[int, int] = {}  # purges under way: our number -> this core's
        self._last_erase = 0
        self._core, self._batch_offset = self._new_core(snapshot, seed, now)

    @property
    def is_full(self) -> bool:
        """Whether too much waits for the disk: neither read nor tick."""
        return self._ledger.is_full_with(self._turn)

    @property
    def is_settled(self) -> bool:
        """Whether everything so far is durable."""
        return self._ledger.is_settled and not self._turn.has_writes

    @property
    def is_sending(self) -> bool:
        """Whether some peer takes no more for the moment."""
        return self._sessions.is_waiting

    @property
    def has_work(self) -> bool:
        """Whether a turn has begun that has to be ended at once."""
        return (self._turn.has_writes or bool(self._turn.releases or self._answers)) and not self.is_held_up

    @property
    def is_writable(self) -> bool:
        """Whether changes go to the disk; while they do not, only questions are answered."""
        return self._paused_s is None

    @property
    def is_held_up(self) -> bool:
        """Whether a change waits for a disk that takes nothing: nothing may be read or said past it."""
        return not self.is_writable and self._turn.has_writes

    @property
    def refusal(self) -> str:
        """Why no submissions are taken; "" when they are."""
        return self._refusal

    @property
    def event_seq(self) -> int:
        """The highest durable event."""
        return self._ledger.event_seq

    @property
    def next_deadline(self) -> float | None:
        """When the core wants a tick, by the monotonic clock."""
        return self._core.next_deadline

    def know_uploads(self, uploads: Iterable[Upload], now: Now) -> None:
        """What was sent before the start and belongs to no task yet."""
        for one in uploads:
            since_s = now.mono_s - max(0, now.wall_ms - one.stored_ms) / 1_000
            self._intake.uploads.brought(one.principal, one.sha256, one.size_bytes, since_s)

    def principal_of(self, public_key: str) -> str:
        """Whose key it is: all keys of a name share what is allowed to one; a revoked key speaks for itself."""
        grant = self._parts.access.grant_of(public_key)
        return grant.principal if grant else public_key

    def is_worker(self, public_key: str) -> bool:
        """Whether a key is an agent's: nobody sits before its answers."""
        grant = self._parts.access.grant_of(public_key)
        return grant is not None and grant.role is Role.WORKER

    def may_go(self, principal: str, *, used_much: bool = False) -> bool:
        """Whether a principal's messages may be taken in: not while the disk is busy with what it sent before."""
        owed = self._ledger.owed_to(principal) + self._turn.owed[principal]
        return owed < OWED_EACH and self.usage.has_room(principal, used_much=used_much)

    def hear(self, now: Now, enough: Callable[[], bool] = bool) -> None:
        """Take in what store and reader have said; of the reader's answers one, and more until there is `enough`."""
        for outcome in self._parts.store.take():
            match outcome:
                case Durable():
                    self._on_durable(outcome, now)
                case Claimed():
                    self._follow(self._intake.claimed(outcome, now.mono_s), now)
                case Probed():
                    self.probed = outcome
                case Purged():
                    self._on_purged(outcome, now)
                case Failed() if outcome.term == self._ledger.term or outcome.kind is FailureKind.FATAL:
                    self.failed = outcome
                    return
                case Failed():
                    pass
                case _:
                    assert_never(outcome)
        self._answers += self._parts.reader.take()
        while self._answers:
            answer = self._answers.popleft()
            match answer:
                case FoundRows():
                    if answer.term == self._ledger.term:
                        self._on_found(answer, now)
                case Bodies():
                    self._outbound.read(answer)
                case ChunkRead():
                    self._on_chunk_read(answer)
                case ReadFailed():
                    self._on_read_failed(answer, now)
                case _:
                    assert_never(answer)
            if enough():
                break
        if self._parts.keeper is not None:
            for told in self._parts.keeper.take():
                self._on_told(told, now)

    def receive(self, route: bytes, public_key: str, data: bytes, now: Now) -> None:
        """One frame came from the holder of a key."""
        grant = self._parts.access.grant_of(public_key)
        # A revoked key keeps its connection: the core tells it what has become of it, and nothing else.
        peer = Peer(public_key, grant.principal, grant.role) if grant else Peer(public_key, "", Role.REMOVED)
        try:
            message = decode(data).message
        except DecodeError as error:
            self._note_undecodable(peer.name, str(error))
            return
        if not isinstance(message, _TO_BROKER):
            self._note_undecodable(peer.name, "a message that only the broker sends")
            return
        session = self._heard(route, public_key, now)
        if grant is None:
            session.is_greeted = False
        self._on_message(peer, session, message, now)

    def bad_frames(self, route: bytes, public_key: str, now: Now) -> None:
        """Another number of frames than one: the session is over."""
        session, _ = self._sessions.heard(route, public_key)
        self._note_undecodable(public_key, "a message of several frames")
        self._sessions.forget(session.number)
        self._on_closed(session.number, now)

    def put_off(self, route: bytes, public_key: str, data: bytes, now: Now) -> None:
        """A frame that cannot be taken in now: its sender is told when to say it again."""
        who = self.principal_of(public_key)
        try:
            request_id = getattr(decode(data).message, "request_id", "")
        except DecodeError as error:
            self._note_undecodable(who, str(error))
            return
        if request_id:
            session = self._heard(route, public_key, now)
            text = f"more messages of {who} wait than the broker keeps"
            busy = Error(Code.BUSY, text, "wait for answers before you send more", request_id, BUSY_RETRY_S)
            self._turn.releases.append(Send(session.number, busy))

    def tick(self, now: Now) -> None:
        """Time has passed; must come after everything that had arrived was taken in."""
        if not self.is_writable:
            return  # what is due would have to be stored
        self._follow(self._intake.tick(now.mono_s), now)
        deadline = self._core.next_deadline
        if deadline is not None and deadline <= now.mono_s:
            self._turn.add(self._core.tick(now))

    def stretch(self, gap_s: float, now: Now) -> None:
        """The loop did not listen for a while: nobody's lease may suffer from that."""
        self._turn.add(self._core.stretch(gap_s, now))

    def end_turn(self, now: Now) -> None:
        """Hand the turn's changes to the store, let go what may go, send."""
        if self.is_held_up:
            self.flush(now)
            return
        turn, self._turn = self._turn, Turn()
        batch, released = self._ledger.seal(turn)
        if batch is not None:
            number = self._core.end_batch()
            assert number == batch.number - self._batch_offset, "every batch of the core is one of the store"
            self._parts.store.put(batch)
        self._release(released, now)
        self.flush(now)

    def flush(self, now: Now) -> None:
        """Send what connections take."""
        for number in self._sessions.flush():
            self._sessions.forget(number)
            self._on_closed(number, now)

    def refuse(self, reason: str) -> None:
        """Take no submissions until `accept`."""
        if reason != self._refusal:
            self._refusal = self._intake.refusal = reason
            self._turn.add(self._core.refuse_submits(reason, FULL_RETRY_S))

    def accept(self) -> None:
        """Take submissions again."""
        if self._refusal:
            self._refusal = self._intake.refusal = ""
            self._turn.add(self._core.accept_submits())

    def alert(self, code: str, message: str, now: Now) -> None:
        """Something that a person should know; an empty text ends it."""
        if message:
            self._alerts[code] = message
        else:
            self._alerts.pop(code, None)
        self._turn.add(self._core.alert(code, message, now))

    def show(self, code: str, message: str, lasts_s: float, now: Now) -> None:
        """Something that a person should know for so long, unless it is said again."""
        self._turn.add(self._core.alert(code, message, now, lasts_s=lasts_s))

    def pause(self, now: Now) -> None:
        """The disk takes nothing: until `resume` nothing is handed to the store; comes before `rebuild`."""
        if self._paused_s is None:
            self._paused_s = now.mono_s
        self._intake.is_paused = True

    def resume(self, now: Now) -> None:
        """It takes something again: agents come back, and their silence meanwhile was ours."""
        assert self._paused_s is not None, "nothing was paused"
        paused_s, self._paused_s = now.mono_s - self._paused_s, None
        self._intake.is_paused = False
        self.stretch(paused_s, now)
        self._turn.add(self._core.start())

    def rebuild(self, snapshot: Snapshot, seed: int, now: Now) -> None:
        """Go on from what is stored: what was not durable never was, and whoever said it will say it again."""
        failed, self.failed = self.failed, None
        assert failed is not None, "nothing has failed"
        culprit = self._ledger.source_of(failed.number, failed.entry)
        self._ledger.fail()
        self._turn = Turn()
        self._intake.reset()
        self._outbound.reset()
        self.usage.forget()
        self._erases.clear()
        if failed.kind is FailureKind.BROKEN:
            self._put_aside(culprit, failed.error, now)
        self._sessions.renew()
        self._core, self._batch_offset = self._new_core(snapshot, seed, now)

    def _new_core(self, snapshot: Snapshot, seed: int, now: Now) -> tuple[Core, int]:
        """A core that has started, and the number of the last batch before its first."""
        core = Core(self._parts.settings, snapshot, seed, now)
        if self._refusal:
            self._turn.add(core.refuse_submits(self._refusal, FULL_RETRY_S))
        for code, message in self._alerts.items():
            self._turn.add(core.alert(code, message, now))
        if self.is_writable:
            self._turn.add(core.start())
        return core, self._ledger.last_number

    def _heard(self, route: bytes, public_key: str, now: Now) -> Session:
        session, forgotten = self._sessions.heard(route, public_key)
        for number in forgotten:
            self._on_closed(number, now)
        return session

    def _on_message(self, peer: Peer, session: Session, message: ToBroker, now: Now) -> None:
        if isinstance(message, BlobMessage):
            self._on_blob_message(peer, session, message, now)
            return
        put_aside = self._quarantine.answer(peer, message)
        if put_aside is not None:
            self._turn.releases.append(Send(session.number, put_aside))
            return
        if not self.is_writable and would_write(message, is_greeted=session.is_greeted):
            if peer.role is not Role.WORKER:  # an agent keeps what it has to say, and says hello until it is heard
                hint, request_id = "nothing was changed; try again later", getattr(message, "request_id", "")
                error = Error(Code.STORE_FULL, self._refusal, hint, request_id, FULL_RETRY_S)
                self._turn.releases.append(Send(session.number, error))
            return
        may_bring_bodies = session.is_greeted and (
            (isinstance(message, Submit) and peer.role in _SUBMITTERS)
            or (isinstance(message, Result) and peer.role is Role.WORKER)
        )
        if may_bring_bodies and isinstance(message, Submit | Result):
            self._follow(self._intake.receive(peer, session.number, message, now.mono_s), now)
            return
        if isinstance(message, AgentHello | ClientHello):
            session.is_greeted = True
        self._feed(peer, session.number, message, (), now)

    def _feed(
        self, peer: Peer, session: int, message: FromAgent | FromClient, new: tuple[NewBlob, ...], now: Now
    ) -> None:
        effects = self._core.receive(peer, session, message, now)
        for effect in effects:
            if isinstance(effect, Lookup):
                self.usage.asked(effect.token, peer.name)
        if isinstance(message, Submit):
            self._intake.uploads.follow(peer.name, effects, new, now.mono_s)
        self._turn.add(effects, source_of(peer, message), new)

    def _on_found(self, answer: FoundRows, now: Now) -> None:
        who = self.usage.answered(answer.token)
        began_s = self._parts.cpu_s()
        effects = self._core.found(answer.token, answer.found, now)
        self._intake.uploads.follow(who, effects, (), now.mono_s)
        self._turn.add(effects, owner=who)
        if who:
            self.usage.spend(who, answer.took_s + self._parts.cpu_s() - began_s)

    def _on_blob_message(self, peer: Peer, session: Session, message: BlobMessage, now: Now) -> None:
        if peer.role in _BLOBLESS:
            text = f"a key with the role {peer.role} may not send {type(message).__name__}"
            self._turn.releases.append(Send(session.number, Error(Code.NOT_AUTHORISED, text)))
            return
        if not session.is_greeted:
            self._turn.releases.append(Send(session.number, Error(Code.HELLO_REQUIRED, "say hello first")))
            return
        match message:
            case BlobChunk():
                self._follow(self._intake.chunk(session.number, message, now.mono_s), now)
            case BlobMissing():
                self._follow(self._intake.missing(session.number, message, now.mono_s), now)
            case BlobGet():
                self.usage.reading(peer.name)
                is_granted = self._grants.has(peer.public_key, message.sha256)
                self._parts.reader.ask(ReadChunk(session.number, peer, message.sha256, message.index, is_granted))
            case _:
                assert_never(message)

    def _on_read_failed(self, answer: ReadFailed, now: Now) -> None:
        match answer.request:
            case None:
                raise StopBroker(f"the database cannot be read: {answer.error}")
            case Find(term=term, token=token):
                if term == self._ledger.term:
                    self.usage.answered(token)
                    self._turn.add(self._core.not_found(token, now))
            case ReadBodies(token=token):
                self._outbound.read_failed(token)
            case ReadChunk(peer=peer):
                self.usage.read(peer.name)  # whoever asked asks again
        self.alert("lookup_failed", f"a look-up failed, a fault of Koubou's: {answer.error}", now)

    def _on_chunk_read(self, answer: ChunkRead) -> None:
        session = self._sessions.get(answer.session)
        self.usage.read(answer.peer.name)
        if session is None:
            return
        # What was read was committed: nothing has to be waited for.
        if answer.data is None:
            self._sessions.send(session, BlobMissing(answer.sha256))
        else:
            self._grants.grant(answer.peer.public_key, (answer.sha256,))
            self._sessions.send(session, BlobChunk(answer.sha256, answer.index, answer.data))

    def _follow(self, steps: Iterable[blobs.Step], now: Now) -> None:
        for step in steps:
            match step:
                case blobs.Ready():
                    if self._sessions.get(step.session) is not None:
                        self._feed(step.peer, step.session, step.message, step.blobs, now)
                case blobs.Refuse():
                    self._turn.releases.append(Send(step.session, step.error))
                case blobs.Ask():
                    session = self._sessions.get(step.session)
                    if session is not None:  # it states nothing: it need not wait for the disk
                        self._sessions.send(session, step.message)
                case blobs.Keep():
                    self._turn.keep(step.blob)
                case Claim():
                    self._turn.claims.append(step)
                case _:
                    assert_never(step)

    def _on_durable(self, outcome: Durable, now: Now) -> None:
        if outcome.term != self._ledger.term:
            return
        self._culpritless = 0
        self._turn.add(self._core.durable(outcome.number - self._batch_offset, now))
        self._release(self._ledger.durable(outcome.number), now)

    def _keep(self, order: AskBackup | Erase, now: Now) -> None:
        keeper = self._parts.keeper
        if keeper is None:
            log.error("there is no file to be copied or purged here")
            return
        if isinstance(order, Erase):
            # A number of our own: an answer for an earlier core must not be taken for one of this.
            self._last_erase += 1
            self._erases[self._last_erase] = order.token
            order = replace(order, token=self._last_erase)
        for told in keeper.ask(order):
            self._on_told(told, now)

    def _on_told(self, told: Told, now: Now) -> None:
        if isinstance(told.message, BackupMade):
            self._turn.add(self._core.backed_up(told.session, told.principal, told.message, now))
            return
        session = self._sessions.get(told.session)
        if session is not None:  # pieces of a file that is on the disk: nothing has to be waited for
            self._sessions.send(session, told.message)

    def _on_purged(self, outcome: Purged, now: Now) -> None:
        self._cache.drop(outcome.hashes)
        token = self._erases.pop(outcome.token, None)
        if token is not None:
            self._turn.add(self._core.erased(token, outcome.erased, now))

    def _release(self, effects: Iterable[Effect], now: Now) -> None:
        for effect in effects:
            match effect:
                case Send():
                    session = self._sessions.get(effect.session)
                    if session is not None:
                        self._send(session, effect.message)
                case Lookup():
                    self._parts.reader.ask(Find(self._ledger.term, effect.token, effect.query))
                case Close():
                    self._sessions.close(effect.session)
                    self._follow(self._intake.closed(effect.session, now.mono_s), now)
                case Allow():
                    self._parts.access.allow(effect.public_key, effect.name, effect.role)
                case Revoke():
                    self._parts.access.revoke(effect.public_key)
                    self._grants.revoke(effect.public_key)
                case Alert():
                    if not effect.message:
                        self._alerts.pop(effect.code, None)
                    log.log(
                        logging.WARNING if effect.message else logging.INFO,
                        "alert %s: %s",
                        effect.code,
                        effect.message or "over",
                    )
                case AskBackup() | Erase():
                    self._keep(effect, now)
                case Save():
                    raise AssertionError("a Save goes to the store")
                case _:
                    assert_never(effect)

    def _send(self, session: Session, message: FromBroker) -> None:
        began_s = self._parts.cpu_s()
        request = self._outbound.send(session, message)
        self.usage.spend(self.principal_of(session.public_key), self._parts.cpu_s() - began_s)
        if request is not None:
            self._parts.reader.ask(request)

    def _on_closed(self, number: int, now: Now) -> None:
        """The connection of a session is gone, or was given up."""
        self._follow(self._intake.closed(number, now.mono_s), now)
        self._turn.add(self._core.closed(number, now))

    def _put_aside(self, culprit: Source | None, error: str, now: Now) -> None:
        if culprit is None:
            self._culpritless += 1
            if self._culpritless >= CULPRITLESS:
                raise StopBroker(f"the core's own changes cannot be stored: {error}")
            return
        log.error("put a message of %s aside that cannot be stored (%s): %s", culprit.principal, culprit.key[0], error)
        self._quarantine.add(culprit)
        self._alerts["quarantined"] = f"a message of {culprit.principal} could not be stored and was put aside"
        self._turn.quarantined = Quarantined(
            now.wall_ms, culprit.principal, culprit.key[0], pack(culprit.message), error
        )

    def _note_undecodable(self, who: str, why: str) -> None:
        self.undecodable += 1
        if self.undecodable.bit_count() == 1:  # 1, 2, 4, 8, ... : a flood must not fill the disk
            log.warning("dropped %d messages that are none, the last of %s: %s", self.undecodable, who, why)
