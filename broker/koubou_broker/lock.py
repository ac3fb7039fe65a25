"""One broker at a time: the lock on its folder, and the epoch that tells its term from all others.

A witness file beside the database notes how far this database had come. A database that stands behind its
witness was restored from a backup: its numbers jump ahead, so that no number is given out twice.
"""

import fcntl
import json
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from sqlalchemy import Engine

from koubou_broker import statements
from koubou_broker.lookups import read_meta, read_numbers
from koubou_common.errors import ConfigError

RESTORED_JUMP = 1_000_000  # more tasks than anybody submitted between a backup and its restoration

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
    """How far the database had come: the epoch, and the highest event number told to anybody."""

    epoch: int = 0
    event_seq: int = 0


def begin_term(engine: Engine, witness_path: Path, wall_ms: int) -> Term:
    """Raise the epoch, durably, and notice a restored database. The caller holds the lock."""
    witness = read_witness(witness_path)
    with engine.begin() as connection:
        stored = read_meta(connection, "epoch")
        numbers = read_numbers(connection)
        was_restored = stored < witness.epoch or numbers["next_event_seq"] <= witness.event_seq
        epoch = max(stored + 1, witness.epoch + 1, wall_ms)
        connection.execute(statements.PUT_META, {"key": "epoch", "value": epoch})
        if was_restored:
            numbers["next_event_seq"] = max(numbers["next_event_seq"], witness.event_seq + 1)
            for key, value in numbers.items():
                connection.execute(statements.PUT_META, {"key": key, "value": value + RESTORED_JUMP})
            log.error("the database was restored from a backup: its numbers jump by %d", RESTORED_JUMP)
    # After the database: a crash in between must not look like a restoration.
    write_witness(witness_path, Witness(epoch, 0 if was_restored else witness.event_seq))
    return Term(epoch, was_restored)


def read_witness(path: Path) -> Witness:
    """The witness; a missing or damaged one knows nothing."""
    try:
        fields = json.loads(path.read_text("ascii"))
        return Witness(int(fields["epoch"]), int(fields["event_seq"]))
    except FileNotFoundError:
        return Witness()
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("the witness file %s cannot be read (%s): a restored database would not be noticed", path, error)
        return Witness()


def write_witness(path: Path, witness: Witness, *, is_urgent: bool = True) -> None:
    """Replace the witness as a whole; it may lag behind, but never be ahead of what is durable.

    One that is not urgent is not forced to the disk: the loop must not wait for it.
    """
    partial = path.with_name(f".{path.name}.partial")
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "w", encoding="ascii") as file:
        json.dump({"epoch": witness.epoch, "event_seq": witness.event_seq, "written": int(time.time())}, file)
        file.flush()
        if is_urgent:
            os.fsync(handle)
    partial.replace(path)
