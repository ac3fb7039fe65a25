"""Outcomes on disk until the broker has stored them: one file each, written whole or not at all."""

import hashlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path

from koubou_agent.effects import Failed, Outcome, Success
from koubou_common import durable
from koubou_common.codec import CodecError, pack, unpack

_MAGIC = b"koubou-outcome-1\n"
_LENGTH_BYTES = 8
_DIGEST_BYTES = 32
_SUFFIX = ".outcome"
_PARTIAL = ".partial"
_UID_DIGITS = frozenset("0123456789abcdef")
_UID_CHARS = 32

_log = logging.getLogger("koubou_agent")


class Spool:
    """One folder of outcomes; used by one thread, except `raw_of`, which only reads.

    A file holds the record and, beside it, all the model said, under one checksum. It appears by a rename
    after fsync of file and folder, so that a crash leaves an outcome whole or not at all.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._in_memory: dict[str, bytes] = {}  # raw texts that the disk refused
        durable.make_folder(folder)

    def load(self) -> list[Outcome]:
        """Every outcome kept from earlier runs, oldest first; damaged files are set aside, never deleted."""
        found: list[tuple[int, str, Outcome]] = []
        for path in sorted(self.folder.iterdir()):
            if path.name.endswith(_PARTIAL):
                path.unlink(missing_ok=True)  # its write was never confirmed to anybody
            elif path.suffix == _SUFFIX:
                try:
                    outcome, _ = _read(path)
                    found.append((path.stat().st_mtime_ns, path.name, outcome))
                except (OSError, CodecError) as error:
                    self._quarantine(path, error)
        return [outcome for _, _, outcome in sorted(found, key=lambda item: item[:2])]

    def write(self, outcome: Outcome, raw: bytes) -> None:
        """Make an outcome durable; OSError when the disk refuses, and then its text is held in memory."""
        uid = outcome.attempt_uid
        path = self._path(uid)
        partial = path.with_name(path.name + _PARTIAL)
        record = pack(_record(outcome))
        body = _MAGIC + len(record).to_bytes(_LENGTH_BYTES, "big") + record + raw
        try:
            with open(partial, "wb", opener=durable.private) as file:
                file.write(body)
                file.write(hashlib.sha256(body).digest())
                file.flush()
                os.fsync(file.fileno())
            durable.replace(partial, path)
        except OSError:
            self._in_memory[uid] = raw
            partial.unlink(missing_ok=True)
            raise
        self._in_memory.pop(uid, None)

    def raw_of(self, uid: str) -> bytes | None:
        """All the model said in that attempt; None when it is not here or damaged."""
        held = self._in_memory.get(uid)
        if held is not None:
            return held
        try:
            return _read(self._path(uid))[1]
        except FileNotFoundError:
            return None
        except (OSError, CodecError) as error:
            self._quarantine(self._path(uid), error)
            return None

    def delete(self, uid: str) -> None:
        """Forget an outcome. No fsync: if it comes back after a crash, it is delivered once more."""
        self._in_memory.pop(uid, None)
        self._path(uid).unlink(missing_ok=True)

    def _path(self, uid: str) -> Path:
        # The uid came over the wire: as a file name it is exactly what the broker makes, or nothing.
        if not is_uid(uid):
            raise ValueError(f"not an attempt's uid: {uid!r}")
        return self.folder / f"{uid}{_SUFFIX}"

    def _quarantine(self, path: Path, error: Exception) -> None:
        _log.error("spool: %s is damaged and set aside as %s.damaged: %s", path.name, path.name, error)
        try:
            path.replace(path.with_name(path.name + ".damaged"))
        except OSError as problem:
            _log.error("spool: %s could not be set aside: %s", path.name, problem)


def is_uid(text: str) -> bool:
    """Whether `text` is an attempt's uid as a broker makes it."""
    return len(text) == _UID_CHARS and set(text) <= _UID_DIGITS


@dataclass(frozen=True, slots=True)
class _Record:
    """One outcome as packed: which of the two it is must be readable."""

    success: Success | None = None
    failed: Failed | None = None


def _record(outcome: Outcome) -> _Record:
    return _Record(success=outcome) if isinstance(outcome, Success) else _Record(failed=outcome)


def _read(path: Path) -> tuple[Outcome, bytes]:
    data = path.read_bytes()
    body, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    start = len(_MAGIC) + _LENGTH_BYTES
    if not body.startswith(_MAGIC) or len(body) < start or hashlib.sha256(body).digest() != digest:
        raise CodecError("checksum or form does not fit")
    length = int.from_bytes(body[len(_MAGIC) : start], "big")
    record: _Record = unpack(body[start : start + length], _Record)
    outcome = record.success or record.failed
    if outcome is None:
        raise CodecError("holds no outcome")
    if path.name != f"{outcome.attempt_uid}{_SUFFIX}":
        raise CodecError(f"holds the outcome of {outcome.attempt_uid}")
    return outcome, body[start + length :]
