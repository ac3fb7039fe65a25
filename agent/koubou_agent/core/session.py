"""How the agent stands with the broker: connection, session, term, and when something must be said."""

from koubou_common.messages import UNASKED, Welcome

HELLO_AGAIN_S = 5.0  # an unanswered Hello is repeated
HELLO_SOONEST_S = 1.0  # a broker that answers every message with hello_required gets one Hello a second
LATENCY_MOST_MS = 60_000  # an echo older than this is of another session

_HEARTBEAT_S, _LEASE_S = 5.0, 30.0  # until a Welcome says what the broker wants


class Session:
    """Open from a Welcome until the connection ends, the broker forgets it, or another broker speaks."""

    def __init__(self, now: float) -> None:
        self.is_connected = False
        self.number: int | None = None  # the broker's; None: no session
        self.epoch = 0
        self.last_dispatch = 0  # number of the last one received in this session
        self.latency_ms = 0
        self.hello_at_s = now
        self.heartbeat_at_s = now
        self._last = (0, 0)  # epoch and number of the last session
        self._heartbeat_s = _HEARTBEAT_S
        self._lease_s = _LEASE_S
        self._hello_said_s = now - HELLO_SOONEST_S
        self._heard_s = now

    @property
    def is_open(self) -> bool:
        """Whether the broker knows us in this connection."""
        return self.number is not None

    def connected(self) -> None:
        """A new connection: nothing of the old one counts."""
        self.is_connected = True
        self.number = None

    def disconnected(self) -> None:
        """The connection is gone."""
        self.is_connected = False
        self.number = None

    def welcome(self, message: Welcome, now: float) -> None:
        """The broker knows us; a repeated Welcome changes no count."""
        if (self.epoch, message.session) != self._last:
            self._last = (self.epoch, message.session)
            self.last_dispatch = 0
        self.number = message.session
        self._heartbeat_s = message.heartbeat_s
        self._lease_s = message.lease_s
        self.heartbeat_at_s = now + self._heartbeat_s  # the Hello has just said everything

    def forgotten(self, hello_at_s: float) -> None:
        """The broker does not know us any more, or seems not to: greet it anew, no sooner than is polite."""
        self.number = None
        self.hello_at_s = max(hello_at_s, self._hello_said_s + HELLO_SOONEST_S)

    def heard(self, now: float) -> None:
        """The broker spoke."""
        self._heard_s = now

    def is_silent(self, now: float) -> bool:
        """Whether a broker that is connected has said nothing for a whole lease."""
        return self.is_open and now - self._heard_s >= self._lease_s

    def hello_said(self, now: float) -> None:
        """We greeted."""
        self._hello_said_s = now
        self.hello_at_s = now + HELLO_AGAIN_S

    def heartbeat_said(self, now: float) -> None:
        """The next one is due a pause from now."""
        self.heartbeat_at_s = now + self._heartbeat_s

    def echoed(self, sent_ms: int, now: float) -> None:
        """A heartbeat came back, or the broker spoke of itself: that tells no latency."""
        latency_ms = int(now * 1000) - sent_ms
        if sent_ms != UNASKED and 0 <= latency_ms <= LATENCY_MOST_MS:
            self.latency_ms = latency_ms

    def next_deadline(self) -> float | None:
        """When to say something next."""
        if self.is_open:
            return min(self.heartbeat_at_s, self._heard_s + self._lease_s)
        return self.hello_at_s if self.is_connected else None
