"""One direction of a proxied connection: bytes wait here until they may go on. Pure."""

from collections import deque

HELD_MOST = 1 << 20  # bytes taken from a sender before it has to wait, as a router's and two kernels' buffers would
_BURST_S = 0.05  # a throttled pipe saves up this much of its rate
_LEAST_BURST = 1_500.0  # bytes: one packet goes whole


class Pipe:
    """Bytes in, bytes out, later; times are monotonic seconds."""

    def __init__(self) -> None:
        self.is_dead = False  # swallows everything
        self.is_ended = False  # the sender has closed: after what is held comes its FIN
        self._held: deque[tuple[float, bytes]] = deque()
        self._held_bytes = 0
        self._due_s = 0.0  # of the last chunk: bytes never overtake each other
        self._stalled_until_s = 0.0
        self._slow_until_s = 0.0
        self._latency_s = 0.0
        self._bytes_per_s = 0.0
        self._credit = 0.0
        self._credit_at_s = 0.0

    @property
    def has_room(self) -> bool:
        """Whether more may be read from the sender."""
        return self.is_dead or (not self.is_ended and self._held_bytes < HELD_MOST)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is held."""
        return not self._held

    def take(self, data: bytes, now_s: float) -> None:
        """From the sender; nothing means that it closed."""
        if self.is_dead:
            return
        if not data:
            self.is_ended = True
            return
        latency_s = self._latency_s if now_s < self._slow_until_s else 0.0
        self._due_s = max(self._due_s, now_s + latency_s)
        self._held.append((self._due_s, data))
        self._held_bytes += len(data)

    def ready(self, now_s: float) -> bytes:
        """What may go to the receiver now; empty: nothing yet."""
        if self._next_s(now_s) > now_s:
            return b""
        data = self._held[0][1]
        if self._is_throttled(now_s):
            return data[: int(self._credit)]
        return data

    def sent(self, count: int) -> None:
        """So much of what was ready has gone."""
        due_s, data = self._held.popleft()
        if count < len(data):
            self._held.appendleft((due_s, data[count:]))
        self._held_bytes -= count
        self._credit = max(0.0, self._credit - count)

    def next_s(self, now_s: float) -> float | None:
        """When something may go; None: nothing is held."""
        return self._next_s(now_s) if self._held else None

    def stall(self, until_s: float) -> None:
        """Hold everything until then."""
        self._stalled_until_s = max(self._stalled_until_s, until_s)

    def slow(self, until_s: float, *, latency_s: float = 0.0, bytes_per_s: float = 0.0) -> None:
        """Late or few bytes until then."""
        self._slow_until_s, self._latency_s, self._bytes_per_s = until_s, latency_s, bytes_per_s

    def die(self) -> None:
        """Swallow what is held and whatever comes."""
        self.is_dead = True
        self._held.clear()
        self._held_bytes = 0

    def heal(self) -> None:
        """No stall, no delay; a dead pipe has lost bytes and stays dead."""
        self._stalled_until_s = self._slow_until_s = self._due_s = 0.0
        self._held = deque((0.0, data) for _, data in self._held)

    def _next_s(self, now_s: float) -> float:
        if not self._held:
            return float("inf")
        at_s = max(self._held[0][0], self._stalled_until_s)
        if at_s <= now_s and self._is_throttled(now_s):
            self._earn(now_s)
            wanted = min(float(len(self._held[0][1])), self._burst())
            # A little early would be asked again at once, for nothing.
            return now_s if self._credit >= wanted else now_s + (wanted - self._credit) / self._bytes_per_s + 0.001
        return at_s

    def _is_throttled(self, now_s: float) -> bool:
        return now_s < self._slow_until_s and self._bytes_per_s > 0

    def _burst(self) -> float:
        return max(_LEAST_BURST, self._bytes_per_s * _BURST_S)

    def _earn(self, now_s: float) -> None:
        passed_s = max(0.0, now_s - self._credit_at_s)
        self._credit = min(self._burst(), self._credit + passed_s * self._bytes_per_s)
        self._credit_at_s = now_s
