"""What attempts refer to: kept in the cache, or pulled from the broker by the loop while the attempt waits."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from koubou_agent.blobs import BlobCache, Downloads, InputsMissing, is_body
from koubou_common.messages import BlobChunk, BlobGet, Dispatch
from koubou_common.messages.limits import KEPT_BYTES_LEAST
from koubou_common.messages.values import Body

FETCH_MOST_S = 600.0  # 16 MiB over a slow line, and a broker that is being restarted meanwhile
_POLL_S = 0.2  # how late a stop may be seen


@dataclass(slots=True)
class _Waiter:
    body: Body
    done: threading.Event = field(default_factory=threading.Event)
    data: bytes | None = None


@dataclass(frozen=True, slots=True)
class Want:
    """An attempt waits for a body."""

    waiter: _Waiter


@dataclass(frozen=True, slots=True)
class Forget:
    """It waits no more."""

    waiter: _Waiter


class Inputs:
    """`fetch` belongs to the attempts' threads, everything else to the loop's."""

    def __init__(self, cache: BlobCache, post: Callable[[Want | Forget], None]) -> None:
        self._cache = cache
        self._post = post
        self._downloads = Downloads()
        self._waiters: dict[bytes, list[_Waiter]] = {}
        self._closed = False

    def fetch(self, body: Body, cancel: threading.Event) -> bytes | None:
        """The body's bytes; None when the attempt was stopped; InputsMissing when they cannot be had."""
        data = self._cache.get(body.sha256)
        if data is not None:
            return data
        waiter = _Waiter(body)
        self._post(Want(waiter))
        give_up_s = time.monotonic() + FETCH_MOST_S
        while not waiter.done.wait(_POLL_S):
            if cancel.is_set():
                self._post(Forget(waiter))
                return None
            if time.monotonic() > give_up_s:
                self._post(Forget(waiter))
                raise InputsMissing(f"an input did not come from the broker within {FETCH_MOST_S:g} s")
        if waiter.data is None:
            raise InputsMissing("the broker does not have, or did not give, an input of this task")
        self._cache.put(waiter.data)
        return waiter.data

    def keep(self, dispatch: Dispatch) -> None:
        """Keep what came inside a dispatch: in this session the broker will not send it again."""
        for body in (dispatch.prompt, *(file.body for file in dispatch.files)):
            if body.inline is not None and body.size_bytes >= KEPT_BYTES_LEAST and is_body(body, body.inline):
                self._cache.put(body.inline)

    def want(self, event: Want) -> None:
        """Begin to pull what an attempt waits for."""
        waiter = event.waiter
        if self._closed:
            waiter.done.set()
            return
        self._waiters.setdefault(waiter.body.sha256, []).append(waiter)
        self._downloads.want(waiter.body)

    def forget(self, event: Forget) -> None:
        """Stop pulling what nobody waits for."""
        sha256 = event.waiter.body.sha256
        left = [waiter for waiter in self._waiters.get(sha256, ()) if waiter is not event.waiter]
        if left:
            self._waiters[sha256] = left
        else:
            self._waiters.pop(sha256, None)
            self._downloads.forget(sha256)

    def due(self, now_s: float) -> list[BlobGet]:
        """What to ask the broker for; only in a session."""
        return self._downloads.due(now_s)

    def next_deadline(self) -> float | None:
        """When a piece counts as lost."""
        return self._downloads.next_deadline()

    def restart(self) -> None:
        """A new connection."""
        self._downloads.restart()

    def chunk(self, message: BlobChunk) -> None:
        """A piece came."""
        data = self._downloads.chunk(message)
        if data is not None:
            waiters = self._waiters.get(message.sha256, [])
            fits = bool(waiters) and is_body(waiters[0].body, data)
            self._answer(message.sha256, data if fits else None)

    def missing(self, sha256: bytes) -> None:
        """The broker has it not, or not for us."""
        self._answer(sha256, None)

    def close(self) -> None:
        """The agent ends: nobody need wait."""
        self._closed = True
        for sha256 in list(self._waiters):
            self._answer(sha256, None)

    def _answer(self, sha256: bytes, data: bytes | None) -> None:
        self._downloads.forget(sha256)
        for waiter in self._waiters.pop(sha256, []):
            waiter.data = data
            waiter.done.set()
