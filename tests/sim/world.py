"""Virtual time, and a network that loses, doubles, delays and partitions by a seed."""

import heapq
import random
import re
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import InitVar, dataclass, field

from sim.faults import Faults
from sim.habits import Habits

Action = Callable[[], None]

_ENDLESS_MESSAGES = 200_000  # of one run: most have some thousand

START_S = 1_000.0  # of the virtual clock
_TRACE_LINES = 50_000  # of the last things that happened, for the story of a failure
_LINE_CHARS = 400


@dataclass(slots=True)
class World:
    """Events in the order of their time; everything random comes from one seed."""

    seed: int
    given: InitVar[Faults | None] = None  # what goes wrong, in the place of what the seed would draw
    faults: Faults = field(init=False)
    habits: Habits = field(init=False)
    draws: random.Random = field(init=False)
    now_s: float = START_S
    wall_offset_ms: int = 1_800_000_000_000
    healed: bool = False
    messages: int = 0
    fault_count: int = 0
    _trace: deque[tuple[float, str, object]] = field(default_factory=lambda: deque(maxlen=_TRACE_LINES))
    _events: list[tuple[float, int, Action]] = field(default_factory=list)
    _scheduled: int = 0
    _partitioned: dict[str, float] = field(default_factory=dict)  # node -> until

    def __post_init__(self, given: Faults | None) -> None:
        self.draws = random.Random(self.seed)
        drawn = Faults.draw(self.draws)
        self.faults = given or drawn
        self.habits = Habits.of_seed(self.seed) if self.faults.has_habits else Habits()

    @property
    def wall_ms(self) -> int:
        """The wall clock, which may jump."""
        return self.wall_offset_ms + int(self.now_s * 1000)

    def after(self, delay_s: float, action: Action) -> None:
        """Do it later."""
        self._scheduled += 1
        heapq.heappush(self._events, (self.now_s + delay_s, self._scheduled, action))

    def run(self, until_s: float, is_over: Callable[[], bool]) -> None:
        """Let time pass until all is over."""
        while self._events and self._events[0][0] <= until_s:
            if is_over():
                return
            self.now_s, _, action = heapq.heappop(self._events)
            action()
        self.now_s = max(self.now_s, until_s)

    def note(self, line: str, what: object = None) -> None:
        """Remember what happened; `what` is made a text only when somebody reads it."""
        self._trace.append((self.now_s, line, what))

    def fault(self, line: str) -> None:
        """Remember that something went wrong."""
        self.fault_count += 1
        self.note(line)

    @property
    def trace(self) -> list[str]:
        """The last things that happened, oldest first."""
        return list(self._lines())

    def about(self, task_id: int, uids: Iterable[str] = ()) -> list[str]:
        """What happened to one task: the lines that name it, or one of its attempts."""
        named = [rf"task_ids?=\(?(\d+, )*{task_id}\b", rf"\btasks? {task_id}\b", *map(re.escape, uids)]
        pattern = re.compile("|".join(named))
        return [line for line in self._lines(most_chars=20 * _LINE_CHARS) if pattern.search(line)]

    def draw_s(self, mean_s: float) -> float:
        """A time around a mean, sometimes much longer."""
        return self.draws.expovariate(1 / mean_s)

    def happens(self, share: float) -> bool:
        """Whether a fault of this share strikes here; never in a healed world."""
        return not self.healed and share > 0 and self.draws.random() < share

    def deliver(self, node: str, arrive: Action) -> None:
        """A message between the broker and `node`, either way: it may be lost, doubled, late."""
        self.messages += 1
        assert self.messages < _ENDLESS_MESSAGES, "messages without end: peers answer each other and get nowhere"
        faults = self.faults
        if not self.healed:
            if self.is_cut_off(node) or self.draws.random() < faults.loss:
                self.fault_count += 1
                return
            if self.draws.random() < faults.doubling:
                self.fault_count += 1
                self.after(self.latency_s(), arrive)
        self.after(self.latency_s(), arrive)

    def latency_s(self) -> float:
        """Of one message."""
        return self.draw_s(0.001 if self.healed else self.faults.latency_s)

    def every(self, mean_s: float, action: Action) -> None:
        """Do it again and again at random times, until the world is healed; 0: never."""
        if not mean_s:
            return

        def again() -> None:
            if self.healed:
                return
            self.fault_count += 1
            action()
            self.after(self.draw_s(mean_s), again)

        self.after(self.draw_s(mean_s), again)

    def partition(self, node: str) -> None:
        """Cut a node off for a while, without anybody being told."""
        length_s = self.draws.choice((3.0, 20.0, 60.0, 200.0))
        self.note(f"{node} is cut off for {length_s:g} s")
        self._partitioned[node] = self.now_s + length_s

    def is_cut_off(self, node: str) -> bool:
        """Whether nothing gets to this node, or from it."""
        return self.now_s < self._partitioned.get(node, 0.0)

    def jump_clock(self) -> None:
        """What NTP, or a person, does to the wall clock."""
        jump_ms = self.draws.randint(-3_600_000, 3_600_000)
        self.note(f"the wall clock jumps by {jump_ms / 1000:.0f} s")
        self.wall_offset_ms += jump_ms

    def heal(self) -> None:
        """From now on nothing goes wrong: everything must end."""
        self.healed = True
        self._partitioned.clear()
        self.note("healed")

    def _lines(self, most_chars: int = _LINE_CHARS) -> Iterable[str]:
        for at_s, line, what in self._trace:
            text = line if what is None else f"{line}{what!r:.{most_chars}}"
            yield f"{at_s - START_S:9.3f} {text}"
