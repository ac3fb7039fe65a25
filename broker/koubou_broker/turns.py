"""Law 1 in one place: what a turn of the loop wants done waits until all it rests on is durable. Pure."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from koubou_broker.batches import Batch, Claim, Entry, NewBlob, Quarantined
from koubou_broker.effects import Effect, Lookup, Save, Send
from koubou_broker.records import Event, Record
from koubou_common.messages import PartStaged, ToBroker

UNDURABLE_ENTRIES = 4_096  # messages whose changes wait for the disk; more: stop reading
UNDURABLE_BYTES = 64 * 1024 * 1024  # bodies that wait for the disk


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

    def add(self, effects: Iterable[Effect], source: Source | None = None, blobs: tuple[NewBlob, ...] = ()) -> None:
        """Take over what one input led to."""
        records: list[Record] = []
        keeps_blobs = False
        for effect in effects:
            if isinstance(effect, Save):
                records += effect.records
            else:
                self.releases.append(effect)
                # A refused message's bodies are not worth a byte; a question to the store, or a part of a
                # submission, may yet lead to tasks that need them.
                keeps_blobs = keeps_blobs or isinstance(effect, Lookup) or _is_staged(effect)
        if records or (blobs and keeps_blobs):
            self._append(Entry(tuple(records), blobs), source)

    def keep(self, blob: NewBlob) -> None:
        """A pulled body is to be stored."""
        self._append(Entry((), (blob,)), None)

    def _append(self, entry: Entry, source: Source | None) -> None:
        self.entries.append(entry)
        self.sources.append(source)
        self.bytes += sum(len(new.data) for new in entry.blobs)

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
    event_seq: int


class Ledger:
    """Numbers turns, and lets their effects go in order once they are durable."""

    def __init__(self) -> None:
        self._waiting: deque[_Waiting] = deque()
        self._number = 0
        self._entries = 0
        self._bytes = 0
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
            self._number, turn.sources, turn.releases, len(turn.entries), turn.bytes, _last_event(turn.entries)
        )
        self._waiting.append(waiting)
        self._entries += waiting.entries
        self._bytes += waiting.bytes
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
        self.term += 1

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


def _is_staged(effect: Effect) -> bool:
    return isinstance(effect, Send) and isinstance(effect.message, PartStaged)


def _last_event(entries: Iterable[Entry]) -> int:
    return max((record.seq for entry in entries for record in entry.records if isinstance(record, Event)), default=0)
