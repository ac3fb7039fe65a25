"""Removing texts for good: what retention does after weeks, done at once, and nothing of it is left in the files.

The writer's connection overwrites what it deletes (`secure_delete`), in the database; the write-ahead log is emptied
at the end, since it holds pages as they were. Old backups still hold the texts, and so does the disk's own wear
levelling: nobody can promise more.
"""

import logging
import sqlite3
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from sqlalchemy import Connection, delete, select
from sqlalchemy.exc import DBAPIError

from koubou_broker import schema
from koubou_broker.batches import Batch, Claimed, Entry, FailureKind, Purged
from koubou_broker.database import empty_log, kind_of, said
from koubou_broker.effects import Erase, Erased
from koubou_broker.records import BodyRef, NewTask, Parked, TaskProgress
from koubou_broker.retention import forget_blobs, forget_tasks
from koubou_broker.statements import TERMINAL_STATES

STEP_TASKS = 100  # in one transaction: some ten milliseconds
STEP_BYTES = 16 * 1024 * 1024  # of texts overwritten in one transaction: what one task may bring
LOG_RETRY_S = 0.05  # between tries to empty the log
LOG_WAIT_S = 30.0  # for a reader that holds the log: a backup of a large database, somebody's sqlite3 shell
RELIED_S = 3_600.0  # how long what a peer was told to be here stays: its submission is under way
RELIED_MOST = 100_000  # texts so remembered: the oldest are forgotten, and sent again

log = logging.getLogger("koubou_broker")


@dataclass(slots=True)
class _Order:
    """One Erase and how far it got."""

    asked: Erase
    left: deque[int]
    done: list[int] = field(default_factory=list)
    texts: int = 0
    size_bytes: int = 0
    shared: set[bytes] = field(default_factory=set)
    hashes: list[bytes] = field(default_factory=list)
    deadline_s: float = 0.0  # by which the log should be empty; 0: the texts are not all gone yet
    is_log_empty: bool = False


