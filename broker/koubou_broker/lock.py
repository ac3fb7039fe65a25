"""One broker at a time: the lock on its folder, and the epoch that tells its term from all others.

A witness file beside the database notes how far this database had come. A database that stands behind its
witness was restored from a backup: its numbers jump ahead, so that no number is given out twice.
"""

import contextlib
import fcntl
import json
import logging
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

from sqlalchemy import Engine

from koubou_broker import statements
from koubou_broker.lookups import read_meta, read_numbers
from koubou_common import durable
from koubou_common.errors import ConfigError

RESTORED_JUMP = 1_000_000  # more tasks than anybody submitted between a backup and its restoration

RESTORED_MARK = "restored"  # in `meta`: this file was put in its place by `koubou-broker restore`
_WITNESS_BYTES = 512  # one sector, which a disk writes whole or not at all
_NEXT = ("next_task_id", "next_batch_id", "next_event_seq")

log = logging.getLogger("koubou_broker")


class BrokerLock:
    """An advisory lock on `path`, held as long as the process lives; also across a kill -9."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle = -1

    def __enter__(self) -> Self:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(handle, 32, 0).decode("ascii", "replace").strip()
            os.close(handle)
            raise ConfigError(
                f"another broker (process {holder or 'unknown'}) already runs on {self._path.parent}",
                "stop it first, or give this one another home (--home)",
            ) from error
        with contextlib.suppress(OSError):  # a full disk: the lock holds, only its holder has no name
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        self._handle = handle
        return self

    def __exit__(self, *exc_info: object) -> None:
        os.close(self._handle)  # releases the lock; the file stays, or two brokers could lock two files


@dataclass(frozen=True, slots=True)
class Term:
    """What a broker begins with."""

    epoch: int
    was_restored: bool


@dataclass(frozen=True, slots=True)
class Witness:
    """How far the database had come: the epoch, the highest event number told to anybody.

    And what was to be given out next when the term began: a backup restored a second time does not know of the first.
    """

    epoch: int = 0
    event_seq: int = 0
    next_task_id: int = 0
    next_batch_id: int = 0
    next_event_seq: int = 0


def begin_term(engine: Engine, witness_path: Path, wall_ms: int) -> Term:
    """Raise the epoch, durably, and notice a restored database. The caller holds the lock."""
    witness = read_witness(witness_path)
    with engine.begin() as connection:
        stored = read_meta(connection, "epoch")
        numbers = read_numbers(connection)
        was_restored = (
            bool(read_meta(connection, RESTORED_MARK))
            or stored < witness.epoch
            or numbers["next_event_seq"] <= witness.event_seq
            # Without its witness nobody knows how far a database had come: it may be an old one on a new host.
            or (not witness.epoch and numbers["next_event_seq"] > 1)
        )
        epoch = max(stored + 1, witness.epoch + 1, wall_ms)
        connection.execute(statements.PUT_META, {"key": "epoch", "value": epoch})
        if was_restored:
            lost_first_id = numbers["next_task_id"]
            numbers = _above_all(numbers, witness)
            told = {"restored_ms": wall_ms, "lost_first_id": lost_first_id, "lost_end_id": numbers["next_task_id"]}
            for key, value in {**numbers, **told, RESTORED_MARK: 0}.items():
                connection.execute(statements.PUT_META, {"key": key, "value": value})
            log.error("the database was restored from a backup: its numbers jump by %d", RESTORED_JUMP)
    # After the database: a crash in between must not look like a restoration.
    write_witness(witness_path, Witness(epoch, 0 if was_restored else witness.event_seq, **numbers))
    return Term(epoch, was_restored)


def _above_all(numbers: dict[str, int], witness: Witness) -> dict[str, int]:
    """What to give out next after a restoration: above all that this home may have given out before."""
    known = {
        "next_task_id": witness.next_task_id,
        "next_batch_id": witness.next_batch_id,
        "next_event_seq": max(witness.next_event_seq, witness.event_seq + 1),
    }
    return {key: max(value, known[key]) + RESTORED_JUMP for key, value in numbers.items()}


def read_witness(path: Path) -> Witness:
    """The witness; a missing or damaged one knows nothing."""
    try:
        fields = json.loads(path.read_text("ascii"))
        next_ones = (int(fields.get(name, 0)) for name in _NEXT)
        return Witness(int(fields["epoch"]), int(fields["event_seq"]), *next_ones)
    except FileNotFoundError:
        return Witness()
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("the witness file %s cannot be read (%s): a restored database would not be noticed", path, error)
        return Witness()


def note_progress(path: Path, epoch: int, event_seq: int) -> None:
    """Tell the witness how far the term has come; not forced to the disk, for the loop must not wait for it."""
    write_witness(path, replace(read_witness(path), epoch=epoch, event_seq=event_seq), is_urgent=False)


def write_witness(path: Path, witness: Witness, *, is_urgent: bool = True) -> None:
    """Replace the witness as a whole; it may lag behind, but never be ahead of what is durable.

    One that is not urgent is not forced to the disk: the loop must not wait for it. It is written over the old one,
    within one sector: after a loss of power one of the two is there. (A new file without an fsync could be empty.)
    """
    text = json.dumps({**asdict(witness), "written": int(time.time())}).ljust(_WITNESS_BYTES - 1) + "\n"
    if not is_urgent and path.exists() and path.stat().st_size == _WITNESS_BYTES:
        handle = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.pwrite(handle, text.encode("ascii"), 0)
        finally:
            os.close(handle)
        return
    partial = path.with_name(f".{path.name}.partial")
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(handle)
    durable.replace(partial, path)
