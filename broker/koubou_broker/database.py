"""Opening the database: the writer's engine, the readers' engine, and what an error of either means."""

import sqlite3
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import StatementError
from sqlalchemy.pool import ConnectionPoolEntry, QueuePool

from koubou_broker.batches import FailureKind

# Parameters are people's texts: no error message may quote them (hide_parameters).
BUSY_TIMEOUT_MS = 5_000  # a person's sqlite3 shell may hold the lock for a moment
WAL_KEPT_BYTES = 64 * 1024 * 1024  # the log shrinks back to this after a long reader kept it growing


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

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")  # one snapshot for all statements of an answer

    return engine


def kind_of(error: Exception) -> FailureKind:
    """What a failed transaction means; what is no database error is a bug of ours in making rows."""
    plain: Any = error.orig if isinstance(error, StatementError) else error
    if isinstance(plain, LostEpochError | MemoryError):
        return FailureKind.FATAL
    if not isinstance(plain, sqlite3.Error):
        return FailureKind.BROKEN
    code = getattr(plain, "sqlite_errorcode", None)
    if code is None:
        # Raised by Python's module before SQLite saw it: a value that no column takes.
        is_ours = isinstance(plain, sqlite3.InterfaceError | sqlite3.ProgrammingError | sqlite3.DataError)
        return FailureKind.BROKEN if is_ours else FailureKind.FATAL
    return _KINDS.get(code & _PRIMARY_CODE, FailureKind.FATAL)


def said(error: BaseException) -> str:
    """An error in one line, without the statement and its parameters: they hold people's texts."""
    plain = error.orig if isinstance(error, StatementError) else error
    return f"{type(plain).__name__}: {plain}"
