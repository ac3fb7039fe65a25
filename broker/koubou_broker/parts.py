"""What the conductor conducts, as it sees it: the broker's own threads and lists, or those of a simulation."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from koubou_broker.access import Grant
from koubou_broker.backup import Answer as Told
from koubou_broker.batches import Batch, Outcome
from koubou_broker.core_settings import CoreSettings
from koubou_broker.effects import AskBackup, Erase
from koubou_broker.reader import Answer, Request
from koubou_broker.sessions import Transmit
from koubou_common.messages.values import Role


class StopBroker(Exception):  # noqa: N818 - an order, carried out by whoever runs the loop
    """Nothing can be trusted any more: end the process, the service manager starts a new one."""


class AllowList(Protocol):
    """Who may connect, and as what: `access.AccessControl`, or the simulation's."""

    def grant_of(self, public_key: str) -> Grant | None:
        """What a key is good for now."""

    def allow(self, public_key: str, principal_name: str, role: Role) -> None:
        """Let a key in, or change what it is good for."""

    def revoke(self, public_key: str) -> None:
        """Let a key in no more."""


class Writer(Protocol):
    """What writes: `store.Store`, or the simulation's."""

    def put(self, batch: Batch) -> None:
        """Hand a batch over."""

    def take(self) -> list[Outcome]:
        """What has come back since the last time, in order."""


class Library(Protocol):
    """What reads: `reader.Reader`, or the simulation's."""

    def ask(self, request: Request) -> None:
        """Answer this after all that was asked before."""

    def take(self) -> list[Answer]:
        """The answers since the last time, in order."""


class Keeper(Protocol):
    """What copies the database and removes texts from it: `keeper.Keeper`."""

    def ask(self, order: AskBackup | Erase) -> list[Told]:
        """Carry this out; what can be said at once."""

    def take(self) -> list[Told]:
        """What is to be said since the last time, in order."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What the conductor conducts."""

    access: AllowList
    store: Writer
    reader: Library
    settings: CoreSettings
    epoch: int
    transmit: Transmit
    keeper: Keeper | None = None  # None: what is stored is no file (the simulation's)
    cpu_s: Callable[[], float] = float  # time that the loop has used; 0: nobody counts it
