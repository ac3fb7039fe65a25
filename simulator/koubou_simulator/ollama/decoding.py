"""From tokens to text as the runner does it: letters completed, stop strings cut, limits kept, loops given up."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from .engine import Piece

_EQUAL_TOKENS: Final = 30  # Ollama gives up on the 31st repetition


class Ending(StrEnum):
    STOP = "stop"
    LENGTH = "length"
    LOOP = "loop"  # no proper end: the answer just breaks off


@dataclass(frozen=True, slots=True)
class Said:
    """Text that goes out now, if any, and the end, if this is it."""

    text: str = ""
    thinking: bool = False
    ending: Ending | None = None


class Decoder:
    """One answer in the making; `room` is how many tokens fit where the window may not shift."""

    def __init__(self, stops: Sequence[str], num_predict: int, room: int | None) -> None:
        self.eval_count = 0
        self._stops = [stop.encode("utf-8", "replace") for stop in stops if stop]
        # Zero means no limit here: that is the recorded behaviour, and why nobody should send it.
        self._limit = num_predict if num_predict > 0 else None
        self._room = room
        self._pending: list[bytes] = []
        self._pending_thinking = False
        self._last = ""
        self._equal = 0

    def take(self, piece: Piece | None) -> list[Said]:
        """The next token, None for the model's end token."""
        self.eval_count += 1
        if piece is None:
            return self._end(Ending.STOP)
        said: list[Said] = []
        if piece.thinking != self._pending_thinking:
            said += self._flush()
            self._pending_thinking = piece.thinking
        # The runner passes pieces on as C strings: a NUL byte is an empty one.
        self._pending.append(b"" if piece.data == b"\0" else piece.data)
        if self._limit is not None and self.eval_count >= self._limit:
            return said + self._end(Ending.LENGTH)
        joined = b"".join(self._pending)
        stop = next((stop for stop in self._stops if stop in joined), None)
        if stop is not None:
            self._pending = [joined[: joined.index(stop)]]
            return said + self._end(Ending.STOP)
        if self._room is not None and self.eval_count >= self._room:
            return said + self._end(Ending.LENGTH)
        if self._may_begin_a_stop(joined) or _cut_letter(joined):
            return said
        said += self._flush()
        return said

    def _end(self, ending: Ending) -> list[Said]:
        said = self._flush()
        if said and said[-1].ending is not None:
            return said
        return [*said, Said(ending=ending)]

    def _flush(self) -> list[Said]:
        joined, self._pending = b"".join(self._pending), []
        text = _longest_text(joined)
        if not text:
            return []
        # Equal tokens are counted as the server sees them: trimmed, after letters were put together.
        trimmed = text.strip()
        self._equal = self._equal + 1 if trimmed == self._last else 0
        self._last = trimmed
        if self._equal > _EQUAL_TOKENS:
            return [Said(ending=Ending.LOOP)]
        return [Said(text, self._pending_thinking)]

    def _may_begin_a_stop(self, joined: bytes) -> bool:
        return any(joined.endswith(stop[:size]) for stop in self._stops for size in range(1, len(stop) + 1))


def _cut_letter(joined: bytes) -> bool:
    """Does it end inside a letter of several bytes?"""
    for back in range(1, min(4, len(joined)) + 1):
        byte = joined[-back]
        if byte & 0xC0 == 0x80:
            continue
        needed = 2 if byte & 0xE0 == 0xC0 else 3 if byte & 0xF0 == 0xE0 else 4 if byte & 0xF8 == 0xF0 else 1
        return needed > back
    return False


def _longest_text(joined: bytes) -> str:
    """What is valid from the start; bytes after the first that is no text are dropped in silence."""
    try:
        return joined.decode()
    except UnicodeDecodeError as error:
        return joined[: error.start].decode()
