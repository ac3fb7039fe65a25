"""What each principal made the broker store without a task that needs it: kept for a day, so it has a bound. Pure.

It counts at most too much: what a repeated submission brings once more is counted until it has aged.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from koubou_broker.batches import NewBlob
from koubou_broker.effects import Effect, Lookup, Save, Send
from koubou_broker.records import NewTask
from koubou_common.messages import PartStaged

AGE_S = 86_400.0  # the sweep removes unreferenced blobs after this (retention)
ROW_BYTES = 4_096  # a blob counts as this much at least: its rows take room too


@dataclass(slots=True)
class _Brought:
    """One principal's, oldest first."""

    blobs: OrderedDict[bytes, tuple[int, float]] = field(default_factory=OrderedDict)  # sha256 -> size, since when
    bytes: int = 0


class Uploads:
    """Blobs without a task, by who sent them."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._of: dict[str, _Brought] = {}

    def brought(self, who: str, sha256: bytes, size_bytes: int, now_s: float) -> None:
        """A blob goes to the store, and nothing needs it yet."""
        mine = self._of.setdefault(who, _Brought())
        if sha256 in mine.blobs:
            return
        size_bytes = max(size_bytes, ROW_BYTES)
        mine.blobs[sha256] = size_bytes, now_s
        mine.bytes += size_bytes

    def needed(self, who: str, hashes: Iterable[bytes]) -> None:
        """A task of its sender names these."""
        mine = self._of.get(who)
        if mine is None:
            return
        for sha256 in hashes:
            size_bytes, _ = mine.blobs.pop(sha256, (0, 0.0))
            mine.bytes -= size_bytes
        if not mine.blobs:
            del self._of[who]

    def follow(self, who: str, effects: Sequence[Effect], new: Iterable[NewBlob], now_s: float) -> None:
        """Bodies that are stored before a task needs them are counted until one does."""
        tasks = [
            record for one in effects if isinstance(one, Save) for record in one.records if isinstance(record, NewTask)
        ]
        if tasks:
            for task in tasks:
                self.needed(who, (task.prompt.sha256, *(file.body.sha256 for file in task.files)))
        elif keeps_blobs(effects):
            for blob in new:
                self.brought(who, blob.sha256, len(blob.data), now_s)

    def held_bytes(self, who: str, now_s: float) -> int:
        """What is stored for a principal and nothing needs."""
        mine = self._of.get(who)
        if mine is None:
            return 0
        while mine.blobs:
            sha256, (size_bytes, since_s) = next(iter(mine.blobs.items()))
            if now_s - since_s < AGE_S:
                return mine.bytes
            del mine.blobs[sha256]
            mine.bytes -= size_bytes
        del self._of[who]
        return 0

    def refusal(self, who: str, more_bytes: int, now_s: float) -> str:
        """Why so much more is not taken from a principal; empty: it is."""
        have_bytes = self.held_bytes(who, now_s)
        if have_bytes + more_bytes <= self.most_bytes:
            return ""
        return (
            f"{have_bytes:,} bytes that you sent belong to no accepted task, and {more_bytes:,} would come;"
            f" the limit unreferenced_bytes_per_client is {self.most_bytes:,}"
        )


def keeps_blobs(effects: Iterable[Effect]) -> bool:
    """Whether a message's bodies are to be stored although it brought no task.

    A refused message's bodies are not worth a byte; a question to the store, or a part of a submission, may yet lead
    to tasks that need them.
    """
    return any(
        isinstance(one, Lookup) or (isinstance(one, Send) and isinstance(one.message, PartStaged)) for one in effects
    )
