"""What the loop hands to the store, and what the store says of it: plain records, no I/O."""

from dataclasses import dataclass
from enum import Enum

from koubou_broker.effects import Erased
from koubou_broker.records import Record


class FailureKind(Enum):
    """What the broker does about a failed commit (design, section 4)."""

    FULL = "full"  # no room or read-only: go on from the database, refuse submits, come back
    BROKEN = "broken"  # a rule of the tables broke: our bug, one message is to blame
    BUSY = "busy"  # another process holds the lock: try again
    FATAL = "fatal"  # nothing can be trusted: stop


@dataclass(frozen=True, slots=True)
class NewBlob:
    """Verified bytes to be kept; `owner` may refer to them later without sending them again."""

    sha256: bytes
    data: bytes
    owner: str


@dataclass(frozen=True, slots=True)
class Entry:
    """What one message wants written: the unit that is quarantined when it cannot be."""

    records: tuple[Record, ...]
    blobs: tuple[NewBlob, ...] = ()


@dataclass(frozen=True, slots=True)
class Claim:
    """A question: which of these blobs does this principal own? They are kept for 24 hours more."""

    token: int
    principal: str
    hashes: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A message that could not be stored, kept for whoever mends the bug."""

    at_ms: int
    principal: str
    kind: str
    message: bytes
    error: str


@dataclass(frozen=True, slots=True)
class Batch:
    """What one turn of the loop wants written. Numbers rise; a failure ends the term it happened in."""

    number: int
    term: int
    entries: tuple[Entry, ...] = ()
    claims: tuple[Claim, ...] = ()
    quarantined: Quarantined | None = None


@dataclass(frozen=True, slots=True)
class Durable:
    """All batches of `term` up to `number` are on disk."""

    number: int
    term: int


@dataclass(frozen=True, slots=True)
class Claimed:
    """The answer to a Claim: what is owned, with its size."""

    token: int
    owned: tuple[tuple[bytes, int], ...]


@dataclass(frozen=True, slots=True)
class Failed:
    """Batch `number` was not written, nor will be any later one of its term."""

    number: int
    term: int
    kind: FailureKind
    error: str
    entry: int  # which entry of the batch is to blame; -1: none in particular


@dataclass(frozen=True, slots=True)
class Probed:
    """The answer to `probe`."""

    can_write: bool  # a small change became durable
    fits_task: bool  # as much as the largest task could be written


@dataclass(frozen=True, slots=True)
class Purged:
    """The answer to an Erase: durable as far as it says; `hashes` are of the bodies that are gone."""

    token: int
    erased: Erased
    hashes: tuple[bytes, ...]


Outcome = Durable | Claimed | Failed | Probed | Purged
