"""Bodies too large for a message: pieces served to the broker, and fetched from it."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from koubou_common.errors import Code, KoubouError
from koubou_common.messages import BlobChunk, BlobGet, BlobMissing
from koubou_common.messages.limits import CHUNK_BYTES, CHUNKS_OUTSTANDING
from koubou_common.messages.values import Body

Fetched = Callable[[bytes | KoubouError], None]


class Offer:
    """The bodies that this side has promised in a request that is not answered yet."""

    def __init__(self) -> None:
        self._bodies: dict[bytes, tuple[bytes, int]] = {}  # sha256 -> bytes, requests that need it

    def add(self, bodies: dict[bytes, bytes]) -> None:
        """Keep these bodies for as long as a request names them."""
        for sha256, data in bodies.items():
            self._bodies[sha256] = (data, self._bodies.get(sha256, (b"", 0))[1] + 1)

    def drop(self, bodies: dict[bytes, bytes]) -> None:
        """One request less needs them."""
        for sha256 in bodies:
            data, users = self._bodies[sha256]
            if users > 1:
                self._bodies[sha256] = (data, users - 1)
            else:
                del self._bodies[sha256]

    def answer(self, message: BlobGet) -> BlobChunk | BlobMissing:
        """The piece asked for, or that it is not here."""
        held = self._bodies.get(message.sha256)
        start = message.index * CHUNK_BYTES
        if held is None or start >= max(1, len(held[0])):
            return BlobMissing(message.sha256)
        return BlobChunk(message.sha256, message.index, held[0][start : start + CHUNK_BYTES])


@dataclass(slots=True)
class _Fetch:
    body: Body
    on_done: list[Fetched]
    pieces: dict[int, bytes] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return max(1, -(-self.body.size_bytes // CHUNK_BYTES))


class Fetches:
    """Downloads in progress: at most CHUNKS_OUTSTANDING pieces are asked for at a time, in order."""

    def __init__(self) -> None:
        self._fetches: OrderedDict[bytes, _Fetch] = OrderedDict()
        self._asked: set[tuple[bytes, int]] = set()

    def want(self, body: Body, on_done: Fetched) -> None:
        """Fetch a body; `on_done` gets its bytes or the error."""
        if body.inline is not None:
            on_done(body.inline)
            return
        fetch = self._fetches.get(body.sha256)
        if fetch is None:
            self._fetches[body.sha256] = _Fetch(body, [on_done])
        else:
            fetch.on_done.append(on_done)

    def asks(self) -> list[BlobGet]:
        """The pieces to ask for now."""
        asks: list[BlobGet] = []
        for sha256, fetch in self._fetches.items():
            for index in range(fetch.count):
                if len(self._asked) >= CHUNKS_OUTSTANDING:
                    return asks
                if index not in fetch.pieces and (sha256, index) not in self._asked:
                    self._asked.add((sha256, index))
                    asks.append(BlobGet(sha256, index))
        return asks

    def forget_asked(self) -> None:
        """A new session: what was asked for is asked for again."""
        self._asked.clear()

    def received(self, message: BlobChunk | BlobMissing) -> None:
        """A piece came, or never will."""
        fetch = self._fetches.get(message.sha256)
        if fetch is None:
            return
        if isinstance(message, BlobMissing):
            self._end(fetch, KoubouError(Code.NOT_FOUND, "the broker no longer has these bytes", "ask again"))
            return
        if (message.sha256, message.index) not in self._asked:
            return
        self._asked.discard((message.sha256, message.index))
        fetch.pieces[message.index] = message.data
        if len(fetch.pieces) < fetch.count:
            return
        data = b"".join(fetch.pieces[index] for index in range(fetch.count))
        if hashlib.sha256(data).digest() == fetch.body.sha256:
            self._end(fetch, data)
        else:
            self._end(fetch, KoubouError(Code.INTERNAL, "the bytes received are not those asked for", "ask again"))

    def fail(self, error: KoubouError) -> None:
        """End all downloads with this error."""
        for fetch in list(self._fetches.values()):
            self._end(fetch, error)

    def _end(self, fetch: _Fetch, outcome: bytes | KoubouError) -> None:
        del self._fetches[fetch.body.sha256]
        self._asked = {(sha256, index) for sha256, index in self._asked if sha256 != fetch.body.sha256}
        for on_done in fetch.on_done:
            on_done(outcome)
