"""Whether the database can be trusted: looked at before a start that follows an end which was not clean."""

import hashlib
import itertools
import logging
import os
import sqlite3
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from koubou_broker.batches import FailureKind
from koubou_broker.database import kind_of
from koubou_common import durable
from koubou_common.errors import Code, ConfigError, KoubouError

CHECK_MOST_S = 20.0  # of a start: a service manager waits 90 s; some GiB are read in that time
WAL_RESET_FIXED = (3, 51, 3)  # before: two connections that write or checkpoint at once may corrupt a database

_PROGRESS_STEPS = 10_000  # of SQLite's machine between two looks at the clock: some milliseconds
_FAULTS_SHOWN = 5
_NETWORK = ("nfs", "cifs", "smb", "afs", "ceph", "gluster", "lustre", "fuse.sshfs", "fuse.rclone", "davfs")
_MOUNTS = Path("/proc/mounts")

log = logging.getLogger("koubou_broker")


@contextmanager
def trusted(path: Path, marker: Path) -> Iterator[None]:
    """Use the database; KoubouError if its last user ended badly and left it damaged. The caller holds the lock.

    `marker` stays behind unless the block ran to its end, or ended because of what a person has to mend.
    """
    if marker.exists():
        log.warning("the last broker did not end cleanly: looking through the database")
        _check(path)
    marker.touch(mode=0o600)
    durable.sync_folder(marker.parent)  # a loss of power must not take the mark away with what it damages
    try:
        yield
    except Exception as error:
        if isinstance(error, KoubouError) or kind_of(error, path.parent) is FailureKind.FULL:
            _unmark(marker)
        raise
    _unmark(marker)


def _unmark(marker: Path) -> None:
    with suppress(OSError):  # a disk that became read-only: the next start looks once in vain
        marker.unlink(missing_ok=True)


def note_surroundings(path: Path) -> None:
    """Log what people should know of the SQLite and the file system under a database."""
    if sqlite3.sqlite_version_info < WAL_RESET_FIXED:
        log.info(
            "SQLite %s has a bug that can corrupt a database written by two at once (fixed in %s): only the broker"
            " writes this one, let no other program do so",
            sqlite3.sqlite_version,
            ".".join(map(str, WAL_RESET_FIXED)),
        )
    kind = file_system_of(path, _MOUNTS)
    if kind.startswith(_NETWORK):
        log.warning("%s lies on a network file system (%s): SQLite can lose data there, use a local disk", path, kind)


def file_system_of(path: Path, mounts: Path) -> str:
    """The kind of file system that holds `path`, by a table like Linux's /proc/mounts; "" where there is none."""
    try:
        lines = mounts.read_text("utf-8", "replace").splitlines()
    except OSError:
        return ""
    found, depth = "", -1
    for line in lines:
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        point = Path(fields[1].replace("\\040", " "))
        if path.resolve().is_relative_to(point) and len(point.parts) >= depth:  # a later mount hides an earlier one
            found, depth = fields[2], len(point.parts)
    return found


def refuse_foreign(path: Path) -> None:
    """ConfigError if this account may not read and write the database that is there, with whose it is."""
    try:
        owner = path.stat().st_uid
    except FileNotFoundError:
        return
    needed = [one for one in (path, path.with_name(f"{path.name}-wal"), path.parent) if one.exists()]
    shut = [one for one in needed if not os.access(one, os.R_OK | os.W_OK, effective_ids=True)]
    if not shut or os.statvfs(path).f_flag & os.ST_RDONLY:
        return
    mode = stat.S_IMODE(shut[0].stat().st_mode)
    raise ConfigError(
        f"{shut[0]} cannot be read and written by this account (user {os.geteuid()}):"
        f" it belongs to user {shut[0].stat().st_uid}, mode {mode:04o}",
        f"run the broker as its owner, or give it back: chown -R {os.geteuid()} {path.parent}"
        if owner != os.geteuid()
        else f"chmod u+rw {shut[0]}",
    )


def faults_of(path: Path, *, most_s: float | None = None) -> list[str]:
    """What is wrong with a database, a line each; [] if nothing is. The caller holds the lock.

    Without a limit of time all of it is looked at: every index against its table, every body against its digest.
    With one, each page by itself (faster), as far as that goes.
    """
    deadline_s = None if most_s is None else time.monotonic() + most_s
    try:
        with closing(look_into(path)) as connection:
            if deadline_s is None:
                rows = connection.execute(f"PRAGMA integrity_check({_FAULTS_SHOWN})")
                faults = [line for (text,) in rows for line in str(text).splitlines() if line != "ok"]
                return faults + list(itertools.islice(_spoilt_bodies(connection), _FAULTS_SHOWN))
            connection.set_progress_handler(lambda: time.monotonic() > deadline_s, _PROGRESS_STEPS)
            rows = connection.execute(f"PRAGMA quick_check({_FAULTS_SHOWN})")
            return [line for (text,) in rows for line in str(text).splitlines() if line != "ok"]
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_INTERRUPT:
            log.warning("no damage was found in %g s; the rest of the database was not looked at", most_s)
            return []
        if kind_of(error, path.parent) is FailureKind.FULL:
            raise
        return [str(error)]


def look_into(path: Path) -> sqlite3.Connection:
    """A connection that leaves a database as it is: the log beside a damaged one is not mixed into it.

    Unless a power cut came while it was made, or put into WAL mode: no reader can roll that journal back.
    """
    journal = path.with_name(f"{path.name}-journal")
    mode = "rw" if journal.exists() and journal.stat().st_size else "ro"
    return sqlite3.connect(f"file:{quote(str(path))}?mode={mode}", uri=True)


def damaged(path: Path, faults: Sequence[str]) -> KoubouError:
    """The refusal to use a damaged database: it says what to do, and that nothing was changed."""
    return KoubouError(
        Code.INTERNAL,
        f"the database {path} is damaged: {'; '.join(faults[:_FAULTS_SHOWN])}; it was left as it is",
        "look after the disk (dmesg, smartctl), keep a copy of the file, then restore a backup:"
        " koubou-broker restore FILE; `koubou-broker check-database` looks at all of it",
    )


def _check(path: Path) -> None:
    faults = faults_of(path, most_s=CHECK_MOST_S)
    if faults:
        raise damaged(path, faults)


def _spoilt_bodies(connection: sqlite3.Connection) -> Iterator[str]:
    for sha256, size_bytes in connection.execute("SELECT sha256, size_bytes FROM blob ORDER BY sha256"):
        digest, got_bytes = hashlib.sha256(), 0
        for (piece,) in connection.execute("SELECT bytes FROM blob_chunk WHERE sha256 = ? ORDER BY n", (sha256,)):
            digest.update(piece)
            got_bytes += len(piece)
        if (digest.digest(), got_bytes) != (sha256, size_bytes):
            yield f"the stored body {sha256.hex()} of {size_bytes} bytes is spoilt"
