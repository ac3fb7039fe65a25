"""Due times by kind and key in one heap: leases, backoffs, deadlines, cooldowns. Pure."""

import heapq
from collections.abc import Hashable
from enum import StrEnum

_SLACK_ENTRIES = 64  # stale heap entries kept before the heap is rebuilt


class Timer(StrEnum):
    """What becomes due."""

    LEASE = "lease"  # key: attempt uid
    NOT_BEFORE = "not_before"  # key: task id
    DEADLINE = "deadline"  # key: task id
    QUEUE_TIMEOUT = "queue_timeout"  # key: task id; the wait for its first attempt is over
    OVERFLOW = "overflow"  # key: task id; a rule's wait for a preferred worker is over
    COOLDOWN = "cooldown"  # key: worker id
    SILENCE = "silence"  # key: worker id
    ENROLMENT = "enrolment"  # key: public key
    MIN_WORKERS = "min_workers"  # key: ""
    LOOK_AGAIN = "look_again"  # key: ""; a task does better to wait for a busy worker, as things stood
    ALERT = "alert"  # key: its code; what happened once is told for so long
    MEASURE = "measure"  # key: ""; how fast the workers are is to be worked out again


class Timers:
    """At most one due time a (kind, key). Putting one off is cheap: the heap learns of it when it pops."""

    def __init__(self) -> None:
        self._due_s: dict[tuple[Timer, Hashable], float] = {}
        self._heap: list[tuple[float, int, tuple[Timer, Hashable]]] = []
        self._pushed = 0

    def __len__(self) -> int:
        return len(self._due_s)

    @property
    def next_s(self) -> float | None:
        """When to look again; never later than the first due time, perhaps earlier."""
        while self._heap and self._due_s.get(self._heap[0][2]) is None:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def due_s(self, kind: Timer, key: Hashable) -> float | None:
        """When this is due, if it is set."""
        return self._due_s.get((kind, key))

    def set(self, kind: Timer, key: Hashable, due_s: float) -> None:
        """Set or move one due time."""
        name = (kind, key)
        before = self._due_s.get(name)
        self._due_s[name] = due_s
        # An entry that pops too early is pushed again by `pop_due`: a renewed lease costs no heap work.
        if before is None or due_s < before:
            self._push(due_s, name)

    def drop(self, kind: Timer, key: Hashable) -> None:
        """Forget it, if it was set."""
        self._due_s.pop((kind, key), None)
        if len(self._heap) > 2 * len(self._due_s) + _SLACK_ENTRIES:
            self._heap = []
            for name, due_s in self._due_s.items():
                self._push(due_s, name)

    def pop_due(self, now_s: float) -> tuple[Timer, Hashable] | None:
        """The first that is due, removed; None when nothing is."""
        while self._heap and self._heap[0][0] <= now_s:
            _, _, name = heapq.heappop(self._heap)
            due_s = self._due_s.get(name)
            if due_s is None:
                continue
            if due_s > now_s:
                self._push(due_s, name)
                continue
            del self._due_s[name]
            return name
        return None

    def stretch(self, kind: Timer, gap_s: float) -> None:
        """Put off all of one kind."""
        for name in self._due_s:
            if name[0] is kind:
                self._due_s[name] += gap_s

    def _push(self, due_s: float, name: tuple[Timer, Hashable]) -> None:
        self._pushed += 1
        heapq.heappush(self._heap, (due_s, self._pushed, name))
