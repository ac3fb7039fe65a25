"""On the way out: bodies are put into messages, and what is named to a peer may be fetched by it."""

from dataclasses import dataclass

from koubou_broker.blobs import Grants
from koubou_broker.bodies import BodyCache, KnownBodies, attach, bodies_of, to_be_inline
from koubou_broker.reader import Bodies, ReadBodies
from koubou_broker.sessions import Outgoing, Session, Sessions
from koubou_common.errors import Code
from koubou_common.messages import Dispatch, Error, FromBroker, ParkedWork, TaskResult, Welcome

_PROTO_KEEPS = 2  # agents from this version on keep what came inside a message, as what they pulled


@dataclass(slots=True)
class _Reading:
    """A message that waits for bodies from the database."""

    session: int
    outgoing: Outgoing
    message: Dispatch | TaskResult
    data: dict[bytes, bytes]  # what was at hand


class Outbound:
    """Queues messages for sessions, with their small bodies inside."""

    def __init__(self, sessions: Sessions, cache: BodyCache, grants: Grants) -> None:
        self._sessions = sessions
        self._cache = cache
        self._grants = grants
        self._reading: dict[int, _Reading] = {}
        self._last_token = 0

    def send(self, session: Session, message: FromBroker) -> ReadBodies | None:
        """Queue a message; a request for the reader if bodies are missing for it."""
        if isinstance(message, ParkedWork):
            self._grants.grant(session.public_key, tuple(body.sha256 for body in bodies_of(message)))
        if isinstance(message, Welcome) and message.session and message.proto >= _PROTO_KEEPS:
            session.known = KnownBodies() if session.known is None else session.known
        if not isinstance(message, Dispatch | TaskResult):
            self._sessions.send(session, message)
            return None
        self._grants.grant(session.public_key, tuple(body.sha256 for body in bodies_of(message)))
        hashes = to_be_inline(message, () if session.known is None else session.known)
        if session.known is not None:
            session.known.note(bodies_of(message), hashes)
        data = {sha256: held for sha256 in hashes if (held := self._cache.get(sha256)) is not None}
        missing = tuple(sha256 for sha256 in hashes if sha256 not in data)
        if not missing:
            self._sessions.send(session, attach(message, data))
            return None
        self._last_token += 1
        outgoing = self._sessions.send(session, message, is_complete=False)
        self._reading[self._last_token] = _Reading(session.number, outgoing, message, data)
        return ReadBodies(self._last_token, missing)

    def read(self, answer: Bodies) -> None:
        """Bodies came from the database: the message that waited for them can go."""
        reading = self._reading.pop(answer.token, None)
        session = self._sessions.get(reading.session) if reading else None
        if reading is None or session is None:
            return
        for sha256, data in answer.bodies:
            self._cache.put(sha256, data)
            reading.data[sha256] = data
        self._sessions.complete(session, reading.outgoing, _with(reading.message, reading.data))

    def read_failed(self, token: int) -> None:
        """Bodies could not be read, a bug of ours: nothing may wait for them for ever."""
        reading = self._reading.pop(token, None)
        session = self._sessions.get(reading.session) if reading else None
        if reading is None or session is None:
            return
        message: FromBroker = reading.message
        if isinstance(message, TaskResult):
            text = f"the output of task {message.task.task_id} could not be read: a fault of Koubou's"
            message = Error(Code.INTERNAL, text, request_id=message.request_id)
        self._sessions.complete(session, reading.outgoing, message)

    def reset(self) -> None:
        """Forget what waits: its sessions have been renewed."""
        self._reading.clear()


def _with(message: FromBroker, data: dict[bytes, bytes]) -> FromBroker:
    if isinstance(message, TaskResult) and message.body and message.body.sha256 not in data:
        return Error(
            Code.NOT_FOUND,
            f"the output of task {message.task.task_id} is no longer kept",
            "outputs go some weeks after the task ended (retention.bodies_days), or at once by `koubou-ctl purge`",
            message.request_id,
        )
    # A Dispatch goes out as it is: its agent asks for what is missing, and reports it by name.
    return attach(message, data)
