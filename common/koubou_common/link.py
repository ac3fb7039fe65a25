"""A client's or agent's link to its broker: connects, says why it cannot, comes back, resends.

Everything happens inside the caller's loop and thread; bytes go in and out, their meaning is the caller's.
"""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

import zmq

from koubou_common.addresses import AddressError, check_connect
from koubou_common.errors import Code, ConfigError, KoubouError
from koubou_common.keys import KeyPair, fingerprint
from koubou_common.link_monitor import Attempt, Context, Diagnosis, Socket, Timeouts, Verdict
from koubou_common.messages.limits import MESSAGE_BYTES

__all__ = [
    "Backoff",
    "Connected",
    "Diagnosis",
    "Disconnected",
    "Link",
    "LinkEvent",
    "Received",
    "Timeouts",
]

_RECEIVE_AT_ONCE = 64  # messages per pump, so that the caller's other work gets its turn
_STABLE_S = 10.0  # a session that lasted this long ended by accident; a shorter one counts as a failure
_LINGER_S = 2.0  # for the last words of a clean end; what must arrive is repeated until acknowledged anyway
_DOUBLINGS = 32  # beyond this every cap is reached
# Of several addresses, the one that got furthest explains best.
_MOST_TELLING = (
    Diagnosis.KEY_NOT_ENROLLED,
    Diagnosis.WRONG_BROKER_KEY,
    Diagnosis.LOST,
    Diagnosis.NOT_A_BROKER,
    Diagnosis.NOTHING_LISTENS,
)


@dataclass(frozen=True, slots=True)
class Backoff:
    """Full jitter: a pause is drawn between 0 and a bound that doubles with every failure."""

    first_s: float = 0.25
    cap_s: float = 5.0  # a LAN, some dozens of peers: nobody is flooded, and a broker that is back is found soon

    def delay_s(self, failures: int, draw: float) -> float:
        """The pause after `failures` earlier failures; `draw` is in [0, 1)."""
        return draw * min(self.cap_s, self.first_s * float(2 ** min(failures, _DOUBLINGS)))


@dataclass(frozen=True, slots=True)
class Connected:
    """A new session: nothing of the old one is known to have arrived, so say hello again."""

    session_number: int


@dataclass(frozen=True, slots=True)
class Disconnected:
    """A session ended, or an address gave another reason than last time; the link goes on trying."""

    reason: Diagnosis
    text: str


@dataclass(frozen=True, slots=True)
class Received:
    """One message of the broker."""

    data: bytes


LinkEvent = Connected | Disconnected | Received


