"""The inputs of an agent's attempts: in the dispatch, in the cache, or pulled by the real `Downloads`."""

from collections.abc import Callable
from dataclasses import dataclass, field

from koubou_agent.blobs import Downloads, is_body
from koubou_common.messages import BlobChunk, BlobGet, Dispatch
from koubou_common.messages.limits import KEPT_BYTES_LEAST
from koubou_common.messages.values import Body

Ready = Callable[[bool], None]  # whether all inputs are there


@dataclass(slots=True)
class _Waiting:
    missing: dict[bytes, Body]
    ready: Ready


@dataclass(slots=True)
class InputsModel:
    """Of one process; the cache outlives it."""

    cache: dict[bytes, bytes]
    _downloads: Downloads = field(default_factory=Downloads)
    _waiting: dict[str, _Waiting] = field(default_factory=dict)  # attempt uid -> what it waits for

    def want(self, dispatch: Dispatch, ready: Ready) -> None:
        """Say when all that the attempt refers to is here, and is what it should be."""
        missing: dict[bytes, Body] = {}
        for body in (dispatch.prompt, *(file.body for file in dispatch.files)):
            if body.inline is not None:
                assert is_body(body, body.inline), f"attempt {dispatch.attempt_uid}: an input is not what it is called"
                if body.size_bytes >= KEPT_BYTES_LEAST:
                    self.cache[body.sha256] = body.inline
            elif body.sha256 not in self.cache:
                missing[body.sha256] = body
                self._downloads.want(body)
        if missing:
            self._waiting[dispatch.attempt_uid] = _Waiting(missing, ready)
        else:
            ready(True)

    def give_up(self, uid: str) -> None:
        """The attempt waits no more; what only it wanted is pulled no more."""
        gone = self._waiting.pop(uid, None)
        for sha256 in gone.missing if gone else ():
            if not any(sha256 in one.missing for one in self._waiting.values()):
                self._downloads.forget(sha256)

    def fail(self, uid: str) -> None:
        """The attempt has waited for too long, if it still does."""
        waiting = self._waiting.get(uid)
        if waiting is not None:
            self.give_up(uid)
            waiting.ready(False)

    def restart(self) -> None:
        """A new connection."""
        self._downloads.restart()

    def due(self, now_s: float) -> list[BlobGet]:
        """The pieces to ask for."""
        return self._downloads.due(now_s)

    @property
    def next_deadline(self) -> float | None:
        """When a piece counts as lost."""
        return self._downloads.next_deadline()

    def chunk(self, message: BlobChunk) -> None:
        """A piece came."""
        data = self._downloads.chunk(message)
        if data is None:
            return
        self._downloads.forget(message.sha256)
        for uid, waiting in list(self._waiting.items()):
            body = waiting.missing.get(message.sha256)
            if body is None:
                continue
            assert is_body(body, data), f"attempt {uid}: a body pulled is not what it is called"
            self.cache[message.sha256] = data
            del waiting.missing[message.sha256]
            if not waiting.missing:
                del self._waiting[uid]
                waiting.ready(True)

    def missing(self, sha256: bytes) -> None:
        """The broker has it not, or not for us."""
        self._downloads.forget(sha256)
        for uid, waiting in list(self._waiting.items()):
            if sha256 in waiting.missing:
                del self._waiting[uid]
                waiting.ready(False)
