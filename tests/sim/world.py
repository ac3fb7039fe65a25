"""Virtual time, and a network that loses, doubles, delays and partitions by a seed."""

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field

Action = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Faults:
    """What goes wrong in a run. Each seed draws its own rates, 0 included: constant trouble hides bugs."""

    loss: float
    doubling: float
    latency_s: float  # mean; messages overtake each other by it
    broker_crash_every_s: float  # 0: never
    agent_crash_every_s: float
    client_crash_every_s: float
    partition_every_s: float
    commit_s: float  # mean time of a commit
    spool_full: float  # share of spool writes that the disk refuses
    clock_jumps: bool  # the wall clock jumps by up to an hour

    @classmethod
    def draw(cls, draws: random.Random) -> "Faults":
        """Rates for one seed."""

        def some(*values: float) -> float:
            return draws.choice(values)

        return cls(
            loss=some(0.0, 0.0, 0.02, 0.1, 0.3),
            doubling=some(0.0, 0.0, 0.05, 0.2),
            latency_s=some(0.001, 0.02, 0.3, 2.0),
            broker_crash_every_s=some(0.0, 0.0, 60.0, 200.0, 600.0),
            agent_crash_every_s=some(0.0, 0.0, 60.0, 150.0, 500.0),
            client_crash_every_s=some(0.0, 100.0, 300.0),
            partition_every_s=some(0.0, 0.0, 120.0, 400.0),
            commit_s=some(0.001, 0.02, 0.5),
            spool_full=some(0.0, 0.0, 0.0, 0.2),
            clock_jumps=draws.random() < 0.3,
        )


@dataclass(slots=True)
class World:
    """Events in the order of their time; everything random comes from one seed."""

    seed: int
    draws: random.Random = field(init=False)
    faults: Faults = field(init=False)
    now_s: float = 1_000.0
    wall_offset_ms: int = 1_800_000_000_000
    healed: bool = False
    messages: int = 0
    fault_count: int = 0
    trace: list[str] = field(default_factory=list)
    _events: list[tuple[float, int, Action]] = field(default_factory=list)
    _scheduled: int = 0
    _partitioned: dict[str, float] = field(default_factory=dict)  # node -> until

    def __post_init__(self) -> None:
        self.draws = random.Random(self.seed)
        self.faults = Faults.draw(self.draws)

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

    def note(self, line: str) -> None:
        """Keep the last lines for a failure's message."""
        self.trace.append(f"{self.now_s - 1_000:9.3f} {line}")
        if len(self.trace) > 4_000:
            del self.trace[:2_000]

    def deliver(self, node: str, arrive: Action) -> None:
        """A message between the broker and `node`, either way: it may be lost, doubled, late."""
        self.messages += 1
        faults = self.faults
        if not self.healed:
            if self.now_s < self._partitioned.get(node, 0.0) or self.draws.random() < faults.loss:
                self.fault_count += 1
                return
            if self.draws.random() < faults.doubling:
                self.fault_count += 1
                self.after(self.latency_s(), arrive)
        self.after(self.latency_s(), arrive)

    def latency_s(self) -> float:
        """Of one message."""
        mean = 0.001 if self.healed else self.faults.latency_s
        return self.draws.expovariate(1 / mean)

    def every(self, mean_s: float, action: Action) -> None:
        """Do it again and again at random times, until the world is healed; 0: never."""
        if not mean_s:
            return

        def again() -> None:
            if self.healed:
                return
            self.fault_count += 1
            action()
            self.after(self.draws.expovariate(1 / mean_s), again)

        self.after(self.draws.expovariate(1 / mean_s), again)

    def partition(self, node: str) -> None:
        """Cut a node off for a while, without anybody being told."""
        length_s = self.draws.choice((3.0, 20.0, 60.0, 200.0))
        self.note(f"{node} is cut off for {length_s:g} s")
        self._partitioned[node] = self.now_s + length_s

    def jump_clock(self) -> None:
        """What NTP, or a person, does to the wall clock."""
        self.wall_offset_ms += self.draws.randint(-3_600_000, 3_600_000)

    def heal(self) -> None:
        """From now on nothing goes wrong: everything must end."""
        self.healed = True
        self._partitioned.clear()
