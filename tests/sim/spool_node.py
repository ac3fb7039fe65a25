"""An agent's spool on its disk: a file is written, forced out, renamed, its folder forced out; a crash at any step."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from koubou_agent.effects import Outcome
from koubou_common.messages import BlobChunk, BlobGet, BlobMissing, Result
from koubou_common.messages.limits import CHUNK_BYTES, INLINE_BYTES
from sim.world import World

_FRAME_BYTES = 16_384  # more than a Result takes around its text


@dataclass(frozen=True, slots=True)
class Kept:
    """One outcome, and all the model said."""

    outcome: Outcome
    raw: bytes


@dataclass(slots=True)
class SpoolDisk:
    """`files` is what a process sees; `_durable` what a power cut leaves."""

    world: World
    files: dict[str, Kept] = field(default_factory=dict)
    _durable: dict[str, Kept] = field(default_factory=dict)

    def rename(self, kept: Kept) -> None:
        """The file, forced out before, gets its name; the folder is not forced out yet."""
        self.files[kept.outcome.attempt_uid] = kept

    def sync_folder(self, uid: str) -> None:
        """The name stays across a power cut."""
        if uid in self.files:
            self._durable[uid] = self.files[uid]

    def delete(self, uid: str) -> Kept | None:
        """Take the file away; nothing is forced out, so that a power cut may bring it back."""
        kept = self.files.pop(uid, None)
        if uid in self._durable and self.world.draws.random() < 0.5:
            del self._durable[uid]  # the kernel writes the folder out sooner or later
        return kept

    def lose_all(self) -> None:
        """There never was a spool."""
        self.files = {}
        self._durable = {}

    def power_cut(self) -> None:
        """What was not forced out is there or is not, as it happens."""
        left = dict(self._durable)
        for uid, kept in self.files.items():
            if uid not in left and self.world.draws.random() < 0.5:
                left[uid] = kept
        self.files = left
        self._durable = dict(left)

    def piece(self, message: BlobGet, fresh: Mapping[str, bytes]) -> BlobChunk | BlobMissing:
        """One piece of what was said in an attempt; `fresh`: what is not written yet."""
        held = (kept.raw for kept in self.files.values())
        for raw in (*held, *fresh.values()):
            if hashlib.sha256(raw).digest() == message.sha256:
                start = message.index * CHUNK_BYTES
                return BlobChunk(message.sha256, message.index, raw[start : start + CHUNK_BYTES])
        return BlobMissing(message.sha256)

    def with_text(self, message: Result, fresh: Mapping[str, bytes]) -> Result:
        """The result with its text inside, where that is small."""
        uid = message.attempt_uid
        raw = self.files[uid].raw if uid in self.files else fresh.get(uid)
        if raw is None or len(raw) >= INLINE_BYTES - _FRAME_BYTES:
            return message
        return replace(message, raw=replace(message.raw, inline=raw))
