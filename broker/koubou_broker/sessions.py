"""Sessions of the ROUTER: which connection is which session, and what waits to be sent to it."""

import logging
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from koubou_broker.bodies import KnownBodies
from koubou_common.codec import EncodeError, encode, type_name
from koubou_common.errors import Code
from koubou_common.messages import Error, FromBroker, Preview, Status, Story, Workers
from koubou_common.messages.limits import QUEUE_BYTES
from koubou_common.messages.values import Plan, WorkerView

SESSIONS = 20_000  # at most this many are remembered; beyond, who was silent longest says hello again
SESSIONS_EACH = 128  # the same of one key: the core keeps fewer, the rest have not said hello
QUEUES_BYTES = 4 * QUEUE_BYTES  # for all connections of one key that do not read
_ENTRY_BYTES = 512  # what a queued message takes beside its own bytes
_SHORT_CHARS = 80  # of a text, where 500 of them have to fit one message
RETRY_S = 0.02  # how soon a full connection is tried again: POLLOUT speaks for any peer, not for this one

log = logging.getLogger("koubou_broker")


class NoSuchPeerError(Exception):
    """The connection is gone (EHOSTUNREACH)."""


class PeerFullError(Exception):
    """The connection takes nothing more for now (EAGAIN)."""


#: Hands one frame to a connection, at once or not at all: NoSuchPeerError, PeerFullError.
Transmit = Callable[[bytes, bytes], None]


@dataclass(slots=True)
class Outgoing:
    """A message in a session's queue; those behind it wait while its bodies are being read."""

    data: bytes | None = None  # None: not encoded yet, bodies are missing


@dataclass(slots=True)
class Session:
    """One connection of one key."""

    number: int
    route: bytes
    public_key: str
    is_greeted: bool = False  # it has said hello to the core
    known: KnownBodies | None = None  # what it keeps of the bodies sent in it; None: it keeps nothing
    queue: deque[Outgoing] = field(default_factory=deque)
    queued_bytes: int = 0


class Sessions:
    """All sessions; numbers are never used twice, not even after a `renew`."""

    def __init__(self, epoch: int, transmit: Transmit, *, most: int = SESSIONS, most_each: int = SESSIONS_EACH) -> None:
        self._epoch = epoch
        self._transmit = transmit
        self._most = most
        self._most_each = most_each
        self._of_key: dict[str, OrderedDict[int, Session]] = {}  # least recently heard first
        self._queued: Counter[str] = Counter()  # bytes in all queues, by key
        self._given_up = 0
        self._by_route: OrderedDict[tuple[bytes, str], Session] = OrderedDict()  # least recently heard first
        self._by_number: dict[int, Session] = {}
        self._last_number = 0
        self._unsent: dict[int, None] = {}  # sessions with something in their queue, in order of trying

    def __len__(self) -> int:
        return len(self._by_number)

    def heard(self, route: bytes, public_key: str) -> tuple[Session, list[int]]:
        """The session a message belongs to, and the numbers of greeted ones that were forgotten to make room."""
        session = self._by_route.get((route, public_key))
        if session is not None:
            self._by_route.move_to_end((route, public_key))
            self._of_key[public_key].move_to_end(session.number)
            return session, []
        self._last_number += 1
        session = Session(self._last_number, route, public_key)
        self._by_route[route, public_key] = session
        self._by_number[session.number] = session
        own = self._of_key.setdefault(public_key, OrderedDict())
        own[session.number] = session
        forgotten = []
        while len(own) > self._most_each or len(self._by_route) > self._most:
            oldest = next(iter((own if len(own) > self._most_each else self._by_route).values()))
            if oldest.is_greeted:
                forgotten.append(oldest.number)
            self.forget(oldest.number)
        return session, forgotten

    def get(self, number: int) -> Session | None:
        """A session by its number."""
        return self._by_number.get(number)

    def forget(self, number: int) -> None:
        """The session is over; what was queued for it is dropped."""
        session = self._by_number.pop(number, None)
        if session is not None:
            del self._by_route[session.route, session.public_key]
            self._unsent.pop(number, None)
            own = self._of_key[session.public_key]
            del own[number]
            if not own:
                del self._of_key[session.public_key]
            self._weigh(session, -session.queued_bytes)

    def close(self, number: int) -> None:
        """The session is over once what is queued has been tried: its last word is often why."""
        session = self._by_number.get(number)
        if session is not None:
            self._flush(session)
            self.forget(number)

    def renew(self) -> None:
        """A new core knows nobody: everybody is told to say hello again, and gets a new number then."""
        error = Error(Code.HELLO_REQUIRED, "the broker went back to what is stored; say hello again")
        for session in list(self._by_number.values()):
            was_greeted = session.is_greeted
            self.forget(session.number)
            if was_greeted:
                again, _ = self.heard(session.route, session.public_key)
                self.send(again, error)

    def send(self, session: Session, message: FromBroker, *, is_complete: bool = True) -> Outgoing:
        """Queue a message; one that is not complete holds up those behind it until `complete`."""
        outgoing = Outgoing()
        session.queue.append(outgoing)
        self._unsent[session.number] = None
        if is_complete:
            self.complete(session, outgoing, message)
        return outgoing

    def complete(self, session: Session, outgoing: Outgoing, message: FromBroker) -> None:
        """The message as it will leave."""
        outgoing.data = _encoded(message, self._epoch)
        if session.number in self._by_number:
            self._weigh(session, len(outgoing.data) + _ENTRY_BYTES)

    def flush(self) -> list[int]:
        """Send what can be sent; the numbers of sessions that are over: gone, or too slow for too long."""
        over = []
        for number in list(self._unsent):
            session = self._by_number[number]
            if not self._flush(session):
                over.append(number)
                self.forget(number)
            elif session.queued_bytes > QUEUE_BYTES:
                over.append(number)
                self._give_up(session)
            elif not session.queue:
                del self._unsent[number]
        for key in [key for key, queued in self._queued.items() if queued > QUEUES_BYTES]:
            while self._queued[key] > QUEUES_BYTES:
                session = max(self._of_key[key].values(), key=lambda one: one.queued_bytes)
                over.append(session.number)
                self._give_up(session)
        return over

    @property
    def is_waiting(self) -> bool:
        """Whether a connection was full at the last flush: try again after RETRY_S."""
        return any(self._by_number[number].queue[0].data is not None for number in self._unsent)

    def _give_up(self, session: Session) -> None:
        """Drop what a peer does not read; if it ever reads again, it is told to begin again."""
        self._given_up += 1
        if self._given_up.bit_count() == 1:  # 1, 2, 4, 8, ... : who never reads must not fill the disk
            log.warning("gave %d connections up that did not read what was sent to them", self._given_up)
        was_greeted = session.is_greeted
        self.forget(session.number)
        if was_greeted:
            again, _ = self.heard(session.route, session.public_key)
            self.send(again, Error(Code.HELLO_REQUIRED, "what waited here was not read for too long; say hello again"))

    def _weigh(self, session: Session, more: int) -> None:
        session.queued_bytes += more
        self._queued[session.public_key] += more
        if not self._queued[session.public_key]:
            del self._queued[session.public_key]

    def _flush(self, session: Session) -> bool:
        """Send the head of the queue, as far as it goes; False if the peer is gone."""
        try:
            while session.queue and session.queue[0].data is not None:
                data = session.queue[0].data
                self._transmit(session.route, data)
                session.queue.popleft()
                self._weigh(session, -len(data) - _ENTRY_BYTES)
        except PeerFullError:
            pass
        except NoSuchPeerError:
            return False
        return True


