"""The reader thread: look-ups and bodies by a connection that cannot write, in the order they were asked."""

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, select

from koubou_broker import schema
from koubou_broker.batches import FailureKind
from koubou_broker.database import kind_of, said
from koubou_broker.effects import Found, Peer, Query
from koubou_broker.lookups import find
from koubou_broker.transaction import in_lists
from koubou_common.messages.values import AttemptState, Role

log = logging.getLogger("koubou_broker")


@dataclass(frozen=True, slots=True)
class Find:
    """Answer a query of the core that was made in this term."""

    term: int
    token: int
    query: Query


@dataclass(frozen=True, slots=True)
class ReadBodies:
    """Read whole blobs."""

    token: int
    hashes: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class ReadChunk:
    """Read one piece of a blob for a peer; `is_granted`: it was named to the peer in this run already."""

    session: int
    peer: Peer
    sha256: bytes
    index: int
    is_granted: bool


Request = Find | ReadBodies | ReadChunk


@dataclass(frozen=True, slots=True)
class FoundRows:
    """The answer to a Find."""

    term: int
    token: int
    found: Found
    took_s: float = 0.0  # of the processor


@dataclass(frozen=True, slots=True)
class Bodies:
    """The answer to a ReadBodies: what is there."""

    token: int
    bodies: tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class ChunkRead:
    """The answer to a ReadChunk; None: there is no such piece, or not for this peer."""

    session: int
    peer: Peer
    sha256: bytes
    index: int
    data: bytes | None


@dataclass(frozen=True, slots=True)
class ReadFailed:
    """`request` could not be answered, a bug of ours; None: nothing can be any more, the thread has ended."""

    request: Request | None
    error: str


Answer = FoundRows | Bodies | ChunkRead | ReadFailed


class Reader:
    """Give it requests with `ask`; answers come back by `take`, and `wake` says when."""

    def __init__(self, engine: Engine, wake: Callable[[], None]) -> None:
        self._engine = engine
        self._wake = wake
        self._requests: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self._connection: Connection | None = None
        self._thread = threading.Thread(target=self._run, name="koubou-reader", daemon=True)

    def start(self) -> None:
        """Open the database and start the thread."""
        self._connection = self._engine.connect()
        self._thread.start()

    def ask(self, request: Request) -> None:
        """Answer this after all that was asked before."""
        self._requests.put(request)

    def take(self) -> list[Answer]:
        """The answers since the last time, in order."""
        answers = []
        while True:
            try:
                answers.append(self._answers.get_nowait())
            except queue.Empty:
                return answers

    def is_alive(self) -> bool:
        """Whether the thread still runs."""
        return self._thread.is_alive()

    def stop(self, timeout_s: float) -> bool:
        """End; False if the thread did not within `timeout_s`."""
        self._requests.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            assert self._connection is not None, "started without a connection"
            with self._connection as connection:
                while (request := self._requests.get()) is not None:
                    self._answer(connection, request)
        except Exception as error:  # the loop must hear of it: a silent reader would strand every look-up
            log.exception("the reader thread failed")
            self._tell(ReadFailed(None, said(error)))

    def _answer(self, connection: Connection, request: Request) -> None:
        try:
            with connection.begin():
                answer = _answer(connection, request)
        except Exception as error:
            kind = kind_of(error)
            if kind is FailureKind.FATAL:
                raise
            # A bug of ours in one query: who asked is told so, and everybody else goes on.
            log.exception("a look-up failed")
            answer = ReadFailed(request, f"{type(request).__name__}: {said(error)}")
        self._tell(answer)

    def _tell(self, answer: Answer) -> None:
        self._answers.put(answer)
        self._wake()


def _answer(connection: Connection, request: Request) -> Answer:
    match request:
        case Find():
            began_s = time.thread_time()
            found = find(connection, request.query)
            return FoundRows(request.term, request.token, found, time.thread_time() - began_s)
        case ReadBodies():
            return Bodies(request.token, read_bodies(connection, request.hashes))
        case ReadChunk():
            data = None
            if request.is_granted or may_read(connection, request.peer, request.sha256):
                chunk = schema.blob_chunk.c
                data = connection.scalar(
                    select(chunk.bytes).where(chunk.sha256 == request.sha256, chunk.n == request.index)
                )
            return ChunkRead(request.session, request.peer, request.sha256, request.index, data)


def read_bodies(connection: Connection, hashes: tuple[bytes, ...]) -> tuple[tuple[bytes, bytes], ...]:
    """Whole blobs by hash; those that are gone are left out."""
    chunk = schema.blob_chunk.c
    found: dict[bytes, list[bytes]] = {}
    for some in in_lists(hashes):
        query = select(chunk.sha256, chunk.bytes).where(chunk.sha256.in_(some)).order_by(chunk.sha256, chunk.n)
        for sha256, piece in connection.execute(query):
            found.setdefault(sha256, []).append(piece)
    return tuple((sha256, b"".join(parts)) for sha256, parts in found.items())


def may_read(connection: Connection, peer: Peer, sha256: bytes) -> bool:
    """Whether a peer may have a blob: a worker what its running attempts name, a client what its tasks hold."""
    ref, tasks, attempts = schema.blob_ref.c, schema.tasks.c, schema.attempts.c
    held = select(ref.task_id).where(ref.sha256 == sha256)
    match peer.role:
        case Role.OPERATOR:
            pass
        case Role.CLIENT:
            held = held.join(schema.tasks, tasks.task_id == ref.task_id).where(tasks.principal == peer.name)
        case Role.WORKER:
            held = held.join(schema.attempts, attempts.task_id == ref.task_id).where(
                attempts.worker_id == peer.name, attempts.state == AttemptState.RUNNING.value
            )
        case _:
            return False
    return connection.scalar(held.limit(1)) is not None
