"""Putting a backup in the database's place: looked through first, the present database kept, all or nothing.

The caller holds the broker's lock. At its next start the broker finds the mark that is left here, and gives out
numbers far above all that anybody may remember from the time that is gone.
"""

import contextlib
import logging
import os
import shutil
import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from koubou_broker.lock import RESTORED_MARK
from koubou_broker.schema import HEAD_REVISION
from koubou_common import durable
from koubou_common.errors import Code, ConfigError, KoubouError

_PARTIAL = ".restoring"
_LOG, _SHARED = "-wal", "-shm"  # beside a database in use
_FAULTS_SHOWN = 5
_BUSY_S = 1.0  # for somebody's sqlite3 shell: its log is set aside if it goes on reading

log = logging.getLogger("koubou_broker")


@dataclass(frozen=True, slots=True)
class Restored:
    """What is in place now."""

    tasks: int
    live: int  # of these: queued or running, and so run (again) after the start
    revision: str
    kept: Path | None  # the database that was there before


def restore(backup: Path, database: Path) -> Restored:
    """Put a copy of `backup` in the place of `database`; KoubouError, and nothing changed, if it is not fit."""
    partial = database.with_name(f"{database.name}{_PARTIAL}")
    try:
        _copy(backup, partial)
        seen = _look_through(partial, backup)
        kept = _put_in_place(partial, database)
    except OSError as error:
        raise KoubouError(
            Code.INTERNAL,
            f"{backup} could not be put in place: {error.strerror}: {error.filename}",
            "the database that was there is unchanged; check the room on its disk, and that you are its owner",
        ) from error
    finally:
        for left in (partial, *_beside(partial)):
            with contextlib.suppress(OSError):
                left.unlink(missing_ok=True)
    return Restored(*seen, kept)


def _copy(backup: Path, partial: Path) -> None:
    if not backup.is_file():
        raise ConfigError(f"{backup} is no file", "name a file that `koubou-ctl backup` wrote")
    for left in (partial, *_beside(partial)):
        left.unlink(missing_ok=True)
    for suffix in ("", _LOG):  # somebody's plain copy of a database in use may come with its log
        source = backup.with_name(backup.name + suffix)
        if suffix and not source.exists():
            continue
        with (
            source.open("rb") as read,
            open(f"{partial}{suffix}", "xb", opener=durable.private) as written,
        ):
            shutil.copyfileobj(read, written, 1 << 20)


def _look_through(partial: Path, backup: Path) -> tuple[int, int, str]:
    """Check the whole file, mark it as restored, on disk when this returns; its tasks, live ones, revision."""
    try:
        with closing(sqlite3.connect(partial, isolation_level=None)) as copy:
            revision = _revision(copy, backup)
            faults = [str(row[0]) for row in copy.execute(f"PRAGMA integrity_check({_FAULTS_SHOWN})")]
            if faults != ["ok"]:
                raise sqlite3.DatabaseError("; ".join(faults))
            tasks = copy.execute("SELECT count(*) FROM tasks").fetchone()[0]
            live = copy.execute("SELECT count(*) FROM tasks WHERE state IN ('queued', 'running')").fetchone()[0]
            copy.execute("INSERT OR REPLACE INTO meta (key, value) VALUES (?, 1)", (RESTORED_MARK,))
            copy.execute("PRAGMA journal_mode = DELETE")  # one file, whatever it was: a log must not stay behind
    except sqlite3.DatabaseError as error:
        raise ConfigError(
            f"{backup} cannot be used: {error}", "try an older backup; the database that is there is unchanged"
        ) from error
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    return tasks, live, revision


def _revision(copy: sqlite3.Connection, backup: Path) -> str:
    names = {name for (name,) in copy.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not {"alembic_version", "meta", "tasks"} <= names:
        raise ConfigError(f"{backup} is not a database of Koubou's", "name a file that `koubou-ctl backup` wrote")
    row = copy.execute("SELECT version_num FROM alembic_version").fetchone()
    revision = str(row[0]) if row else ""
    if revision > HEAD_REVISION:
        raise ConfigError(
            f"{backup} was written by a newer Koubou (tables {revision}, this release knows {HEAD_REVISION})",
            "install that release, then restore",
        )
    return revision


def _put_in_place(partial: Path, database: Path) -> Path | None:
    """Every instant has a whole database under its name: the old one, then the new one."""
    kept = None
    if database.exists() and database.stat().st_size:
        kept = database.with_name(f"{database.name}.before-restore-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}")
        _link(database, kept)
        log_file, _ = _beside(database)
        if log_file.exists():
            kept_log = kept.with_name(kept.name + _LOG)
            _link(log_file, kept_log)  # first: SQLite removes the log of a database that it cannot read
            if _is_written_back(database):
                kept_log.unlink()
    for left in _beside(database):
        left.unlink(missing_ok=True)
    durable.replace(partial, database)
    log.warning("restored %s; what was there is kept as %s", database, kept.name if kept else "nothing")
    return kept


def _is_written_back(database: Path) -> bool:
    """Write the log into its database: beside another database it would be taken for that one's."""
    try:
        with closing(sqlite3.connect(database, timeout=_BUSY_S)) as old:
            return bool(old.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0)
    except sqlite3.DatabaseError as error:
        log.warning("the database that was there cannot be read (%s): its log is kept with it", error)
        return False


def _link(database: Path, kept: Path) -> None:
    try:
        os.link(database, kept)
    except FileExistsError as error:  # a second restoration within a second
        raise KoubouError(Code.BUSY, f"{kept} is there already", "try again") from error
    except OSError:  # a file system without links
        shutil.copy2(database, kept)
        kept.chmod(0o600)
        with kept.open("rb") as file:
            os.fsync(file.fileno())


def _beside(database: Path) -> tuple[Path, Path]:
    return database.with_name(database.name + _LOG), database.with_name(database.name + _SHARED)
