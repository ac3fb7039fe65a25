"""Opening the database: the writer's engine, the readers' engine, and what an error of either means."""

import os
import resource
import sqlite3
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import StatementError
from sqlalchemy.pool import ConnectionPoolEntry, QueuePool

from koubou_broker.batches import FailureKind
from koubou_common import durable

# Parameters are people's texts: no error message may quote them (hide_parameters).
BUSY_TIMEOUT_MS = 5_000  # a person's sqlite3 shell may hold the lock for a moment
WAL_KEPT_BYTES = 64 * 1024 * 1024  # the log shrinks back to this after a long reader kept it growing

TRIAL_BYTES = (
    64 * 1024 * 1024
)  # asked of a disk that may be full: about the largest transaction (turns.UNDURABLE_BYTES)

_PRIMARY_CODE = 0xFF  # SQLite's extended result codes keep the primary one in the low byte
_KINDS = {
    sqlite3.SQLITE_BUSY: FailureKind.BUSY,
    sqlite3.SQLITE_LOCKED: FailureKind.BUSY,
    sqlite3.SQLITE_READONLY: FailureKind.FULL,
    sqlite3.SQLITE_FULL: FailureKind.FULL,
    sqlite3.SQLITE_CONSTRAINT: FailureKind.BROKEN,
    sqlite3.SQLITE_TOOBIG: FailureKind.BROKEN,
    sqlite3.SQLITE_MISMATCH: FailureKind.BROKEN,
}
#: SQLite knows ENOSPC alone: a quota, a size limit, a file system that became read-only look like a broken disk to it,
#: and so does a full one when the log's index cannot grow. A failed fsync is not among them: nothing explains it away.
_PERHAPS_FULL = frozenset(
    {
        sqlite3.SQLITE_IOERR_WRITE,
        sqlite3.SQLITE_IOERR_TRUNCATE,
        sqlite3.SQLITE_IOERR_DELETE,
        sqlite3.SQLITE_IOERR_SHMSIZE,
        sqlite3.SQLITE_IOERR_SHMMAP,
        sqlite3.SQLITE_IOERR_SHMOPEN,
        sqlite3.SQLITE_CANTOPEN,
    }
)


class LostEpochError(Exception):
    """Another broker has taken the database over."""


def open_writer(path: Path) -> Engine:
    """The one engine that writes: one connection, WAL, every commit on disk before it returns."""
    engine = create_engine(f"sqlite:///{path}", poolclass=QueuePool, pool_size=1, max_overflow=0, hide_parameters=True)

    @event.listens_for(engine, "connect")
    def _on_connect(connection: sqlite3.Connection, entry: ConnectionPoolEntry) -> None:
        del entry
        connection.isolation_level = None  # or Python's sqlite3 would begin transactions as it likes
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        mode = cursor.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        cursor.execute("PRAGMA synchronous = FULL")  # NORMAL loses acknowledged commits in a power cut
        cursor.execute(f"PRAGMA journal_size_limit = {WAL_KEPT_BYTES}")
        # What is deleted is overwritten, always: pages that move about would leave copies for a purge to miss.
        cursor.execute("PRAGMA secure_delete = ON")
        cursor.execute("PRAGMA temp_store = MEMORY")  # strangers may hold the last file that can be opened
        # Inside a commit SQLite would swallow the error of a checkpoint: `checkpoints` does it, and hears it.
        cursor.execute("PRAGMA wal_autocheckpoint = 0")
        synchronous = cursor.execute("PRAGMA synchronous").fetchone()[0]
        cursor.close()
        if (mode, synchronous) != ("wal", 2):
            raise sqlite3.OperationalError(
                f"{path}: journal mode {mode}, synchronous {synchronous}; a local disk is needed, no network one"
            )

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        # IMMEDIATE: a transaction that reads first could not become a writing one later.
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def open_reader(path: Path) -> Engine:
    """An engine that cannot write, not even a checkpoint: only the writer may touch the file."""

    def connect() -> sqlite3.Connection:
        uri = f"file:{quote(str(path))}?mode=ro"
        return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)

    engine = create_engine(
        "sqlite://", creator=connect, poolclass=QueuePool, pool_size=1, max_overflow=0, hide_parameters=True
    )

    @event.listens_for(engine, "connect")
    def _on_connect(connection: sqlite3.Connection, entry: ConnectionPoolEntry) -> None:
        del entry
        connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}").close()
        connection.execute("PRAGMA query_only = ON").close()
        # All files are opened here, none later: strangers who connect may hold the last that can be opened, and a
        # look-up that could not open one would look like a database that is gone.
        connection.execute("PRAGMA temp_store = MEMORY").close()
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")  # one snapshot for all statements of an answer

    return engine


