"""Store and reader of the simulated broker: what their threads do, in virtual time, with every way to fail."""

from typing import assert_never

from koubou_broker.batches import Batch, Claimed, Durable, Entry, Failed, FailureKind, Outcome, Probed
from koubou_broker.reader import Answer, Bodies, ChunkRead, Find, FoundRows, ReadBodies, ReadChunk, Request
from koubou_broker.records import NewTask
from koubou_broker.store import BUSY_TRIES
from sim.disk import LostEpoch, transaction_of
from sim.process import Process, Start
from sim.world import Action

BUSY_S = 5.0  # SQLite's busy_timeout
UNSTORABLE = "cannot be stored"  # the custom_id of a task that breaks its transaction, as a bug of ours would
_CHECKPOINT_S = 20.0  # mean time until synchronous=NORMAL syncs


class StoreModel:
    """As `koubou_broker.store.Store`: batches in, outcomes back; each group is one transaction."""

    def __init__(self, start: Start, life: Process, wake: Action) -> None:
        self._world = start.world
        self._disk = start.disk
        self._life = life
        self._epoch = start.term.epoch
        self._bugs = start.bugs
        self._wake = wake
        self._waiting: list[Batch] = []
        self._outcomes: list[Outcome] = []
        self._is_writing = False
        self._is_over = False
        self._failed_term = -1

    def put(self, batch: Batch) -> None:
        """Write this after all that was put before."""
        self._waiting.append(batch)
        self._begin()

    def take(self) -> list[Outcome]:
        """What has come of it."""
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def probe(self) -> None:
        """Try whether there is room again."""

        def look() -> None:
            can_write = not self._disk.is_full
            self._tell(Probed(can_write, fits_task=can_write))

        self._life.after(0.01, look)

    def _begin(self) -> None:
        if self._is_writing or self._is_over or not self._waiting:
            return
        self._is_writing = True
        group, self._waiting = self._waiting, []
        group = [batch for batch in group if batch.term > self._failed_term]
        self._life.after(self._commit_s() / 4, lambda: self._write(group, BUSY_TRIES))

    def _commit_s(self) -> float:
        return self._world.draw_s(0.001 if self._world.healed else self._world.faults.commit_s)

    def _write(self, group: list[Batch], tries_left: int) -> None:
        if not group:
            self._end()
        elif self._disk.busy_until_s > self._world.now_s and tries_left:
            self._life.after(BUSY_S, lambda: self._write(group, tries_left - 1))
        elif self._disk.busy_until_s > self._world.now_s:
            self._fail(group[0], FailureKind.FATAL, "database is locked")
        elif self._disk.is_full:
            self._fail(group[0], FailureKind.FULL, "database or disk is full")
        elif any(_breaks(entry) for batch in group for entry in batch.entries):
            self._isolate(group)
        else:
            self._commit(group)

    def _commit(self, group: list[Batch]) -> None:
        try:
            claimed = self._put_on_disk(group)
        except LostEpoch:
            self._fail(group[0], FailureKind.FATAL, "another broker has begun its term")
            return
        if self._life.step("between commit and sync"):
            return
        if self._bugs.unsynced:
            self._life.after(self._world.draw_s(_CHECKPOINT_S), self._disk.sync)
            self._done(group, claimed)
            return

        def synced() -> None:
            self._disk.sync()
            if not self._life.step("between sync and telling"):
                self._done(group, claimed)

        self._life.after(self._commit_s() * 3 / 4, synced)

    def _put_on_disk(self, group: list[Batch]) -> list[Claimed]:
        entries = [entry for batch in group for entry in batch.entries]
        if self._bugs.forgets_saves and self._world.draws.random() < self._bugs.forgets_saves:
            entries = []
        quarantined = next((batch.quarantined for batch in group if batch.quarantined), None)
        self._disk.commit(transaction_of(entries, quarantined), self._epoch)
        claims = [claim for batch in group for claim in batch.claims]
        return [Claimed(claim.token, self._disk.now.owned(claim.principal, claim.hashes)) for claim in claims]

    def _isolate(self, group: list[Batch]) -> None:
        """One entry a transaction, until the one that breaks it."""
        for batch in group:
            for number, entry in enumerate(batch.entries):
                if _breaks(entry):
                    self._disk.sync()
                    self._fail(batch, FailureKind.BROKEN, "CHECK constraint failed", number)
                    return
                try:
                    self._disk.commit(transaction_of((entry,)), self._epoch)
                except LostEpoch:
                    self._fail(batch, FailureKind.FATAL, "another broker has begun its term")
                    return
            claimed = self._put_on_disk([Batch(batch.number, batch.term, (), batch.claims, batch.quarantined)])
            self._disk.sync()
            self._outcomes += claimed
            self._tell(Durable(batch.number, batch.term))
        self._end()

    def _done(self, group: list[Batch], claimed: list[Claimed]) -> None:
        self._outcomes += claimed
        last = group[-1]
        self._tell(Durable(last.number, last.term))
        self._end()

    def _fail(self, batch: Batch, kind: FailureKind, error: str, entry: int = -1) -> None:
        self._world.fault(f"the store fails ({kind.value}): {error}")
        self._failed_term = batch.term
        self._is_over = kind is FailureKind.FATAL
        self._tell(Failed(batch.number, batch.term, kind, error, entry))
        self._end()

    def _end(self) -> None:
        self._is_writing = False
        self._begin()

    def _tell(self, outcome: Outcome) -> None:
        self._outcomes.append(outcome)
        self._wake()


class ReaderModel:
    """As `koubou_broker.reader.Reader`: requests in, answers back, in their order."""

    def __init__(self, start: Start, life: Process, wake: Action) -> None:
        self._world = start.world
        self._disk = start.disk
        self._life = life
        self._wake = wake
        self._requests: list[Request] = []
        self._answers: list[Answer] = []

    def ask(self, request: Request) -> None:
        """Answer this after all that was asked before."""
        self._requests.append(request)
        self._life.after(self._world.draw_s(0.002), self._answer)

    def take(self) -> list[Answer]:
        """The answers since the last time."""
        answers, self._answers = self._answers, []
        return answers

    def _answer(self) -> None:
        request = self._requests.pop(0)
        shelf = self._disk.now
        match request:
            case Find():
                self._answers.append(FoundRows(request.term, request.token, shelf.find(request.query)))
            case ReadBodies():
                held = tuple((one, shelf.blobs[one]) for one in request.hashes if one in shelf.blobs)
                self._answers.append(Bodies(request.token, held))
            case ReadChunk(peer=peer, sha256=sha256, index=index):
                may = request.is_granted or shelf.may_read(peer, sha256)
                data = shelf.chunk(sha256, index) if may else None
                self._answers.append(ChunkRead(request.session, peer, sha256, index, data))
            case _:
                assert_never(request)
        self._wake()


def _breaks(entry: Entry) -> bool:
    return any(isinstance(record, NewTask) and record.custom_id == UNSTORABLE for record in entry.records)
