"""Intake of bodies: what is not inside a message is pulled from its sender before the core sees it. Pure.

Messages of one session keep their order: the parts of a submission decide by the last one. What is pulled
goes into the store blob by blob, so that a transfer broken off goes on where it stopped.
"""

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from hashlib import sha256 as sha256_of

from koubou_broker.batches import Claim, Claimed, NewBlob
from koubou_broker.bodies import EMPTY_SHA256, BodyCache, bodies_of, fault_of, with_bodies, without_bytes
from koubou_broker.core_settings import Limits
from koubou_broker.effects import Peer
from koubou_broker.uploads import Uploads
from koubou_common.errors import Code
from koubou_common.messages import BlobChunk, BlobGet, BlobMissing, Error, Result, Submit
from koubou_common.messages.limits import CHUNK_BYTES, CHUNKS_OUTSTANDING, MIB

STALL_S = 30.0  # without a piece for so long, the sender has to say it all again
WAITING_BYTES = 32 * MIB  # of one session's messages in the line: a batch in parts behind a large file
WAITING_EACH = 2 * WAITING_BYTES  # the same over all sessions of a principal
PULLS = 16  # sessions pulled from at a time: bounds memory to 16 files of the largest size
PULLS_EACH = 4  # of one principal: who falls silent in the middle of every body leaves places to others
RETRY_AFTER_S = 2.0
UNREFERENCED_RETRY_S = 600.0  # what no task needs is kept for a day


@dataclass(frozen=True, slots=True)
class Ready:
    """A message whose bodies are all here: feed it to the core, with these blobs in its transaction."""

    peer: Peer
    session: int
    message: Submit | Result
    blobs: tuple[NewBlob, ...]


@dataclass(frozen=True, slots=True)
class Refuse:
    """Tell the sender why its message is not taken."""

    session: int
    error: Error


@dataclass(frozen=True, slots=True)
class Ask:
    """Pull a piece."""

    session: int
    message: BlobGet


@dataclass(frozen=True, slots=True)
class Keep:
    """A pulled blob is complete: into the store with it."""

    blob: NewBlob


Step = Ready | Refuse | Ask | Keep | Claim


