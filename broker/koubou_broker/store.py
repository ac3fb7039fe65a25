"""The store thread: the only writer; whatever waits becomes one transaction, and its end is told in order."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection, Engine, select, update

from koubou_broker import schema, statements
from koubou_broker.batches import (
    Batch,
    Claim,
    Claimed,
    Durable,
    Entry,
    Failed,
    FailureKind,
    Outcome,
    Probed,
    Quarantined,
)
from koubou_broker.checkpoints import Checkpoints
from koubou_broker.database import LostEpochError, folder_of, kind_of, said
from koubou_broker.effects import Erase
from koubou_broker.purge import Purges
from koubou_broker.retention import Sweep
from koubou_broker.transaction import Transaction, in_lists
from koubou_common.messages.limits import TASK_BYTES

GROUP_BATCHES = 256  # batches in one transaction: bounds what one failure takes back
BUSY_TRIES = 12  # of 5 s each (busy_timeout): a minute of somebody else's lock, then we stop
_IDLE_S = 0.5  # how long the thread sleeps at most before it looks whether a sweep is due
_YIELD_S = 0.001  # between two steps of a purge: whoever wants to write goes first

log = logging.getLogger("koubou_broker")


@dataclass(slots=True)
class _Group:
    """Batches that share a transaction, and what to tell when it is over."""

    batches: list[Batch]
    answers: list[Claimed] = field(default_factory=list)


class Store:
    """Give it batches with `put`; what became of them comes back by `take`, and `wake` says when."""

    def __init__(self, engine: Engine, epoch: int, wake: Callable[[], None], sweep: Sweep) -> None:
        self._engine = engine
        self._epoch = epoch
        self._wake = wake
        self._sweep = sweep
        self._folder = folder_of(engine)
        self._checkpoints = Checkpoints()
        self._purges = Purges()
        self._incoming: queue.SimpleQueue[Batch | Erase | None] = queue.SimpleQueue()
        self._outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._failed_term = -1
        self._wants_probe = threading.Event()
        self._thread = threading.Thread(target=self._run, name="koubou-store", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def put(self, batch: Batch) -> None:
        """Hand a batch over; batches of a term that has failed are dropped."""
        self._incoming.put(batch)

    def erase(self, asked: Erase) -> None:
        """Remove bodies for good; all that was handed over before is written first."""
        self._incoming.put(asked)

    def probe(self) -> None:
        """Ask whether anything can be written, and whether a task would fit."""
        self._wants_probe.set()
        self._incoming.put(_NOTHING)

    def take(self) -> list[Outcome]:
        """What has come back since the last time, in order."""
        outcomes = []
        while True:
            try:
                outcomes.append(self._outcomes.get_nowait())
            except queue.Empty:
                return outcomes

    def is_alive(self) -> bool:
        """Whether the thread still runs; it only ends by `stop` or a fatal failure."""
        return self._thread.is_alive()

    def stop(self, timeout_s: float) -> bool:
        """Write what was handed over, then end; False if that took longer than `timeout_s`."""
        self._incoming.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            with self._engine.connect() as connection:
                while self._turn(connection):
                    pass
        except Exception as error:  # nobody would hear of it: the loop must know that nothing is written now
            log.exception("the store thread failed")
            self._tell(Failed(0, self._failed_term, FailureKind.FATAL, said(error), -1))

    def _turn(self, connection: Connection) -> bool:
        """Write one group; False when the thread is to end."""
        batches, is_last = self._gather()
        batches = [batch for batch in batches if batch.term > self._failed_term]
        goes_on = self._commit(connection, batches) if batches else True
        if self._wants_probe.is_set() and goes_on:
            self._wants_probe.clear()
            self._tell(self._probed(connection))
        if not is_last and goes_on:
            if self._purges.wait_s is not None:
                purged = self._purges.step(connection)
                if purged is not None:
                    self._tell(purged)
            self._sweep.step(connection)
            self._checkpoints.step(connection, _body_bytes(batches))
        return goes_on and not is_last

    def _gather(self) -> tuple[list[Batch], bool]:
        """What waits, at least one batch unless the time for a sweep has come; and whether it is the end."""
        batches: list[Batch] = []
        try:
            wait_s = self._purges.wait_s
            given = self._incoming.get(timeout=_IDLE_S if wait_s is None else wait_s + _YIELD_S)
            while given is not None:
                if isinstance(given, Erase):
                    self._purges.put(given)
                    return batches, False
                batches.append(given)
                if len(batches) >= GROUP_BATCHES:
                    return batches, False
                given = self._incoming.get_nowait()
        except queue.Empty:
            return batches, False
        return batches, True

    def _commit(self, connection: Connection, batches: list[Batch]) -> bool:
        """Write batches and tell; False after a failure that ends the thread."""
        group = _Group(batches)
        try:
            self._write_patiently(connection, group)
        except Exception as error:  # every kind is handled: an exception here must never be silence
            return self._after_failure(connection, group, error)
        self._tell_durable(group)
        return True

    def _write_patiently(self, connection: Connection, group: _Group) -> None:
        for tries_left in reversed(range(BUSY_TRIES)):
            group.answers.clear()
            try:
                self._write(connection, group)
            except Exception as error:
                if kind_of(error) is not FailureKind.BUSY or not tries_left:
                    raise
                log.warning("another process holds the database's lock: trying again")
            else:
                return

    def _write(self, connection: Connection, group: _Group) -> None:
        transaction = Transaction()
        for batch in group.batches:
            transaction.add(batch.entries)
        with connection.begin():
            self._check_epoch(connection)
            transaction.write(connection)
            for batch in group.batches:
                if batch.quarantined:
                    connection.execute(statements.ADD_QUARANTINED, _quarantined_row(batch.quarantined))
                group.answers.extend(_answer(connection, claim) for claim in batch.claims)

    def _probed(self, connection: Connection) -> Probed:
        # First of all: pages that were moved out of the log are room in it, also on a disk that has none left.
        self._checkpoints.run(connection)
        try:
            with connection.begin():
                self._check_epoch(connection)
                # Another value each time: SQLite does not write a page that stays the same.
                connection.execute(statements.PUT_META, {"key": _PROBE, "value": time.time_ns()})
        except Exception as error:
            if kind_of(error, self._folder) not in (FailureKind.FULL, FailureKind.BUSY):
                raise
            log.debug("still nothing can be written: %s", said(error))
            return Probed(can_write=False, fits_task=False)
        return Probed(can_write=True, fits_task=self._fits_task(connection))

    def _fits_task(self, connection: Connection) -> bool:
        try:
            with connection.begin() as transaction:
                connection.exec_driver_sql(_TASK)
                transaction.rollback()
        except Exception as error:
            if kind_of(error, self._folder) not in (FailureKind.FULL, FailureKind.BUSY):
                raise
            return False
        return True

    def _check_epoch(self, connection: Connection) -> None:
        """Fence every commit: a broker that was replaced must not write another row."""
        stored = connection.scalar(_EPOCH)
        if stored != self._epoch:
            raise LostEpochError(f"the database is in epoch {stored}, this broker in {self._epoch}")

    def _after_failure(self, connection: Connection, group: _Group, error: Exception) -> bool:
        kind = kind_of(error, self._folder)
        log.error("a transaction of %d batches failed (%s): %s", len(group.batches), kind.value, said(error))
        if kind is FailureKind.BROKEN:
            return self._isolate(connection, group)
        first = group.batches[0]
        self._fail(first, FailureKind.FATAL if kind is FailureKind.BUSY else kind, said(error), -1)
        return kind is FailureKind.FULL

    def _isolate(self, connection: Connection, group: _Group) -> bool:
        """One entry a transaction: what comes before the culprit is kept, and the culprit gets a name."""
        for batch in group.batches:
            for number, entry in enumerate(batch.entries or (Entry(()),)):
                is_last = number + 1 >= len(batch.entries)
                part = _Group([_part(batch, entry, with_rest=is_last)])
                try:
                    self._write_patiently(connection, part)
                except Exception as error:  # as in _commit
                    kind = kind_of(error, self._folder)
                    self._fail(batch, kind, said(error), number if kind is FailureKind.BROKEN else -1)
                    return kind in (FailureKind.BROKEN, FailureKind.FULL)
                self._purges.note(part.batches, part.answers)
                for answer in part.answers:
                    self._outcomes.put(answer)
            self._tell(Durable(batch.number, batch.term))
        return True

    def _fail(self, batch: Batch, kind: FailureKind, error: str, entry: int) -> None:
        self._failed_term = batch.term
        self._tell(Failed(batch.number, batch.term, kind, error, entry))

    def _tell_durable(self, group: _Group) -> None:
        self._purges.note(group.batches, group.answers)
        for answer in group.answers:
            self._outcomes.put(answer)
        last = group.batches[-1]
        self._tell(Durable(last.number, last.term))

    def _tell(self, outcome: Outcome) -> None:
        self._outcomes.put(outcome)
        self._wake()


_EPOCH = select(schema.meta.c.value).where(schema.meta.c.key == "epoch")
_PROBE = "probed_ns"  # committed: what is rolled back may never reach the disk
# As much as a task may bring, in a table of its own, which is gone with the transaction.
_TASK = f"CREATE TABLE room_probe AS SELECT zeroblob({TASK_BYTES}) AS bytes"
_NOTHING = Batch(0, -1)  # of a term that never was: wakes the thread, and is dropped


def _body_bytes(batches: Sequence[Batch]) -> int:
    return sum(len(new.data) for batch in batches for entry in batch.entries for new in entry.blobs)


def _part(batch: Batch, entry: Entry, *, with_rest: bool) -> Batch:
    """One entry of a batch as a batch; its claims and quarantine go with the last."""
    return Batch(
        batch.number,
        batch.term,
        (entry,),
        batch.claims if with_rest else (),
        batch.quarantined if with_rest else None,
    )


def _answer(connection: Connection, claim: Claim) -> Claimed:
    owner, blob = schema.blob_owner.c, schema.blob.c
    owned: list[tuple[bytes, int]] = []
    for some in in_lists(claim.hashes):
        query = (
            select(blob.sha256, blob.size_bytes)
            .join(schema.blob_owner, owner.sha256 == blob.sha256)
            .where(owner.principal == claim.principal, owner.sha256.in_(some))
        )
        owned += [(sha256, size) for sha256, size in connection.execute(query)]
    _refresh(connection, [sha256 for sha256, _ in owned])
    return Claimed(claim.token, tuple(owned))


def _refresh(connection: Connection, hashes: Sequence[bytes]) -> None:
    """Unreferenced blobs age anew: the sweep must not take them before the submission arrives."""
    now_ms = time.time_ns() // 1_000_000
    for some in in_lists(hashes):
        connection.execute(update(schema.blob).where(schema.blob.c.sha256.in_(some)).values(stored_ms=now_ms))


def _quarantined_row(record: Quarantined) -> dict[str, object]:
    return {
        "at_ms": record.at_ms,
        "principal": record.principal,
        "kind": record.kind,
        "message": record.message,
        "error": record.error,
    }
