"""Copies of the database while it is in use: made beside it, checked, given out in pieces, taken away again.

A thread of its own with a connection that cannot write: on the writer's, or on the reader's, a copy would stop
everybody for as long as it takes.
"""

import contextlib
import hashlib
import logging
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from koubou_broker.database import said
from koubou_broker.effects import AskBackup
from koubou_common import durable
from koubou_common.errors import Code
from koubou_common.messages import (
    BackupEnded,
    BackupMade,
    BackupPart,
    EndBackup,
    Error,
    GetBackupPart,
    MakeBackup,
)
from koubou_common.messages.limits import CHUNK_BYTES, MIB

IDLE_S = 120.0  # a copy that nobody fetched from for so long is taken away; a client comes back within a minute
RETRY_S = 5.0  # what somebody waits who wants a copy while another one is being fetched
SUFFIX = ".backup.partial"  # of the copy, beside the database: what is left of a crash is found by it
READS_MOST = 16  # pieces held for one client: 8 MiB, as much as its queue holds
_FAULTS_SHOWN = 5

log = logging.getLogger("koubou_broker")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a session is to be told."""

    session: int
    principal: str
    message: BackupMade | BackupPart | BackupEnded | Error


@dataclass(slots=True)
class _Copy:
    """The one copy there is; known by the request that asked for it, and by whose."""

    backup: str
    principal: str
    session: int
    path: Path
    touched_s: float
    made: BackupMade | None = None  # None: it is being made
    reads: int = 0  # pieces on their way


@dataclass(frozen=True, slots=True)
class _Job:
    """Something for the thread: make the copy, read a piece of it, take it away."""

    copy: _Copy
    asked: AskBackup | None  # None: take it away


class Backups:
    """Give it orders with `ask`; what is to be said comes back by `take`, and `wake` says when."""

    def __init__(
        self,
        database: Path,
        spare_bytes: Callable[[], int],
        wake: Callable[[], None],
        *,
        mono_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """`spare_bytes` tells how much of the disk a copy may take."""
        self._database = database
        self._spare_bytes = spare_bytes
        self._wake = wake
        self._mono_s = mono_s
        self._copy: _Copy | None = None
        self._count = 0
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[_Copy, Answer]] = queue.SimpleQueue()
        self._reading: sqlite3.Connection | None = None
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="koubou-backup", daemon=True)

    def start(self) -> None:
        """Take away what a crash left behind, and start the thread."""
        for left in self._database.parent.glob(f"*{SUFFIX}*"):
            log.info("removing %s: its backup was not finished", left.name)
            left.unlink(missing_ok=True)
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Break off what is being made, take it away, end; False if that took longer than `timeout_s`."""
        self._is_stopping.set()
        reading = self._reading
        if reading is not None:
            with contextlib.suppress(sqlite3.ProgrammingError):  # it has just ended by itself
                reading.interrupt()
        if self._copy is not None:
            self._jobs.put(_Job(self._copy, None))
        self._jobs.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def is_alive(self) -> bool:
        """Whether the thread still runs."""
        return self._thread.is_alive()

    def ask(self, asked: AskBackup) -> list[Answer]:
        """Do what an operator asks for; what can be said at once."""
        match asked.message:
            case MakeBackup():
                return self._make(asked)
            case GetBackupPart():
                copy = self._copy_of(asked, asked.message.backup)
                if copy is None or copy.made is None:
                    gone = Error(
                        Code.NOT_FOUND,
                        "the broker does not have this copy any more",
                        "begin again",
                        asked.message.request_id,
                    )
                    return [Answer(asked.session, asked.principal, gone)]
                copy.touched_s = self._mono_s()
                if copy.reads < READS_MOST:  # whoever asks for more at a time than agreed asks again
                    copy.reads += 1
                    self._jobs.put(_Job(copy, asked))
                return []
            case EndBackup():
                copy = self._copy_of(asked, asked.message.backup)
                if copy is not None and copy.made is not None:
                    self._take_away(copy)
                return [Answer(asked.session, asked.principal, BackupEnded(asked.message.request_id))]

    def take(self) -> list[Answer]:
        """What is to be said since the last time, in order."""
        answers = []
        while True:
            try:
                copy, answer = self._done.get_nowait()
            except queue.Empty:
                break
            if copy.made is not None:
                copy.reads -= 1
                answers.append(answer)
                continue
            if isinstance(answer.message, BackupMade):
                copy.made, copy.touched_s = answer.message, self._mono_s()
            elif copy is self._copy:
                self._copy = None
            # Whoever asked for the copy may have come back in another session meanwhile.
            answers.append(Answer(copy.session, copy.principal, answer.message))
        copy_now = self._copy
        if copy_now is not None and copy_now.made is not None and self._mono_s() - copy_now.touched_s > IDLE_S:
            log.warning("nobody fetched the copy that %s asked for: it is removed", copy_now.principal)
            self._take_away(copy_now)
        return answers

    def _make(self, asked: AskBackup) -> list[Answer]:
        request_id = asked.message.request_id
        copy = self._copy
        if copy is not None and (copy.backup, copy.principal) == (request_id, asked.principal):
            copy.session, copy.touched_s = asked.session, self._mono_s()
            return [Answer(asked.session, asked.principal, copy.made)] if copy.made is not None else []
        if copy is not None:
            text = f"a copy that {copy.principal} asked for is being {'fetched' if copy.made else 'made'}"
            busy = Error(Code.BUSY, text, "one at a time", request_id, RETRY_S)
            return [Answer(asked.session, asked.principal, busy)]
        self._count += 1
        path = self._database.with_name(f"{self._database.name}.{self._count}{SUFFIX}")
        self._copy = _Copy(request_id, asked.principal, asked.session, path, self._mono_s())
        self._jobs.put(_Job(self._copy, asked))
        return []

    def _copy_of(self, asked: AskBackup, backup: str) -> _Copy | None:
        copy = self._copy
        return copy if copy is not None and (copy.backup, copy.principal) == (backup, asked.principal) else None

    def _take_away(self, copy: _Copy) -> None:
        self._copy = None
        self._jobs.put(_Job(copy, None))

    # All below runs on the thread.

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            if job.asked is None:
                job.copy.path.unlink(missing_ok=True)
                continue
            try:
                message = self._message_for(job.copy, job.asked)
            except (OSError, sqlite3.Error) as error:
                message = self._failure(job.copy, job.asked, error)
            self._done.put((job.copy, Answer(job.asked.session, job.asked.principal, message)))
            self._wake()

    def _message_for(self, copy: _Copy, asked: AskBackup) -> BackupMade | BackupPart | Error:
        if isinstance(asked.message, GetBackupPart):
            with copy.path.open("rb") as file:
                file.seek(asked.message.index * CHUNK_BYTES)
                return BackupPart(asked.message.request_id, asked.message.index, file.read(CHUNK_BYTES))
        began_s = self._mono_s()
        refusal = self._copied(copy)
        if refusal is not None:
            copy.path.unlink(missing_ok=True)
            return refusal
        made = _made(copy, round((self._mono_s() - began_s) * 1000))
        log.info("copied the database for %s: %d bytes in %.1f s", copy.principal, made.size_bytes, made.took_ms / 1000)
        return made

    def _copied(self, copy: _Copy) -> Error | None:
        """Make the copy, on the disk when this returns; or why not."""
        uri = f"file:{quote(str(self._database))}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)) as source:
            need_bytes = _pages_bytes(source)
            spare_bytes = self._spare_bytes()
            if need_bytes > spare_bytes:
                text = (
                    f"a copy takes {_mib(need_bytes)} beside the database, and {_mib(max(0, spare_bytes))} may be used"
                    " there (disk.min_free_bytes is kept free)"
                )
                return Error(Code.STORE_FULL, text, "make room on the broker's disk", copy.backup)
            os.close(durable.private(str(copy.path), os.O_WRONLY | os.O_CREAT | os.O_EXCL))
            self._reading = source
            if self._is_stopping.is_set():
                return Error(Code.BUSY, "the broker is stopping", "", copy.backup, RETRY_S)
            try:
                source.execute("VACUUM INTO ?", (str(copy.path),))
            finally:
                self._reading = None
        with copy.path.open("rb") as file:
            os.fsync(file.fileno())
        faults = _faults_of(copy.path)
        if faults:
            log.error("the copy of the database is damaged: %s", "; ".join(faults))
            text = f"the copy is damaged, and so may the database be: {'; '.join(faults)}"
            return Error(Code.INTERNAL, text, "stop the broker and look after its disk", copy.backup)
        return None

    def _failure(self, copy: _Copy, asked: AskBackup, error: Exception) -> Error:
        if isinstance(asked.message, MakeBackup):
            copy.path.unlink(missing_ok=True)
        if self._is_stopping.is_set():
            return Error(Code.BUSY, "the broker is stopping", "", asked.message.request_id, RETRY_S)
        log.error("no backup could be made: %s", said(error))
        text = f"no backup could be made: {said(error)}"
        return Error(Code.INTERNAL, text, "the broker's log has more", asked.message.request_id)


def _made(copy: _Copy, took_ms: int) -> BackupMade:
    with copy.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
    with closing(sqlite3.connect(f"file:{quote(str(copy.path))}?mode=ro&immutable=1", uri=True)) as database:
        tasks = database.execute("SELECT count(*) FROM tasks").fetchone()[0]
        epoch = database.execute("SELECT value FROM meta WHERE key = 'epoch'").fetchone()
    return BackupMade(
        request_id=copy.backup,
        size_bytes=copy.path.stat().st_size,
        sha256=digest,
        tasks=tasks,
        term_epoch=epoch[0] if epoch else 0,
        took_ms=took_ms,
    )


def _pages_bytes(database: sqlite3.Connection) -> int:
    """What a copy will take at most: free pages are not copied."""
    used, free, size = (
        database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    return int((used - free) * size)


def _faults_of(path: Path) -> Sequence[str]:
    with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro&immutable=1", uri=True)) as database:
        faults = [str(row[0]) for row in database.execute(f"PRAGMA quick_check({_FAULTS_SHOWN})")]
    return [] if faults == ["ok"] else faults


def _mib(count_bytes: int) -> str:
    return f"{count_bytes / MIB:,.1f} MiB"
