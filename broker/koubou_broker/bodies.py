"""The bodies inside messages: finding them, taking verified bytes out, putting bytes in. Pure."""

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import replace

from koubou_common.codec import encode
from koubou_common.messages import Dispatch, FromBroker, ParkedWork, Result, Submit, TaskResult
from koubou_common.messages.limits import INLINE_BYTES, KEPT_BYTES_LEAST
from koubou_common.messages.values import Body, TaskSpec

CACHE_BYTES = 64 * 1024 * 1024  # recent small bodies: most prompts leave again soon after they came
CACHE_BODIES = 8_192  # a tiny one costs half a KiB all the same; this many are some thousand tasks
KNOWN_BODIES = 4_096  # of one session: half a MiB of hashes, and more files than a night's batches share
_FRAME_BYTES = 8 * 1024  # more than a message takes around its bodies and file names
_FILE_FRAME_BYTES = 1_200  # more than a file's name (255 characters of 4 bytes), hash and sizes take
_INLINE_FRAME_BYTES = 16  # what a binary field takes around its bytes

EMPTY_SHA256 = hashlib.sha256(b"").digest()

Change = Callable[[Body], Body]


def bodies_of(message: Submit | Result | Dispatch | TaskResult | ParkedWork) -> Iterator[Body]:
    """All bodies of a message in the order they are attached: prompts before files."""
    match message:
        case Submit():
            for spec in message.tasks:
                yield spec.prompt
                yield from (file.body for file in spec.files)
        case Result():
            yield message.raw
        case Dispatch():
            yield message.prompt
            yield from (file.body for file in message.files)
        case TaskResult():
            if message.body:
                yield message.body
        case ParkedWork():
            yield from (one.body for one in message.outcomes if one.body)


def with_bodies(message: Submit | Result, change: Change) -> Submit | Result:
    """The message with every body changed."""
    match message:
        case Submit():
            return replace(message, tasks=tuple(_changed_spec(spec, change) for spec in message.tasks))
        case Result():
            return replace(message, raw=change(message.raw))


def fault_of(body: Body) -> str:
    """What is wrong with an inline body; "" if nothing is, or nothing is inline."""
    if body.inline is None:
        return ""
    if len(body.inline) != body.size_bytes:
        return f"a body of {len(body.inline)} bytes says it has {body.size_bytes}"
    if hashlib.sha256(body.inline).digest() != body.sha256:
        return "a body does not match its sha256"
    return ""


def without_bytes(body: Body) -> Body:
    """How the core sees a verified inline body: b"" marks that it came with the message."""
    return body if body.inline is None else replace(body, inline=b"")


class BodyCache:
    """Recent bodies by hash, the least recently used dropped first."""

    def __init__(self, most_bytes: int = CACHE_BYTES, most_bodies: int = CACHE_BODIES) -> None:
        self._most_bytes = most_bytes
        self._most_bodies = most_bodies
        self._held: OrderedDict[bytes, bytes] = OrderedDict()
        self._held_bytes = 0

    def put(self, sha256: bytes, data: bytes) -> None:
        """Remember a body if it could ever travel inline."""
        if len(data) > INLINE_BYTES or sha256 in self._held:
            return
        self._held[sha256] = data
        self._held_bytes += len(data)
        while self._held_bytes > self._most_bytes or len(self._held) > self._most_bodies:
            _, dropped = self._held.popitem(last=False)
            self._held_bytes -= len(dropped)

    def drop(self, hashes: Iterable[bytes]) -> None:
        """Forget bodies that were removed for good."""
        for sha256 in hashes:
            data = self._held.pop(sha256, None)
            if data is not None:
                self._held_bytes -= len(data)

    def get(self, sha256: bytes) -> bytes | None:
        """A body, if it is still held."""
        data = self._held.get(sha256)
        if data is not None:
            self._held.move_to_end(sha256)
        return data


class KnownBodies:
    """Hashes of what was sent to an agent that keeps it, the least recently used forgotten first."""

    def __init__(self, most: int = KNOWN_BODIES) -> None:
        self._most = most
        self._known: OrderedDict[bytes, None] = OrderedDict()

    def __contains__(self, sha256: object) -> bool:
        return sha256 in self._known

    def __len__(self) -> int:
        return len(self._known)

    def note(self, bodies: Iterable[Body], sent: Container[bytes]) -> None:
        """A message with these bodies goes out, with the bytes of those in `sent`."""
        for body in bodies:
            if body.sha256 in self._known:
                self._known.move_to_end(body.sha256)
            elif body.sha256 in sent and body.size_bytes >= KEPT_BYTES_LEAST:
                self._known[body.sha256] = None
        while len(self._known) > self._most:
            self._known.popitem(last=False)


def to_be_inline(message: FromBroker, known: Container[bytes] = ()) -> tuple[bytes, ...]:
    """Hashes of the bodies that fit into the message itself, prompt first; not of those that its reader knows."""
    if not isinstance(message, Dispatch | TaskResult):
        return ()
    bodies = [body for body in bodies_of(message) if body.sha256 not in known]
    room = INLINE_BYTES - _FRAME_BYTES - _FILE_FRAME_BYTES * len(bodies)
    if sum(body.size_bytes for body in bodies) > room:
        room = INLINE_BYTES - len(encode(message, epoch=2**62)) - _INLINE_FRAME_BYTES * len(bodies)
    times = Counter(body.sha256 for body in bodies)
    sizes = {body.sha256: body.size_bytes for body in bodies}
    chosen = []
    for sha256, size in sizes.items():
        if size * times[sha256] <= room:
            room -= size * times[sha256]
            chosen.append(sha256)
    return tuple(chosen)


def attach(message: FromBroker, data: dict[bytes, bytes]) -> FromBroker:
    """The message with the given bytes inside it."""
    match message:
        case Dispatch():
            return replace(
                message,
                prompt=_filled(message.prompt, data),
                files=tuple(replace(file, body=_filled(file.body, data)) for file in message.files),
            )
        case TaskResult() if message.body:
            return replace(message, body=_filled(message.body, data))
        case _:
            return message


def _filled(body: Body, data: dict[bytes, bytes]) -> Body:
    return replace(body, inline=data[body.sha256]) if body.sha256 in data else replace(body, inline=None)


def _changed_spec(spec: TaskSpec, change: Change) -> TaskSpec:
    files = tuple(replace(file, body=change(file.body)) for file in spec.files)
    return replace(spec, prompt=change(spec.prompt), files=files)