def empty_log(connection: Connection) -> bool:
    """Write all of the write-ahead log into the database and cut it to nothing; False while somebody reads in it.

    The caller has the writer's connection, outside of any transaction.
    """
    plain: Any = connection.connection.driver_connection
    plain.execute("PRAGMA busy_timeout = 0").close()  # or a long reader would hold up every commit
    try:
        is_busy = plain.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
    finally:
        plain.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}").close()
    return not is_busy


def kind_of(error: Exception, folder: Path | None = None) -> FailureKind:
    """What a failed transaction means; what is no database error is a bug of ours in making rows.

    With the database's folder, what SQLite calls an I/O error is told from a disk that only takes no more for now.
    """
    plain: Any = error.orig if isinstance(error, StatementError) else error
    if isinstance(plain, LostEpochError | MemoryError):
        return FailureKind.FATAL
    if isinstance(plain, OSError):
        return FailureKind.FULL if durable.is_refusal(plain) else FailureKind.FATAL
    if not isinstance(plain, sqlite3.Error):
        return FailureKind.BROKEN
    code = getattr(plain, "sqlite_errorcode", None)
    if code is None:
        # Raised by Python's module before SQLite saw it: a value that no column takes.
        is_ours = isinstance(plain, sqlite3.InterfaceError | sqlite3.ProgrammingError | sqlite3.DataError)
        return FailureKind.BROKEN if is_ours else FailureKind.FATAL
    if folder is not None and code in _PERHAPS_FULL and takes_no_more(folder):
        return FailureKind.FULL
    return _KINDS.get(code & _PRIMARY_CODE, FailureKind.FATAL)


def is_damage(error: Exception) -> bool:
    """Whether SQLite found what no SQLite writes."""
    plain: Any = error.orig if isinstance(error, StatementError) else error
    code = getattr(plain, "sqlite_errorcode", None)
    return code is not None and code & _PRIMARY_CODE in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def takes_no_more(folder: Path) -> bool:
    """Whether the disk of a folder refuses what a transaction may need, in a way that passes; not if it is broken."""
    trial = folder / ".trial"
    try:
        if os.statvfs(folder).f_flag & os.ST_RDONLY:
            return True
        # Our files alone: a database that is opened and closed here would lose its locks.
        largest_bytes = max((path.stat().st_size for path in folder.glob("koubou.db*")), default=0)
        limit_bytes, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
        if limit_bytes != resource.RLIM_INFINITY and largest_bytes + TRIAL_BYTES > limit_bytes:
            return True
        try:
            with open(trial, "wb", opener=durable.private) as file:
                os.posix_fallocate(file.fileno(), 0, TRIAL_BYTES)
        finally:
            trial.unlink(missing_ok=True)
    except OSError as error:
        return durable.is_refusal(error)
    return False


def folder_of(engine: Engine) -> Path:
    """Where the database of a writer's engine lies."""
    assert engine.url.database, "an engine without a file"
    return Path(engine.url.database).parent


def said(error: BaseException) -> str:
    """An error in one line, without the statement and its parameters: they hold people's texts."""
    plain = error.orig if isinstance(error, StatementError) else error
    return f"{type(plain).__name__}: {plain}"
