"""Who is served next: each principal waits in a line of its own, and who used least lately goes first. Pure.

So a flood waits behind itself. Who used much is served within what is left to all such: the loop must rest in between,
or the threads and processors that everybody else's answers need would be late. Nobody starves: use is forgotten within
seconds.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from koubou_common.messages.limits import MIB

LINE_MESSAGES = 2_000  # in one line: several times what a well-behaved client has unanswered
LINE_BYTES = 16 * MIB  # the same in bytes: the pieces that eight uploads are asked for ahead
REMEMBER_S = 0.5  # use counts for e^-1 of itself after this
MUCH = 0.15  # of a processor's time: more is much; no client of ours comes near it with tasks that take a second
MUCH_TOGETHER = 0.25  # of a processor's time: all that those who used much get together
PRESENT_S = 1.0  # for so long after its last message somebody who used little is expected to send another

Item = TypeVar("Item")


@dataclass(slots=True)
class _Line(Generic[Item]):
    """What one principal sent and is not looked at yet."""

    waiting: deque[tuple[Item, int]] = field(default_factory=deque)
    bytes: int = 0


@dataclass(slots=True)
class _Use:
    """Time that a principal's messages took, as it counts at `at_s`."""

    used_s: float
    at_s: float

    def at(self, now_s: float) -> float:
        return self.used_s * math.exp((self.at_s - now_s) / REMEMBER_S)


class Shares(Generic[Item]):
    """The lines of all principals, and what each has used."""

    def __init__(self, *, messages: int = LINE_MESSAGES, size_bytes: int = LINE_BYTES) -> None:
        self._messages = messages
        self._bytes = size_bytes
        self._lines: dict[str, _Line[Item]] = {}  # none is empty
        self._uses: dict[str, _Use] = {}
        self._much = _Use(0.0, 0.0)  # of all who had used much
        self._heard: dict[str, float] = {}  # when each last sent something whose answer somebody waits for
        self._round: Iterator[str] = iter(())

    def add(self, who: str, item: Item, size_bytes: int) -> bool:
        """To the end of its line; False if that is full."""
        line = self._lines.get(who)
        if line is None:
            line = self._lines[who] = _Line()
        elif len(line.waiting) >= self._messages or line.bytes + size_bytes > self._bytes:
            return False
        line.waiting.append((item, size_bytes))
        line.bytes += size_bytes
        return True

    def heard(self, who: str, now_s: float) -> None:
        """It sent something, and somebody waits for the answer."""
        self._heard[who] = now_s

    def has_light(self, now_s: float) -> bool:
        """Whether anybody is there who would wait behind those who used much; if not, nobody gains by their rest."""
        for who in [who for who, heard_s in self._heard.items() if now_s - heard_s > PRESENT_S]:
            del self._heard[who]
        return any(not self.has_used_much(who, now_s) for who in self._heard)

    def begin_round(self, now_s: float) -> None:
        """One of each line is next, who used least first; who comes meanwhile is in the next round."""
        for who in [who for who, use in self._uses.items() if now_s - use.at_s > 10 * REMEMBER_S]:
            del self._uses[who]
        # Equal use keeps the order in which the lines began.
        self._round = iter(sorted(self._lines, key=lambda who: self.used_s(who, now_s)))

    def next(self, may_go: Callable[[str], bool]) -> tuple[str, Item] | None:
        """The next in this round of those who may go; None: the round is over."""
        for who in self._round:
            line = self._lines.get(who)
            if line is None or not may_go(who):
                continue
            item, size_bytes = line.waiting.popleft()
            line.bytes -= size_bytes
            if not line.waiting:
                del self._lines[who]
            return who, item
        return None

    def charge(self, who: str, took_s: float, now_s: float) -> None:
        """Its message took so long."""
        if self.has_used_much(who, now_s):
            self._much = _Use(self._much.at(now_s) + took_s, now_s)
        self._uses[who] = _Use(self.used_s(who, now_s) + took_s, now_s)

    def has_used_much(self, who: str, now_s: float) -> bool:
        """Whether a principal used more than its share lately."""
        return self.used_s(who, now_s) > MUCH * REMEMBER_S

    def rest_s(self, who: str, now_s: float) -> float:
        """How long a principal has to wait until it may be served; 0: not at all."""
        most_s = MUCH_TOGETHER * REMEMBER_S
        used_s = self._much.at(now_s)
        if used_s <= most_s or not self.has_used_much(who, now_s):
            return 0.0
        return REMEMBER_S * math.log(used_s / most_s)

    def used_s(self, who: str, now_s: float) -> float:
        """What a principal has used lately."""
        use = self._uses.get(who)
        return use.at(now_s) if use else 0.0

    def waiting(self) -> dict[str, int]:
        """How many messages wait, by principal."""
        return {who: len(line.waiting) for who, line in self._lines.items()}

    def can_go(self, may_go: Callable[[str], bool]) -> bool:
        """Whether anything could be served now."""
        return any(may_go(who) for who in self._lines)
