"""What clients and operators share: a connection kept up, a hello, requests repeated until answered, one epoch."""

from dataclasses import dataclass, field
from typing import Any

from koubou_client.transfer import Fetches, Offer
from koubou_common.errors import Code
from koubou_common.messages import (
    PROTO_MAX,
    PROTO_MIN,
    BlobChunk,
    BlobGet,
    BlobMissing,
    ClientHello,
    ClientWelcome,
    Error,
    Message,
)
from koubou_common.messages.values import Role
from sim.broker_node import BrokerNode, Connection
from sim.life import Life
from sim.world import World

REPEAT_S = 4.0
_LATER = (Code.BUSY, Code.STORE_FULL)


@dataclass(slots=True)
class Request:
    """A question that is not answered; `bodies` are what its message names and does not carry."""

    message: Any
    bodies: dict[bytes, bytes] = field(default_factory=dict)
    not_before_s: float = 0.0


class Talker:
    """Only what a subclass journals survives `crash`."""

    def __init__(self, world: World, broker: BrokerNode, name: str, public_key: str) -> None:
        self.world = world
        self.broker = broker
        self.name = name
        self.public_key = public_key
        self.lives = 0
        self._life = Life(world, name)
        self._connection: Connection | None = None
        self._is_welcome = False
        self._epoch = 0
        self._seen_restore = 0
        self._pending: dict[str, Request] = {}
        self._offer = Offer()
        self._fetches = Fetches()
        self._requests = 0

    def start(self) -> None:
        """Begin, or begin again after a crash."""
        self._life.is_alive = False
        self._life = Life(self.world, self.name)
        self.lives += 1
        self._connection = None
        self._is_welcome = False
        self._epoch = 0
        self._pending = {}
        self._offer, self._fetches = Offer(), Fetches()
        self.began()
        self._beat()

    def crash(self) -> None:
        """Only the journal is left."""
        self.world.note(f"{self.name} crashes")
        if self._connection is not None:
            self._connection.close()
        self.start()

    def take_key(self, public_key: str) -> None:
        """An invitation was followed: the new key is used from now on."""
        self.public_key = public_key
        if self._connection is not None:
            self._connection.close()
            self._lose(self._connection)

    # What subclasses do.

    def began(self) -> None:
        """A life begins: ask again for what the journal says."""

    def was_welcomed(self) -> None:
        """A session begins."""

    def beat(self) -> None:
        """Every few seconds in a session."""

    def took(self, message: Message, epoch: int) -> None:
        """A message that is not the talker's own business."""

    def refused(self, error: Error, asked: Request | None) -> None:
        """A request was refused for good."""
        raise AssertionError(f"{self.name}: refused: {error}; asked was {asked.message if asked else None!r:.300}")

    def restored(self) -> None:
        """The broker speaks from a database that was put in place of a newer one."""

    # What they use.

    def ask(self, message: Any, bodies: dict[bytes, bytes] | None = None, *, not_before_s: float = 0.0) -> None:
        """Repeat this until `answered`."""
        request = Request(message, bodies or {}, not_before_s)
        self._offer.add(request.bodies)
        self._pending[message.request_id] = request
        self._say(request)

    def answered(self, request_id: str) -> Request | None:
        """The request that this answers; None if it was answered before."""
        request = self._pending.pop(request_id, None)
        if request is not None:
            self._offer.drop(request.bodies)
        return request

    def request_id(self) -> str:
        """A new one."""
        self._requests += 1
        return f"{self.name}/{self.lives}/{self._requests}"

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits for an answer."""
        return not self._pending

    def say(self, message: Message) -> None:
        """Send, if there is a session."""
        if self._connection is not None and (self._is_welcome or isinstance(message, ClientHello)):
            self._connection.say(message)

    def _say(self, request: Request) -> None:
        if self.world.now_s >= request.not_before_s:
            self.say(request.message)

    def _beat(self) -> None:
        self._life.after(REPEAT_S, self._beat)
        if self._connection is None:
            self._connect()
        if not self._is_welcome:
            self.say(ClientHello(PROTO_MIN, PROTO_MAX, "simulated"))
            return
        for request in list(self._pending.values()):
            self._say(request)
        self._fetches.forget_asked()  # what was asked for may be lost
        self._fetch()
        self.beat()

    def _fetch(self) -> None:
        for asked in self._fetches.asks():
            self.say(asked)

    def _connect(self) -> None:
        life = self._life

        def reaches(message: Message, epoch: int, connection: Connection) -> None:
            if not life.is_alive:
                return
            if connection is not self._connection and not self.world.happens(self.world.faults.stale):
                return
            if epoch < self._epoch and not self.broker.bugs.any_epoch:
                return
            self._epoch = max(epoch, self._epoch)
            if isinstance(message, Error) and message.code is Code.NOT_AUTHORISED:
                self._on_unauthorised(connection, epoch)
            else:
                self._take(message, epoch)

        def broken(connection: Connection) -> None:
            if life.is_alive:
                self._lose(connection)

        self._connection = self.broker.connect(self.name, self.public_key, reaches, broken)

    def _lose(self, connection: Connection) -> None:
        if connection is self._connection:
            self._connection = None
            self._is_welcome = False

    def _take(self, message: Message, epoch: int) -> None:
        if self._seen_restore != self.broker.restored_epoch and epoch >= self.broker.restored_epoch:
            self._seen_restore = self.broker.restored_epoch
            self.restored()
        match message:
            case ClientWelcome():
                self._is_welcome = True
                self._fetches.forget_asked()
                self.was_welcomed()
                for request in list(self._pending.values()):
                    self._say(request)
            case Error(code=Code.HELLO_REQUIRED):
                self._is_welcome = False
            case Error():
                self._on_error(message)
            case BlobGet():
                self.say(self._offer.answer(message))
            case BlobChunk() | BlobMissing():
                self._fetches.received(message)
                self._fetch()
            case _:
                self.took(message, epoch)

    def _on_unauthorised(self, connection: Connection, epoch: int) -> None:
        """Its key was revoked - unless the message is about a key it had before, or the database was taken back."""
        if connection is not self._connection or epoch < self.broker.restored_epoch:
            return
        row = self.broker.disk.now.principals.get(self.public_key)
        is_good = row is not None and not row.revoked_ms and row.role in (Role.CLIENT, Role.OPERATOR)
        assert not is_good, f"{self.name}: its key is good, and it was told otherwise"
        self._is_welcome = False

    def _on_error(self, error: Error) -> None:
        asked = self._pending.get(error.request_id)
        if error.code in _LATER and error.request_id:
            if asked is not None:
                asked.not_before_s = self.world.now_s + error.retry_after_s
                self.put_off(asked, error)
        elif asked is not None or not error.request_id:
            self.answered(error.request_id)
            self.refused(error, asked)

    def put_off(self, asked: Request, error: Error) -> None:
        """A request is to be repeated later."""