class Purges:
    """Orders, carried out in small steps between commits; used by the store thread alone."""

    def __init__(self, *, mono_s: Callable[[], float] = time.monotonic) -> None:
        self._mono_s = mono_s
        self._orders: deque[_Order] = deque()
        #: blobs that submissions under way count on -> since when, and how many submissions
        self._relied: OrderedDict[bytes, tuple[float, int]] = OrderedDict()

    def put(self, asked: Erase) -> None:
        """Carry this out after all that was asked before."""
        self._orders.append(_Order(asked, deque(asked.task_ids)))

    @property
    def wait_s(self) -> float | None:
        """How soon `step` should be called; None: there is nothing to do."""
        if not self._orders:
            return None
        return LOG_RETRY_S if self._orders[0].deadline_s else 0.0

    def note(self, batches: Iterable[Batch], answers: Iterable[Claimed]) -> None:
        """What was just committed: bodies whose submission is still to come must not be taken from under it."""
        now_s = self._mono_s()
        for batch in batches:
            for entry in batch.entries:
                if entry.records:
                    self._rely(_named_by(entry), -1, now_s)
                else:
                    self._rely((new.sha256 for new in entry.blobs), 1, now_s)
        for answer in answers:
            self._rely((sha256 for sha256, _ in answer.owned), 1, now_s)
        while self._relied:
            since_s, _ = next(iter(self._relied.values()))
            if len(self._relied) <= RELIED_MOST and since_s + RELIED_S >= now_s:
                break
            self._relied.popitem(last=False)

    def step(self, connection: Connection) -> Purged | None:
        """Do one step; what came of an order when it is over."""
        order = self._orders[0]
        error = ""
        try:
            if order.left:
                self._remove_some(connection, order)
                return None
            if not self._has_done_with_log(connection, order):
                return None
        except (DBAPIError, sqlite3.Error) as problem:
            if kind_of(problem) not in (FailureKind.FULL, FailureKind.BUSY):
                raise
            log.warning("a purge could not go on: %s", said(problem))
            error = said(problem)
        self._orders.popleft()
        counts = (order.texts, order.size_bytes, len(order.shared))
        erased = Erased(tuple(order.done), *counts, order.is_log_empty, error)
        return Purged(order.asked.token, erased, tuple(order.hashes))

    def _rely(self, hashes: Iterable[bytes], count: int, now_s: float) -> None:
        for sha256 in hashes:
            _, before = self._relied.pop(sha256, (now_s, 0))
            if before + count > 0:
                self._relied[sha256] = (now_s, before + count)

    def _remove_some(self, connection: Connection, order: _Order) -> None:
        some = [order.left[number] for number in range(min(STEP_TASKS, len(order.left)))]
        removed_bytes = 0
        done: list[int] = []
        looked_at = 0
        gone: list[tuple[bytes, int]] = []
        shared: set[bytes] = set()
        with connection.begin():
            tasks = schema.tasks.c
            ended = set(
                connection.scalars(
                    select(tasks.task_id).where(tasks.task_id.in_(some), tasks.state.in_(TERMINAL_STATES))
                )
            )
            for task_id in some:
                looked_at += 1
                if task_id not in ended:
                    continue  # somebody else purged it, or it was opened again
                of_task, kept = self._remove_bodies(connection, task_id)
                if order.asked.history:
                    forget_tasks(connection, [task_id])
                if order.asked.history or of_task or kept:
                    done.append(task_id)
                gone += of_task
                shared |= kept
                removed_bytes += sum(size for _, size in of_task)
                if removed_bytes >= STEP_BYTES:
                    break
        # Only what is committed counts.
        for _ in range(looked_at):
            order.left.popleft()
        order.done += done
        order.texts += len(gone)
        order.size_bytes += removed_bytes
        order.hashes += [sha256 for sha256, _ in gone]
        order.shared = (order.shared | shared) - set(order.hashes)

    def _remove_bodies(self, connection: Connection, task_id: int) -> tuple[list[tuple[bytes, int]], set[bytes]]:
        """The task lets go of its bodies: those that are gone with their sizes, and those that others hold."""
        ref, blob, parked = schema.blob_ref.c, schema.blob.c, schema.parked.c
        held = list(
            connection.execute(
                select(blob.sha256, blob.size_bytes)
                .join(schema.blob_ref, ref.sha256 == blob.sha256)
                .where(ref.task_id == task_id)
            )
        )
        connection.execute(delete(schema.blob_ref).where(ref.task_id == task_id))
        gone, kept = [], set()
        for sha256, size_bytes in held:
            others = select(ref.sha256).where(ref.sha256 == sha256)
            outcomes = select(parked.raw_sha256).where(parked.raw_sha256 == sha256)
            if sha256 in self._relied or connection.scalar(others.union_all(outcomes).limit(1)) is not None:
                kept.add(sha256)
            else:
                gone.append((sha256, size_bytes))
        forget_blobs(connection, [sha256 for sha256, _ in gone])
        return gone, kept

    def _has_done_with_log(self, connection: Connection, order: _Order) -> bool:
        """Empty the log; false while somebody reads in it, and it is to be tried again."""
        now_s = self._mono_s()
        order.deadline_s = order.deadline_s or now_s + LOG_WAIT_S
        order.is_log_empty = empty_log(connection)
        if order.is_log_empty or now_s < order.deadline_s:
            return order.is_log_empty
        log.warning("a reader has held the write-ahead log for %g s: purged texts stay in it until it ends", LOG_WAIT_S)
        return True


def _named_by(entry: Entry) -> set[bytes]:
    """The bodies of what an entry records: from now on their tasks hold them."""
    named: set[bytes] = set()
    for record in entry.records:
        match record:
            case NewTask():
                named.add(record.prompt.sha256)
                named.update(file.body.sha256 for file in record.files)
            case TaskProgress(result=BodyRef(sha256=sha256)) | Parked(raw=BodyRef(sha256=sha256)):
                named.add(sha256)
            case _:
                pass
    return named