class Link:
    """One encrypted connection to whichever address answers; owned by one thread, unsafe across fork."""

    def __init__(
        self,
        addresses: Sequence[str],
        server_public: str,
        pair: KeyPair,
        *,
        context: Context | None = None,
        backoff: Backoff | None = None,
        timeouts: Timeouts | None = None,
        seed: int | None = None,
    ) -> None:
        """`seed` fixes the jitter; without a `context` the link has one of its own."""
        if not addresses:
            raise ConfigError("no broker address is known", "join a broker, or name its address")
        for address in addresses:
            try:
                check_connect(address)
            except AddressError as error:
                raise ConfigError(f"the broker address {address!r} {error.message}", error.hint) from error
        self._addresses = tuple(dict.fromkeys(addresses))
        self._server_public = server_public
        self._pair = pair
        self._own_context = None if context else zmq.Context()
        self._context: Context = context or self._own_context or zmq.Context.instance()
        self._backoff = backoff or Backoff()
        self._timeouts = timeouts or Timeouts()
        self._random = random.Random(seed)  # noqa: S311 - jitter, not a secret

        self._attempt: Attempt | None = None
        self._index = 0  # of the address in use
        self._left_in_round = len(self._addresses)
        self._failures = 0  # rounds without a lasting session
        self._retry_at_s = 0.0
        self._sessions = 0
        self._opened_s: float | None = None  # None: no session
        self._drop: Verdict | None = None  # the caller wants this session ended
        self._known: set[str] = set()  # addresses where our broker answered
        self._suspect: str | None = None  # address whose key looked wrong once
        self._verdicts: dict[str, Verdict] = {}
        self._is_closed = False

    def sockets(self) -> list[Socket]:
        """What to poll for reading; other sockets after every pump that changed the connection."""
        return self._attempt.sockets if self._attempt else []

    @property
    def next_deadline(self) -> float | None:
        """When to pump although no socket is ready (monotonic seconds); None: no such time."""
        if self._attempt is None:
            return self._retry_at_s
        if self._drop:
            return 0.0
        return self._attempt.deadline_s

    def poll(self, timeout_s: float) -> None:
        """Wait until there is reason to pump, at most `timeout_s`; for callers with nothing else to do."""
        deadline = self.next_deadline
        if deadline is not None:
            timeout_s = min(timeout_s, deadline - time.monotonic())
        poller = zmq.Poller()
        for socket in self.sockets():
            poller.register(socket, zmq.POLLIN)
        # Round up: a poll that ends just before the deadline would spin.
        poller.poll(max(0, int(timeout_s * 1_000) + 1) if timeout_s > 0 else 0)

    def pump(self, now_mono_s: float) -> list[LinkEvent]:
        """Do what is due, without blocking, and tell what happened, in order."""
        events: list[LinkEvent] = []
        if self._is_closed:
            return events
        if self._attempt is None:
            if now_mono_s < self._retry_at_s:
                return events
            self._attempt = self._start(now_mono_s)
        attempt = self._attempt
        attempt.step(now_mono_s)
        if attempt.is_open and self._opened_s is None:
            events.append(self._open(now_mono_s))
        if attempt.is_open:
            self._receive(attempt, events)
        verdict = self._drop or attempt.verdict
        if verdict:
            events.extend(self._end(verdict, now_mono_s))
        return events

    def send(self, data: bytes) -> bool:
        """Hand one message to the session; False (not connected, or full) leaves it with the caller.

        True promises nothing: only the broker's answer does.
        """
        if len(data) > MESSAGE_BYTES:
            raise KoubouError(Code.TOO_LARGE, f"a message has {len(data)} bytes, the limit is {MESSAGE_BYTES} bytes")
        if self._attempt is None or self._opened_s is None or self._drop:
            return False
        return self._attempt.send(data)

    def drop(self, text: str) -> None:
        """End this session at the next pump, as the broker is connected but of no use; then try again."""
        if self._opened_s is not None and self._drop is None:
            self._drop = Verdict(Diagnosis.LOST, text)

    @property
    def is_connected(self) -> bool:
        """Whether there is a session."""
        return self._opened_s is not None

    @property
    def session_number(self) -> int:
        """How many sessions there were, this one included."""
        return self._sessions

    @property
    def diagnosis(self) -> Diagnosis:
        """How the link stands; `connecting` until every address had its try."""
        if self.is_connected:
            return Diagnosis.CONNECTED
        telling = self._telling()
        return telling.diagnosis if telling else Diagnosis.CONNECTING

    def explain(self) -> KoubouError:
        """Why there is no session, in a user's words; to be raised or shown by the caller."""
        telling = self._telling()
        if telling is None:
            tried = ", ".join(self._addresses)
            return KoubouError(Code.BROKER_UNREACHABLE, f"no answer yet from {tried}", "wait a few seconds more")
        others = [verdict.text for verdict in self._verdicts.values() if verdict is not telling]
        code, hint = self._advice(telling.diagnosis)
        return KoubouError(code, "; ".join([telling.text, *others]), hint)

    def close(self, linger_s: float = _LINGER_S) -> None:
        """End the link; what a session has not sent gets `linger_s` (blocking if the context is our own)."""
        self._is_closed = True
        if self._attempt:
            self._attempt.close(linger_s if self.is_connected else 0.0)
            self._attempt = None
            self._opened_s = None
        if self._own_context:
            self._own_context.term()
            self._own_context = None

    def _start(self, now_s: float) -> Attempt:
        address = self._addresses[self._index]
        return Attempt(
            self._context,
            address,
            self._server_public,
            self._pair,
            now_s=now_s,
            timeouts=self._timeouts,
            is_known=address in self._known,
        )

    def _open(self, now_s: float) -> Connected:
        self._sessions += 1
        self._opened_s = now_s
        self._known.add(self._addresses[self._index])
        self._suspect = None
        self._verdicts.clear()
        return Connected(self._sessions)

    def _receive(self, attempt: Attempt, events: list[LinkEvent]) -> None:
        """Read only after Connected was told; once the session is over, all that libzmq kept of it."""
        received = 0
        is_over = attempt.verdict is not None
        while received < _RECEIVE_AT_ONCE or is_over:
            data = attempt.receive()
            if data is None:
                return
            events.append(Received(data))
            received += 1

    def _end(self, verdict: Verdict, now_s: float) -> list[LinkEvent]:
        if self._attempt:
            self._attempt.close()
            self._attempt = None
        address = self._addresses[self._index]
        if verdict.diagnosis is Diagnosis.WRONG_BROKER_KEY and self._suspect != address:
            # A broker killed during a handshake, and back at once, looks just like that: look twice.
            self._suspect = address
            self._retry_at_s = now_s
            return []
        self._suspect = None
        if self._opened_s is not None:
            self._plan_after_session(now_s - self._opened_s, now_s)
            is_news = True
        else:
            self._plan_after_failure(now_s)
            is_news = self._verdicts.get(address) != verdict
        self._opened_s = None
        self._drop = None
        self._verdicts[address] = verdict
        return [Disconnected(verdict.diagnosis, verdict.text)] if is_news else []

    def _plan_after_session(self, lasted_s: float, now_s: float) -> None:
        self._left_in_round = len(self._addresses)
        if lasted_s >= _STABLE_S:
            self._failures = 0  # and the same address first: it was right until now
        else:
            self._index = (self._index + 1) % len(self._addresses)
        self._retry_at_s = now_s + self._backoff.delay_s(self._failures, self._random.random())
        self._failures += 1

    def _plan_after_failure(self, now_s: float) -> None:
        self._index = (self._index + 1) % len(self._addresses)
        self._left_in_round -= 1
        self._retry_at_s = now_s
        if self._left_in_round == 0:
            self._left_in_round = len(self._addresses)
            self._retry_at_s += self._backoff.delay_s(self._failures, self._random.random())
            self._failures += 1

    def _telling(self) -> Verdict | None:
        if self._sessions == 0 and len(self._verdicts) < len(self._addresses):
            return None
        return min(
            self._verdicts.values(),
            key=lambda verdict: _MOST_TELLING.index(verdict.diagnosis),
            default=None,
        )

    def _advice(self, diagnosis: Diagnosis) -> tuple[Code, str]:
        match diagnosis:
            case Diagnosis.KEY_NOT_ENROLLED:
                return Code.KEY_NOT_ENROLLED, (
                    f"our key is {fingerprint(self._pair.public)}: ask an operator for an invitation, for a "
                    "person `koubou-ctl keys invite NAME`, for a box `koubou-ctl workers invite NAME`"
                )
            case Diagnosis.WRONG_BROKER_KEY:
                return Code.WRONG_BROKER_KEY, (
                    f"we expect the broker key {fingerprint(self._server_public)}; the broker prints its own "
                    "when it starts. If it was set up anew, join again by invitation; else check the address"
                )
            case Diagnosis.NOT_A_BROKER:
                return Code.NOT_A_BROKER, (
                    "check the address and the port (5570 unless configured otherwise), and that there is no "
                    "forwarded port in between whose other end is gone"
                )
            case Diagnosis.LOST:
                return Code.BROKER_UNREACHABLE, "look at the broker's log on its host; this link keeps trying"
            case _:
                return Code.BROKER_UNREACHABLE, (
                    "start it with `koubou-broker` on its host, or check address, network and firewall"
                )
