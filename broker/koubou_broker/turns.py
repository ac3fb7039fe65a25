"""Law 1 in one place: what a turn of the loop wants done waits until all it rests on is durable. Pure."""

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from koubou_broker.batches import Batch, Claim, Entry, NewBlob, Quarantined
from koubou_broker.effects import Effect, Save
from koubou_broker.records import Event, Record
from koubou_broker.uploads import keeps_blobs
from koubou_common.messages import ToBroker

UNDURABLE_ENTRIES = 4_096  # messages whose changes wait for the disk; more: stop reading
UNDURABLE_BYTES = 64 * 1024 * 1024  # bodies that wait for the disk
_ROW_BYTES = 16 * 1024  # of a body: so much costs the store about as much as a row does


@dataclass(frozen=True, slots=True)
class Source:
    """The message behind an entry: who is to be quarantined if it cannot be stored."""

    principal: str
    key: tuple[str, ...]  # what its repetition is known by
    message: ToBroker  # its bodies taken out


@dataclass(slots=True)
class Turn:
    """One turn: what is to be written together, then what is to be let go in this order."""

    entries: list[Entry] = field(default_factory=list)
    sources: list[Source | None] = field(default_factory=list)  # one an entry
    claims: list[Claim] = field(default_factory=list)
    releases: list[Effect] = field(default_factory=list)
    quarantined: Quarantined | None = None
    bytes: int = 0  # of the bodies in `entries`
    owed: Counter[str] = field(default_factory=Counter)  # rows to be written, by the principal they are for

    def add(
        self,
        effects: Iterable[Effect],
        source: Source | None = None,
        blobs: tuple[NewBlob, ...] = (),
        *,
        owner: str = "",
    ) -> None:
        """Take over what one input led to; `owner` is whose doing it was, where no source says so."""
        records: list[Record] = []
        others: list[Effect] = []
        for effect in effects:
            if isinstance(effect, Save):
                records += effect.records
            else:
                others.append(effect)
        self.releases += others
        if records or (blobs and keeps_blobs(others)):
            self._append(Entry(tuple(records), blobs), source, source.principal if source else owner)

    def keep(self, blob: NewBlob) -> None:
        """A pulled body is to be stored."""
        self._append(Entry((), (blob,)), None, blob.owner)

    def _append(self, entry: Entry, source: Source | None, owner: str) -> None:
        self.entries.append(entry)
        self.sources.append(source)
        size_bytes = sum(len(new.data) for new in entry.blobs)
        self.bytes += size_bytes
        if owner:
            self.owed[owner] += len(entry.records) + len(entry.blobs) + size_bytes // _ROW_BYTES

    @property
    def has_writes(self) -> bool:
        """Whether the store is needed."""
        return bool(self.entries or self.claims or self.quarantined)


@dataclass(slots=True)
class _Waiting:
    """A batch that is not durable yet; `releases` wait for it."""

    number: int
    sources: list[Source | None]
    releases: list[Effect]
    entries: int
    bytes: int
    owed: Counter[str]
    event_seq: int


class Ledger:
    """Numbers turns, and lets their effects go in order once they are durable."""

    def __init__(self) -> None:
        self._waiting: deque[_Waiting] = deque()
        self._number = 0
        self._entries = 0
        self._bytes = 0
        self._owed: Counter[str] = Counter()
        self.term = 0
        self.event_seq = 0  # the highest durable event: what the witness may know

    def seal(self, turn: Turn) -> tuple[Batch | None, list[Effect]]:
        """The batch to be written, if any, and what may go at once."""
        if not turn.has_writes:
            if not self._waiting:
                return None, turn.releases
            # Even what was only read, or found in memory, may rest on what is not durable yet.
            self._waiting[-1].releases += turn.releases
            return None, []
        self._number += 1
        waiting = _Waiting(
            self._number,
            turn.sources,
            turn.releases,
            len(turn.entries),
            turn.bytes,
            turn.owed,
            _last_event(turn.entries),
        )
        self._waiting.append(waiting)
        self._entries += waiting.entries
        self._bytes += waiting.bytes
        self._owed += waiting.owed
        return (
            Batch(self._number, self.term, tuple(turn.entries), tuple(turn.claims), turn.quarantined),
            [],
        )

    def durable(self, number: int) -> list[Effect]:
        """All batches up to `number` are on disk: what may go now."""
        released: list[Effect] = []
        while self._waiting and self._waiting[0].number <= number:
            waiting = self._waiting.popleft()
            self._entries -= waiting.entries
            self._bytes -= waiting.bytes
            self._owed -= waiting.owed
            self.event_seq = max(self.event_seq, waiting.event_seq)
            released += waiting.releases
        return released

    def source_of(self, number: int, entry: int) -> Source | None:
        """The message behind an entry of a batch that is not durable."""
        for waiting in self._waiting:
            if waiting.number == number and 0 <= entry < len(waiting.sources):
                return waiting.sources[entry]
        return None

    def fail(self) -> None:
        """Nothing that waits will ever be durable: a new term begins, unreleased effects are dropped."""
        self._waiting.clear()
        self._entries = self._bytes = 0
        self._owed.clear()
        self.term += 1

    def owed_to(self, principal: str) -> int:
        """How many rows of a principal wait for the disk."""
        return self._owed[principal]

    @property
    def is_settled(self) -> bool:
        """Whether nothing waits for the disk."""
        return not self._waiting

    def is_full_with(self, turn: Turn) -> bool:
        """Whether so much waits, this turn included, that nothing more should be taken in."""
        return self._entries + len(turn.entries) > UNDURABLE_ENTRIES or self._bytes + turn.bytes > UNDURABLE_BYTES

    @property
    def last_number(self) -> int:
        """The number of the last batch made."""
        return self._number


def _last_event(entries: Iterable[Entry]) -> int:
    return max((record.seq for entry in entries for record in entry.records if isinstance(record, Event)), default=0)
