"""Requests that wait for their answer, sent until it comes; pure, so that the agent's core may hold one."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from koubou_common.messages.limits import MIB

_OUTBOX_REQUESTS = 1_000
_OUTBOX_BYTES = 16 * MIB  # one task at its limit
_RESEND_S = 5.0  # one heartbeat: a busy broker answers sooner, a lost message waits no longer
_FULL_RETRY_S = 0.05  # a full queue of 64 messages drains in less on a LAN

Key = TypeVar("Key", bound=Hashable)


@dataclass(slots=True)
class _Pending:
    data: bytes
    sent_s: float | None = None  # None: not in this session


class Outbox(Generic[Key]):
    """Requests without an answer yet: sent in order in every session, and again until acknowledged."""

    def __init__(
        self,
        *,
        resend_s: float = _RESEND_S,
        most_requests: int = _OUTBOX_REQUESTS,
        most_bytes: int = _OUTBOX_BYTES,
    ) -> None:
        self._resend_s = resend_s
        self._most_requests = most_requests
        self._most_bytes = most_bytes
        self._pending: dict[Key, _Pending] = {}
        self._bytes = 0
        self._is_open = False
        self._full_until_s: float | None = None

    def __len__(self) -> int:
        return len(self._pending)

    def __contains__(self, key: Key) -> bool:
        return key in self._pending

    def add(self, key: Key, data: bytes) -> bool:
        """Keep a request until it is acknowledged; False: full, or the key is pending with other bytes."""
        known = self._pending.get(key)
        if known is not None:
            return known.data == data
        if len(self._pending) >= self._most_requests or self._bytes + len(data) > self._most_bytes:
            return False
        self._pending[key] = _Pending(data)
        self._bytes += len(data)
        return True

    def acknowledge(self, key: Key) -> bool:
        """The answer is here; False: it was not waited for (any more)."""
        pending = self._pending.pop(key, None)
        if pending is None:
            return False
        self._bytes -= len(pending.data)
        return True

    def opened(self) -> None:
        """A session is ready for requests (its hello is over): all of them go out anew."""
        self._is_open = True
        self._full_until_s = None
        for pending in self._pending.values():
            pending.sent_s = None

    def closed(self) -> None:
        """The session is over: nothing is due until the next."""
        self._is_open = False

    def flush(self, send: Callable[[bytes], bool], now_mono_s: float) -> None:
        """Send what is due, oldest first; the first refusal ends it, so that order is kept."""
        if not self._is_open:
            return
        self._full_until_s = None
        for pending in self._pending.values():
            if pending.sent_s is not None and now_mono_s < pending.sent_s + self._resend_s:
                continue
            if not send(pending.data):
                self._full_until_s = now_mono_s + _FULL_RETRY_S
                return
            pending.sent_s = now_mono_s

    @property
    def next_deadline(self) -> float | None:
        """When to flush next (monotonic seconds); 0 at once, None not before something changes."""
        if not self._is_open or not self._pending:
            return None
        if self._full_until_s is not None:
            return self._full_until_s
        return min(
            0.0 if pending.sent_s is None else pending.sent_s + self._resend_s for pending in self._pending.values()
        )