def _encoded(message: FromBroker, epoch: int) -> bytes:
    """The bytes of a message; an answer too large to send is shortened, or becomes an error."""
    try:
        return encode(message, epoch)
    except EncodeError as error:
        shorter = _shorter(message)
        if shorter != message:
            return _encoded(shorter, epoch)
        log.error("an answer cannot be sent: %s", error)
        request_id = getattr(message, "request_id", "")
        text = f"the answer ({type_name(message)}) is too large to be sent; ask for less at a time"
        return encode(Error(Code.TOO_LARGE, text, request_id=request_id), epoch)


def _shorter(message: FromBroker) -> FromBroker:
    """What still fits when peers have used every limit of every text."""
    match message:
        case Story():
            # The logs of a hundred attempts do not fit; the last one's tells most.
            older = tuple(replace(attempt, log="") for attempt in message.attempts[:-1])
            return replace(message, attempts=(*older, *message.attempts[-1:]))
        case Workers():
            return replace(message, workers=tuple(_shorter_worker(one) for one in message.workers))
        case Status():
            alerts = tuple(replace(one, message=one.message[:_SHORT_CHARS]) for one in message.alerts)
            return replace(message, workers=tuple(_shorter_worker(one) for one in message.workers), alerts=alerts)
        case Preview():
            return replace(message, plans=tuple(_shorter_plan(one) for one in message.plans))
        case _:
            return message


def _shorter_worker(worker: WorkerView) -> WorkerView:
    return replace(
        worker,
        default_model=worker.default_model[:_SHORT_CHARS],
        models=(),
        loaded=(),
        issue=worker.issue[:_SHORT_CHARS],
        address=worker.address[:_SHORT_CHARS],
        agent="",
    )


def _shorter_plan(plan: Plan) -> Plan:
    first = tuple(replace(one, reason=one.reason[:_SHORT_CHARS]) for one in plan.candidates[:1])
    texts = (plan.model[:_SHORT_CHARS], plan.rule[:_SHORT_CHARS], plan.refusal[:_SHORT_CHARS])
    return replace(plan, model=texts[0], rule=texts[1], refusal=texts[2], candidates=first)