@dataclass(slots=True)
class _Pull:
    """One blob on its way in."""

    sha256: bytes
    size_bytes: int
    pieces: dict[int, bytes] = field(default_factory=dict)
    asked: int = 0  # pieces asked for so far, from the first on

    @property
    def count(self) -> int:
        return -(-self.size_bytes // CHUNK_BYTES)

    def length_of(self, index: int) -> int:
        return min(CHUNK_BYTES, self.size_bytes - index * CHUNK_BYTES)


@dataclass(slots=True)
class _Waiting:
    """A message in a session's line."""

    peer: Peer
    message: Submit | Result
    blobs: list[NewBlob]
    missing: OrderedDict[bytes, int]  # what is to be pulled: hash -> size
    is_claimed: bool = False

    @property
    def held_bytes(self) -> int:
        return sum(len(new.data) for new in self.blobs)


@dataclass(slots=True)
class _Line:
    """One session's messages that wait for bodies, in their order; the head is being worked on."""

    waiting: deque[_Waiting] = field(default_factory=deque)
    pull: _Pull | None = None
    token: int = 0  # of the claim under way; 0: none
    moved_s: float = 0.0  # when the head last made progress


class Intake:
    """Takes Submit and Result messages in, gives them back when their bodies are here."""

    def __init__(self, limits: Limits, cache: BodyCache) -> None:
        self._limits = limits
        self._cache = cache
        self._lines: dict[int, _Line] = {}
        self._claims: dict[int, int] = {}  # token -> session
        self._pulling: OrderedDict[int, str] = OrderedDict()  # sessions that may be pulled from, and their principals
        self._queued: OrderedDict[int, str] = OrderedDict()  # sessions that wait for such a place
        self.uploads = Uploads(limits.unreferenced_bytes_per_client)
        self._last_token = 0
        self.is_paused = False  # nothing can be written, not even what a claim refreshes
        self.refusal = ""  # why no submission is taken: nothing is pulled for one, the disk may have no room for it

    def receive(self, peer: Peer, session: int, message: Submit | Result, now_s: float) -> list[Step]:
        """A message came; whoever sends it is known and may send it."""
        fault = _fault_of(message, self._limits)
        if fault:
            return [Refuse(session, fault)]
        blobs = self._take_out(peer, message)
        here = {new.sha256 for new in blobs} | {EMPTY_SHA256}
        absent = OrderedDict((body.sha256, body.size_bytes) for body in bodies_of(message) if body.sha256 not in here)
        stripped = with_bodies(message, without_bytes)
        line = self._lines.get(session)
        # Nothing will be stored: sizes are enough.
        is_dry = isinstance(message, Submit) and (message.dry_run or self.is_paused)
        if self.is_paused and isinstance(message, Submit) and message.parts > 1:
            # Its last part may come when submissions are taken again, and would miss the bodies of this one.
            return [Refuse(session, _error(message, Code.BUSY, self.refusal))]
        if self.is_paused:
            blobs = []
        if is_dry or (not absent and (line is None or isinstance(message, Result))):
            return [Ready(peer, session, stripped, tuple(blobs))]
        return self._line_up(session, _Waiting(peer, stripped, blobs, absent), now_s)

    def claimed(self, answer: Claimed, now_s: float) -> list[Step]:
        """The store said what the sender uploaded earlier."""
        session = self._claims.pop(answer.token, None)
        line = self._lines.get(session) if session is not None else None
        if session is None or line is None or line.token != answer.token:
            return []
        line.token = 0
        line.moved_s = now_s
        head = line.waiting[0]
        head.is_claimed = True
        for sha256, size_bytes in answer.owned:
            if head.missing.get(sha256) not in (None, size_bytes):
                return self._drop_head(session, Code.BAD_MESSAGE, f"a stored body has {size_bytes} bytes", now_s)
            head.missing.pop(sha256, None)
        return self._go_on(session, now_s)

    def chunk(self, session: int, message: BlobChunk, now_s: float) -> list[Step]:
        """A piece came; one that nobody asked for is dropped."""
        line = self._lines.get(session)
        pull = line.pull if line else None
        if line is None or pull is None or pull.sha256 != message.sha256:
            return []
        if message.index >= pull.asked or message.index in pull.pieces:
            return []
        if len(message.data) != pull.length_of(message.index):
            return self._drop_head(session, Code.BAD_MESSAGE, "a piece of a body has the wrong length", now_s)
        line.moved_s = now_s
        pull.pieces[message.index] = message.data
        if len(pull.pieces) < pull.count:
            return self._ask(session, pull)
        data = b"".join(pull.pieces[index] for index in range(pull.count))
        if sha256_of(data).digest() != pull.sha256:
            return self._drop_head(session, Code.BAD_MESSAGE, "a body does not match its sha256", now_s)
        self._cache.put(pull.sha256, data)
        head = line.waiting[0]
        del head.missing[pull.sha256]
        line.pull = None
        self.uploads.brought(head.peer.name, pull.sha256, len(data), now_s)
        return [Keep(NewBlob(pull.sha256, data, head.peer.name)), *self._go_on(session, now_s)]

    def missing(self, session: int, message: BlobMissing, now_s: float) -> list[Step]:
        """The sender does not have what it referred to; or had not, when it was asked for an earlier message."""
        line = self._lines.get(session)
        if line is None or line.pull is None or line.pull.sha256 != message.sha256:
            return []
        # It names no message: where the same body is pulled for the next one, only a repetition can tell.
        return self._drop_head(session, Code.BUSY, "the sender said that it no longer has a body it refers to", now_s)

    def closed(self, session: int, now_s: float) -> list[Step]:
        """The session is gone, and its line with it."""
        line = self._lines.pop(session, None)
        if line is None:
            return []
        self._claims.pop(line.token, None)
        return self._give_place_back(session, now_s)

    def tick(self, now_s: float) -> list[Step]:
        """Give up on senders that fell silent in the middle of a body: they will say it all again."""
        steps: list[Step] = []
        for session, line in list(self._lines.items()):
            if line.pull and now_s - line.moved_s > STALL_S:
                steps += self._drop_head(session, Code.BUSY, "a body stopped arriving", now_s)
        return steps

    def reset(self) -> None:
        """Forget everything: the store has failed, and every sender will repeat what was not answered."""
        self._lines.clear()
        self._claims.clear()
        self._pulling.clear()
        self._queued.clear()

    def _take_out(self, peer: Peer, message: Submit | Result) -> list[NewBlob]:
        blobs: dict[bytes, NewBlob] = {}
        for body in bodies_of(message):
            data = b"" if body.sha256 == EMPTY_SHA256 else body.inline
            if data is not None and body.sha256 not in blobs:
                blobs[body.sha256] = NewBlob(body.sha256, data, peer.name)
                self._cache.put(body.sha256, data)
        return list(blobs.values())

    def _line_up(self, session: int, waiting: _Waiting, now_s: float) -> list[Step]:
        line = self._lines.setdefault(session, _Line(moved_s=now_s))
        if any(_is_repeat(waiting.message, other.message) for other in line.waiting):
            return []
        if line.waiting and sum(one.held_bytes for one in (*line.waiting, waiting)) > WAITING_BYTES:
            most = f"messages of {WAITING_BYTES} bytes wait for bodies"
            return [Refuse(session, _error(waiting.message, Code.BUSY, most))]
        name = waiting.peer.name
        others = (one for each in self._lines.values() for one in each.waiting if one.peer.name == name)
        if sum(one.held_bytes for one in others) + waiting.held_bytes > WAITING_EACH:
            most = f"messages of {WAITING_EACH} bytes wait for bodies on your connections"
            if not line.waiting:
                del self._lines[session]
            return [Refuse(session, _error(waiting.message, Code.BUSY, most))]
        line.waiting.append(waiting)
        return self._go_on(session, now_s) if len(line.waiting) == 1 else []

    def _go_on(self, session: int, now_s: float) -> list[Step]:
        """Do what the head of the line needs next, and whatever is complete after it."""
        line = self._lines[session]
        steps: list[Step] = []
        while line.waiting:
            head = line.waiting[0]
            if head.missing and not head.is_claimed:
                return [*steps, self._claim(session, line, head)]
            if head.missing and self.refusal and isinstance(head.message, Submit):
                return [*steps, *self._drop_head(session, Code.STORE_FULL, self.refusal, now_s)]
            if head.missing and isinstance(head.message, Submit):
                reason = self.uploads.refusal(head.peer.name, sum(head.missing.values()), now_s)
                if reason:
                    return [*steps, *self._drop_head(session, Code.BUSY, reason, now_s, UNREFERENCED_RETRY_S)]
            if head.missing:
                return [*steps, *self._pull(session, line, head, now_s)]
            line.waiting.popleft()
            steps.append(Ready(head.peer, session, head.message, tuple(head.blobs)))
        del self._lines[session]
        return [*steps, *self._give_place_back(session, now_s)]

    def _claim(self, session: int, line: _Line, head: _Waiting) -> Claim:
        self._last_token += 1
        line.token = self._last_token
        self._claims[line.token] = session
        return Claim(line.token, head.peer.name, tuple(head.missing))

    def _pull(self, session: int, line: _Line, head: _Waiting, now_s: float) -> list[Step]:
        if session not in self._pulling:
            if not self._may_pull(head.peer.name):
                self._queued[session] = head.peer.name
                return []
            self._pulling[session] = head.peer.name
        sha256, size_bytes = next(iter(head.missing.items()))
        line.pull = _Pull(sha256, size_bytes)
        line.moved_s = now_s
        return self._ask(session, line.pull)

    def _ask(self, session: int, pull: _Pull) -> list[Step]:
        steps: list[Step] = []
        while pull.asked < pull.count and pull.asked - len(pull.pieces) < CHUNKS_OUTSTANDING:
            steps.append(Ask(session, BlobGet(pull.sha256, pull.asked)))
            pull.asked += 1
        return steps

    def _drop_head(
        self, session: int, code: Code, text: str, now_s: float, wait_s: float = RETRY_AFTER_S
    ) -> list[Step]:
        line = self._lines[session]
        head = line.waiting.popleft()
        line.pull = None
        return [Refuse(session, _error(head.message, code, text, wait_s)), *self._go_on(session, now_s)]

    def _give_place_back(self, session: int, now_s: float) -> list[Step]:
        self._queued.pop(session, None)
        if session not in self._pulling:
            return []
        del self._pulling[session]
        following = next((one for one, name in self._queued.items() if self._may_pull(name)), None)
        if following is None:
            return []
        del self._queued[following]
        return self._go_on(following, now_s)

    def _may_pull(self, name: str) -> bool:
        own = sum(other == name for other in self._pulling.values())
        return len(self._pulling) < PULLS and own < PULLS_EACH


class Grants:
    """Which blobs were named to whom lately: what a key may BlobGet without asking the database."""

    def __init__(self, most: int = 4_096) -> None:
        self._most = most  # of one key: more than any task refers to, many times over
        self._granted: dict[str, OrderedDict[bytes, None]] = {}

    def grant(self, public_key: str, hashes: tuple[bytes, ...]) -> None:
        """A message that names these blobs is going to this key."""
        granted = self._granted.setdefault(public_key, OrderedDict())
        for sha256 in hashes:
            granted[sha256] = None
            granted.move_to_end(sha256)
        while len(granted) > self._most:
            granted.popitem(last=False)

    def revoke(self, public_key: str) -> None:
        """The key is good for nothing any more."""
        self._granted.pop(public_key, None)

    def has(self, public_key: str, sha256: bytes) -> bool:
        """Whether the blob was named to this key."""
        return sha256 in self._granted.get(public_key, ())


def _fault_of(message: Submit | Result, limits: Limits) -> Error | None:
    sizes: dict[bytes, int] = {}
    for body in bodies_of(message):
        fault = fault_of(body)
        if sizes.setdefault(body.sha256, body.size_bytes) != body.size_bytes:
            fault = "one body is said to have two sizes"
        if body.sha256 == EMPTY_SHA256 and body.size_bytes:
            fault = "a body does not match its sha256"
        if body.size_bytes == 0 and body.sha256 != EMPTY_SHA256:
            fault = "a body does not match its sha256"
        if fault:
            return _error(message, Code.BAD_MESSAGE, fault)
    return _oversize(message, limits)


def _oversize(message: Submit | Result, limits: Limits) -> Error | None:
    """The core refuses too large tasks as well; here nothing too large may even be pulled."""
    if isinstance(message, Result):
        return _over(message, "the result", message.raw.size_bytes, limits.result_bytes, "result_bytes")
    for spec in message.tasks:
        size_bytes = spec.prompt.size_bytes
        error = _over(message, "the prompt", size_bytes, limits.prompt_bytes, "prompt_bytes")
        for file in spec.files:
            size_bytes += file.body.size_bytes
            error = error or _over(message, file.name, file.body.size_bytes, limits.file_bytes, "file_bytes")
        error = error or _over(message, "the task", size_bytes, limits.task_bytes, "task_bytes")
        if error:
            return error
    return None


def _over(message: Submit | Result, what: str, size: int, most: int, limit: str) -> Error | None:
    if size <= most:
        return None
    return _error(message, Code.TOO_LARGE, f"{what} has {size} bytes, {most} are allowed (limit {limit})")


def _error(message: Submit | Result, code: Code, text: str, wait_s: float = RETRY_AFTER_S) -> Error:
    request_id = message.request_id if isinstance(message, Submit) else ""
    hint = "nothing was accepted; try again later" if code is Code.STORE_FULL else ""
    retry_after_s = wait_s if code in (Code.BUSY, Code.STORE_FULL) else 0.0
    return Error(code, text, hint, request_id, retry_after_s)


def _is_repeat(one: Submit | Result, other: Submit | Result) -> bool:
    match one, other:
        case Submit(), Submit():
            return one.request_id == other.request_id and one.part == other.part
        case Result(), Result():
            return one.attempt_uid == other.attempt_uid
        case _:
            return False
