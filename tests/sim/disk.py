"""The broker's disk: a database whose last commits are not forced to the platter yet, and its witness file.

A kill -9 leaves what was committed (it is in the kernel's cache); a power cut leaves what was synced, and of
the commits after that perhaps the first few.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from koubou_broker.batches import Entry, Quarantined
from koubou_broker.lock import RESTORED_MARK, Term, Witness, _above_all
from sim.bugs import Bugs
from sim.world import World
from support.shelf import Shelf


class LostEpoch(Exception):  # noqa: N818 - the modelled LostEpochError of the store
    """Another broker has begun its term."""


@dataclass(frozen=True, slots=True)
class Transaction:
    """What one commit writes; `epoch`: of the term that begins with it, 0 of none."""

    entries: tuple[Entry, ...] = ()
    quarantined: tuple[Quarantined, ...] = ()
    meta: tuple[tuple[str, int], ...] = ()


class Disk:
    """`now` is what a reader sees."""

    def __init__(self, world: World, bugs: Bugs, now: Shelf) -> None:
        self._world = world
        self._bugs = bugs
        self.now = now
        self._platter = now.copy()
        self._synced: list[Transaction] = []  # on the platter; put there when somebody looks
        self._tail: list[Transaction] = []  # in the kernel's cache only
        self._witness = Witness()
        self._synced_witness = Witness()
        self.is_full = False
        self.busy_until_s = 0.0
        self.commits = 0

    def commit(self, transaction: Transaction, epoch: int) -> None:
        """Write one transaction; LostEpoch if it is no longer this writer's term."""
        if self.now.meta.get("epoch", 0) != epoch and not self._bugs.unfenced:
            raise LostEpoch
        self._apply(transaction)

    def sync(self) -> None:
        """Force all commits to the platter."""
        self._synced += self._tail
        self._tail = []

    def power_cut(self) -> None:
        """All that was not synced is gone; or its first commits are there, as the kernel wrote them out by itself."""
        draws = self._world.draws
        kept = draws.choice((0, 0, draws.randint(0, len(self._tail))))
        lost = self._tail[kept:]
        self._tail = self._tail[:kept]
        self.sync()
        if lost:
            self._world.note(f"the power cut takes {len(lost)} commits along")
            self.now = self.back_up()
        if self._witness != self._synced_witness:
            # A file that was replaced and not synced is the new one, the old one, or empty.
            self._witness = draws.choice((self._witness, self._synced_witness, Witness()))
        self._synced_witness = self._witness

    def begin_term(self) -> Term:
        """As `lock.begin_term`: raise the epoch, durably, and notice a restored database."""
        witness, meta, numbers = self._witness, dict(self.now.meta), self.now.numbers()
        stored = meta.get("epoch", 0)
        was_restored = (
            bool(meta.get(RESTORED_MARK)) or stored < witness.epoch or numbers["next_event_seq"] <= witness.event_seq
        )
        meta["epoch"] = epoch = max(stored + 1, witness.epoch + 1, self._world.wall_ms)
        if was_restored and not self._bugs.no_jump:
            first = numbers["next_task_id"]
            numbers = _above_all(numbers, witness)
            meta |= {**numbers, "restored_ms": self._world.wall_ms, "lost_first_id": first}
            meta |= {"lost_end_id": numbers["next_task_id"], RESTORED_MARK: 0}
        self._apply(Transaction(meta=tuple(meta.items())))
        self.sync()
        self._witness = self._synced_witness = Witness(epoch, 0 if was_restored else witness.event_seq, **numbers)
        return Term(epoch, was_restored)

    def write_witness(self, epoch: int, event_seq: int) -> None:
        """Note how far the database has come; not forced to the disk."""
        self._witness = replace(self._witness, epoch=epoch, event_seq=event_seq)

    def back_up(self) -> Shelf:
        """A copy of all that is durable."""
        for transaction in self._synced:
            _write(self._platter, transaction)
        self._synced = []
        return self._platter.copy()

    def on_another_host(self, backup: Shelf) -> "Disk":
        """The backup, and the witness, on a new disk; whoever writes to this one is not noticed any more."""
        other = Disk(self._world, self._bugs, backup)
        other._witness = other._synced_witness = self._witness
        return other

    def put_in_place(self, backup: Shelf) -> None:
        """Restore a backup; the broker is stopped. The witness beside it stays."""
        if self._world.draws.random() < 0.5:
            backup.meta[RESTORED_MARK] = 1  # `koubou-broker restore` says so; who copies a file does not
        self.now = backup
        self._platter = backup.copy()
        self._synced, self._tail = [], []
        self._synced_witness = self._witness  # whoever restores has time

    def _apply(self, transaction: Transaction) -> None:
        self.commits += 1
        _write(self.now, transaction)
        self._tail.append(transaction)


def _write(shelf: Shelf, transaction: Transaction) -> None:
    for entry in transaction.entries:
        for new in entry.blobs:
            shelf.put_blob(new)
    for entry in transaction.entries:
        for record in entry.records:
            shelf.put(record)
    shelf.quarantined += transaction.quarantined
    shelf.meta.update(transaction.meta)


def transaction_of(entries: Iterable[Entry], quarantined: Quarantined | None = None) -> Transaction:
    """What a batch writes."""
    return Transaction(tuple(entries), (quarantined,) if quarantined else ())
