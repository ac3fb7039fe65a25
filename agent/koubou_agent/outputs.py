"""What the models said, on its way to the broker: kept by the spool, inside a Result where small, else in pieces."""

import dataclasses
import hashlib
import logging
from collections.abc import Iterable

from koubou_agent.effects import Outcome, Success
from koubou_agent.spool import Spool
from koubou_common.codec import encode
from koubou_common.errors import ErrorClass
from koubou_common.messages import BlobChunk, BlobGet, BlobMissing, Failure, Result
from koubou_common.messages.limits import CHUNK_BYTES, INLINE_BYTES

_FRAME_BYTES = 16  # what msgpack adds around a body

_log = logging.getLogger("koubou_agent")


class Outputs:
    """The loop's side of the spool."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._fresh: dict[str, bytes] = {}  # between an attempt's end and the spool
        self._uids: dict[bytes, set[str]] = {}  # attempts by the digest of what was said

    def loaded(self, outcomes: Iterable[Outcome]) -> None:
        """What the spool held at the start."""
        for outcome in outcomes:
            self._index(outcome)

    def take(self, uid: str, raw: bytes) -> None:
        """An attempt brought this text; `keep` follows if the core wants it, `settle` in any case."""
        self._fresh[uid] = raw

    def settle(self, uid: str) -> None:
        """The core has decided: a text it did not keep is gone."""
        self._fresh.pop(uid, None)

    def keep(self, outcome: Outcome) -> str:
        """Write to the spool; the problem in a person's words, "" if there is none."""
        uid = outcome.attempt_uid
        raw = self._fresh.get(uid)
        if raw is None:
            raw = self._spool.raw_of(uid) or b""
        self._index(outcome)
        try:
            self._spool.write(outcome, raw)
        except OSError as error:
            return f"this box cannot keep results: {error.strerror or error} ({self._spool.folder})"
        return ""

    def delete(self, uid: str) -> None:
        """The broker has it."""
        try:
            self._spool.delete(uid)
        except OSError as error:  # it will be delivered once more after a restart, which changes nothing
            _log.warning("attempt=%s stays in the spool: %s", uid, error)
        for sha256 in [sha256 for sha256, uids in self._uids.items() if uid in uids]:
            self._uids[sha256].discard(uid)
            if not self._uids[sha256]:
                del self._uids[sha256]

    def attach(self, message: Result) -> Result | Failure:
        """The result with its text inside while the whole stays small; a text that is lost is a failure."""
        raw = self._spool.raw_of(message.attempt_uid)
        if raw is None or hashlib.sha256(raw).digest() != message.raw.sha256:
            return Failure(
                attempt_uid=message.attempt_uid,
                error_class=ErrorClass.AGENT_ERROR,
                message="the answer was damaged on the disk of the agent's box",
                metrics=message.metrics,
                log=message.log,
                status=message.status,
            )
        if len(encode(message)) + len(raw) + _FRAME_BYTES >= INLINE_BYTES:
            return message
        return dataclasses.replace(message, raw=dataclasses.replace(message.raw, inline=raw))

    def chunk(self, message: BlobGet) -> BlobChunk | BlobMissing:
        """One piece of a text in the spool."""
        for uid in self._uids.get(message.sha256, ()):
            raw = self._spool.raw_of(uid)
            start = message.index * CHUNK_BYTES
            if raw is not None and (start < len(raw) or start == 0):
                return BlobChunk(message.sha256, message.index, raw[start : start + CHUNK_BYTES])
        return BlobMissing(message.sha256)

    def _index(self, outcome: Outcome) -> None:
        if isinstance(outcome, Success):
            self._uids.setdefault(outcome.raw.sha256, set()).add(outcome.attempt_uid)
