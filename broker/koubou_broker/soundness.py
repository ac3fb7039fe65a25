"""Whether the database can be trusted: looked at before a start that follows an end which was not clean."""

import logging
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from koubou_common.errors import Code, KoubouError

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
    try:
        yield
    except KoubouError:
        marker.unlink(missing_ok=True)
        raise
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


def _check(path: Path) -> None:
    deadline_s = time.monotonic() + CHECK_MOST_S
    try:
        with closing(sqlite3.connect(path)) as connection:
            connection.set_progress_handler(lambda: time.monotonic() > deadline_s, _PROGRESS_STEPS)
            faults = [str(row[0]) for row in connection.execute(f"PRAGMA quick_check({_FAULTS_SHOWN})")]
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_INTERRUPT:
            log.warning("no damage was found in %g s; the rest of the database was not looked at", CHECK_MOST_S)
            return
        faults = [str(error)]
    if faults != ["ok"]:
        raise KoubouError(
            Code.INTERNAL,
            f"the database {path} is damaged: {'; '.join(faults)}",
            "look after the disk, then put a backup in its place; keep the damaged file until all is well",
        )
