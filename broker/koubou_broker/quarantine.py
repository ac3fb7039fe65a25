"""Messages that could not be stored: recognised when they come again, so that a bug is no crash loop. Pure."""

from collections import OrderedDict

from koubou_broker.effects import Peer
from koubou_broker.turns import Source
from koubou_common.codec import type_name
from koubou_common.errors import Code
from koubou_common.messages import Error, Failure, FromBroker, Result, ResultStored, Submit, ToBroker
from koubou_common.messages.values import Disposition

REMEMBERED = 1_000  # a bug that hits more messages than this is not held back by remembering


def source_of(peer: Peer, message: ToBroker) -> Source:
    """How a message is known again: peers repeat what is not answered."""
    match message:
        case Submit():
            key: tuple[str, ...] = ("submission", peer.name, message.idempotency_key)
        case Result() | Failure():
            key = ("outcome", message.attempt_uid)
        case _:
            # Hellos and heartbeats have no request_id, differ each time, and would break again each time.
            key = (type(message).__name__, peer.public_key, getattr(message, "request_id", ""))
    return Source(peer.name, key, message)


class Quarantine:
    """Keys of messages that are not to be tried again in this run."""

    def __init__(self) -> None:
        self._keys: OrderedDict[tuple[str, ...], None] = OrderedDict()

    def add(self, source: Source) -> None:
        """This message broke a transaction."""
        self._keys[source.key] = None
        while len(self._keys) > REMEMBERED:
            self._keys.popitem(last=False)

    def answer(self, peer: Peer, message: ToBroker) -> FromBroker | None:
        """What to say instead of trying again; None: the message is as good as any other."""
        if not self._keys or source_of(peer, message).key not in self._keys:
            return None
        if isinstance(message, Result | Failure):
            # Its record is in the table of quarantined messages: the agent may forget it.
            return ResultStored(message.attempt_uid, Disposition.PARKED)
        return Error(
            Code.INTERNAL,
            f"the broker cannot store this {type_name(message)}: a fault of Koubou's, not of yours",
            "it was kept in the broker's database for a report; other requests are not affected",
            getattr(message, "request_id", ""),
        )
