"""Ready tasks in lanes by what they need, so that a dispatch costs the same however many wait. Pure."""

import heapq
import math
from bisect import bisect_left
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import islice

HIGH = 8  # from this priority on a task is for people who wait now: it does not age, nothing overtakes it
AGED_MOST = HIGH - 1  # waiting raises a task's effective priority so far and no further
_PRIORITIES = 10
_SLACK_ENTRIES = 64  # stale entries kept before a heap is rebuilt
_LOOKED_AT = 16  # beginnings of prompts that are counted as waiting: of more, what is made of it is the same


@dataclass(frozen=True, slots=True)
class Need:
    """What decides where a task may go: tasks with equal needs wait in one lane.

    What only weighs one worker against another is not compared: else every batch would open lanes of its own.
    """

    model: str  # normal spelling; empty: the worker's default model
    rule: int  # index of the routing rule; -1: none
    task_type: str = field(compare=False)  # empty when no worker claims it as a capability
    avoid: str  # the worker that failed last; only if nobody else is eligible
    unfit: frozenset[str]  # worker_ids that cannot run it, whatever happens to them
    digest: str = ""  # the version of the model that its worker must have; empty: any
    prefix: str = field(default="", compare=False)  # how its prompt begins, in short; empty: like no other
    prefix_bytes: int = field(default=0, compare=False)  # how much that is
    prompt_bytes: int = field(default=0, compare=False)  # about how much the model reads; 0: nobody said
    doubtful: frozenset[str] = field(default=frozenset(), compare=False)  # worker_ids whose window may be too small


@dataclass(frozen=True, slots=True)
class Head:
    """The next task of a lane."""

    task_id: int
    priority: int  # as submitted
    effective: int  # raised by waiting
    since_s: float  # it waits since then
    need: Need

    @property
    def place(self) -> tuple[int, float, int]:
        """Its place in the order: the smallest goes first."""
        return -self.effective, self.since_s, self.task_id


@dataclass(frozen=True, slots=True)
class Follower:
    """A task that begins like one that was read before, and behind the next one of its lane."""

    head: Head
    others: int  # prompts that begin in other ways and wait for longer, as far as was counted


@dataclass(slots=True)
class _Alike:
    """Tasks of one lane whose prompts begin alike."""

    size: int = 0
    entries: list[tuple[float, int]] = field(default_factory=list)  # a heap; some have gone


@dataclass(slots=True, eq=False)
class _Lane:
    """Tasks of one need and one priority: whoever waits longest is first, whatever age adds."""

    need: Need
    priority: int
    size: int = 0
    work_s: float = 0.0
    is_aside: bool = False  # passed over until `look_again`
    entries: list[tuple[float, int]] = field(default_factory=list)  # a heap; some have gone
    alike: dict[str, _Alike] = field(default_factory=dict)  # by prefix, where there is one; who came first is first


@dataclass(frozen=True, slots=True)
class _Waiting:
    lane: _Lane
    need: Need
    since_s: float
    work_s: float


_Rank = tuple[float, int, int, _Lane]  # since, task id, a number of its own, lane


class ReadyQueue:
    """Higher effective priority first, then who waits longer, then the lower task id. Removal is lazy."""

    def __init__(self, aging_s: float = 0.0) -> None:
        """`aging_s`: waiting so long raises the effective priority by 1; 0: never."""
        self._aging_s = aging_s
        self._tasks: dict[int, _Waiting] = {}
        self._lanes: dict[tuple[Need, int], _Lane] = {}
        self._of_model: dict[str, dict[tuple[Need, int], _Lane]] = {}
        #: by priority a heap of lanes: each is in it, at its head's place or before
        self._ranks: tuple[list[_Rank], ...] = tuple([] for _ in range(_PRIORITIES + 1))
        self._aside: list[_Lane] = []
        self._pushed = 0
        self.low = 0  # tasks whose priority is below HIGH

    def __len__(self) -> int:
        return len(self._tasks)

    def __contains__(self, task_id: int) -> bool:
        return task_id in self._tasks

    def __iter__(self) -> Iterator[int]:
        return iter(self._tasks)

    def add(self, task_id: int, priority: int, need: Need, work_s: float = 0.0, since_s: float = 0.0) -> None:
        """A task may go; it must not be here already. `work_s`: what it is expected to take at factor 1.0."""
        assert task_id not in self._tasks, f"task {task_id} is ready already"
        key = need, priority
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _Lane(need, priority)
            self._of_model.setdefault(need.model, {})[key] = lane
        self._tasks[task_id] = _Waiting(lane, need, since_s, work_s)
        entry = since_s, task_id
        heapq.heappush(lane.entries, entry)
        lane.size += 1
        if need.prefix:
            alike = lane.alike.setdefault(need.prefix, _Alike())
            heapq.heappush(alike.entries, entry)
            alike.size += 1
        self.low += priority < HIGH
        lane.work_s += work_s
        if lane.entries[0] == entry:
            self._rank(lane)

    def discard(self, task_id: int) -> None:
        """It may not go any more, or has gone."""
        waiting = self._tasks.pop(task_id, None)
        if waiting is None:
            return
        lane = waiting.lane
        lane.size -= 1
        self.low -= lane.priority < HIGH
        lane.work_s -= waiting.work_s
        if waiting.need.prefix:
            self._leave(lane, waiting.need.prefix)
        if not lane.size:
            # An empty lane must go at once: exclusions make ever new needs.
            key = lane.need, lane.priority
            del self._lanes[key]
            of_model = self._of_model[lane.need.model]
            del of_model[key]
            if not of_model:
                del self._of_model[lane.need.model]
        elif len(lane.entries) > 2 * lane.size + _SLACK_ENTRIES:
            self._tidy(lane)

    def next(self, now_s: float) -> Head | None:
        """The first in order of all lanes that were not passed over; None: there is none."""
        best: _Rank | None = None
        best_place: tuple[int, float, int] | None = None
        for priority in range(_PRIORITIES, 0, -1):
            if best_place is not None and best_place[0] <= -HIGH:
                break  # the rest can have aged no further than below
            entry = self._top(priority)
            if entry is None:
                continue
            place = self._place(priority, entry[0], entry[1], now_s)
            if best_place is None or place < best_place:
                best, best_place = entry, place
        return self.head_of(best[1], now_s) if best is not None else None

    def follower(self, head: Head, prefixes: Collection[str], now_s: float) -> Follower | None:
        """Who may go before the next task of its lane because its prompt begins with one of these; None: nobody.

        It has the same need and priority as `head`, and goes before nobody of a higher priority.
        """
        lane = self._tasks[head.task_id].lane
        entries = [self._first(lane, lane.alike[prefix].entries) for prefix in prefixes if prefix in lane.alike]
        if not entries:
            return None
        entry = min(entries)
        place = self._place(lane.priority, *entry, now_s)
        for priority in range(lane.priority + 1, _PRIORITIES + 1):
            top = self._top(priority)
            if top is not None and self._place(priority, top[0], top[1], now_s) < place:
                return None
        others = sum(
            prefix not in prefixes and self._first(lane, alike.entries) < entry
            for prefix, alike in islice(lane.alike.items(), _LOOKED_AT)
        )
        return Follower(self.head_of(entry[1], now_s), others)

    def pass_over(self, head: Head) -> None:
        """Leave this task's lane out of account until `look_again`, which must be called."""
        lane = self._tasks[head.task_id].lane
        if not lane.is_aside:
            lane.is_aside = True
            self._aside.append(lane)

    def look_again(self) -> None:
        """All lanes count again."""
        for lane in self._aside:
            lane.is_aside = False
            if lane.size:
                self._rank(lane)
        self._aside = []

    def head_of(self, task_id: int, now_s: float) -> Head:
        """A ready task as if it were the next of its lane."""
        return self._head(self._tasks[task_id], task_id, now_s)

    def effective(self, priority: int, since_s: float, now_s: float) -> int:
        """A priority as waiting has raised it."""
        if priority >= AGED_MOST or self._aging_s <= 0:
            return priority
        return min(AGED_MOST, priority + max(0, math.floor((now_s - since_s) / self._aging_s)))

    def ahead_of(self, task_id: int, now_s: float) -> int:
        """How many tasks go before it. Costs a sort of the lanes that begin before it: for people."""
        own = self.head_of(task_id, now_s).place
        ahead = 0
        for lane in self._lanes.values():
            since_s, first = self._first(lane)
            if self._place(lane.priority, since_s, first, now_s) < own:
                self._tidy(lane)
                # Within a lane age keeps the order: those who go before it are its first.
                ahead += self._before(lane, own, now_s)
        return ahead

    def work_no_later(self, effective: int, now_s: float) -> float:
        """Seconds of work at factor 1.0 that goes no later than tasks of this effective priority.

        A lane counts whole as soon as its next task does: its tasks are of one submission more often than not.
        """
        return sum(
            lane.work_s
            for lane in self._lanes.values()
            if lane.priority >= effective or self.effective(lane.priority, self._first(lane)[0], now_s) >= effective
        )

    @property
    def models(self) -> tuple[str, ...]:
        """The models that waiting tasks ask for; empty: the worker's default."""
        return tuple(self._of_model)

    def has_for(self, worker_id: str, model: str, priority: int = 0) -> bool:
        """Whether a task of this priority or a higher one asks for the model and may run on the worker."""
        return any(
            lane.priority >= priority and worker_id not in lane.need.unfit and lane.need.avoid != worker_id
            for lane in self._of_model.get(model, {}).values()
        )

    def needs_below(self, priority: int) -> list[Need]:
        """What tasks of lower priorities need."""
        return [lane.need for lane in self._lanes.values() if lane.priority < priority]

    def check(self) -> None:
        """Assert that the indexes agree. Costs a pass over everything."""
        sizes: dict[tuple[Need, int], int] = {}
        work_s: dict[tuple[Need, int], float] = {}
        for task_id, waiting in self._tasks.items():
            key = waiting.lane.need, waiting.lane.priority
            assert self._lanes.get(key) is waiting.lane, f"task {task_id} is in no lane"
            sizes[key] = sizes.get(key, 0) + 1
            work_s[key] = work_s.get(key, 0.0) + waiting.work_s
        assert sizes == {key: lane.size for key, lane in self._lanes.items()}, "lane sizes"
        assert not self._aside, "a lane was left aside"
        ranked: dict[tuple[Need, int], tuple[float, int]] = {}
        for since_s, task_id, _, lane in (entry for rank in self._ranks for entry in rank):
            key = lane.need, lane.priority
            if self._lanes.get(key) is lane:
                ranked[key] = min((since_s, task_id), ranked.get(key, (since_s, task_id)))
        for key, lane in self._lanes.items():
            assert ranked[key] <= self._first(lane), f"a lane stands too far back in its rank: {key}"
            assert math.isclose(work_s[key], lane.work_s, abs_tol=1e-3), f"work of a lane: {key}"
            entries = {task_id for entry in lane.entries if self._waits_in(lane, entry) for task_id in entry[1:]}
            assert len(entries) == lane.size, f"entries of a lane: {key}"
            assert self._of_model[lane.need.model][key] is lane, f"a lane its model does not know: {key}"
            self._check_alike(lane)
        assert self.low == sum(waiting.lane.priority < HIGH for waiting in self._tasks.values()), "tasks below HIGH"
        assert sum(map(len, self._of_model.values())) == len(self._lanes), "lanes by model"

    def _check_alike(self, lane: _Lane) -> None:
        entries = {entry for entry in lane.entries if self._waits_in(lane, entry)}
        waiting = {prefix: set(self._rebuilt(lane, alike.entries)) for prefix, alike in lane.alike.items()}
        for prefix, alike in lane.alike.items():
            assert len(waiting[prefix]) == alike.size > 0, f"those that begin like {prefix}"
        for entry in entries:
            prefix = self._tasks[entry[1]].need.prefix
            assert not prefix or entry in waiting[prefix], f"task {entry[1]} is not among those that begin alike"
        assert sum(map(len, waiting.values())) <= len(entries), f"more begin alike than wait: {lane.need}"

    def _place(self, priority: int, since_s: float, task_id: int, now_s: float) -> tuple[int, float, int]:
        return -self.effective(priority, since_s, now_s), since_s, task_id

    def _before(self, lane: _Lane, place: tuple[int, float, int], now_s: float) -> int:
        """How many of a tidy lane come before this place."""
        return bisect_left(lane.entries, place, key=lambda entry: self._place(lane.priority, entry[0], entry[1], now_s))

    def _head(self, waiting: _Waiting, task_id: int, now_s: float) -> Head:
        priority = waiting.lane.priority
        effective = self.effective(priority, waiting.since_s, now_s)
        return Head(task_id, priority, effective, waiting.since_s, waiting.need)

    def _waits_in(self, lane: _Lane, entry: tuple[float, int]) -> bool:
        waiting = self._tasks.get(entry[1])
        return waiting is not None and waiting.lane is lane and waiting.since_s == entry[0]

    def _tidy(self, lane: _Lane) -> None:
        """Sort a lane's entries, which keeps them a heap, and drop those that have gone."""
        if len(lane.entries) == lane.size:
            lane.entries.sort()
        else:
            # A set, as a task that went and came back has two entries.
            lane.entries = sorted({entry for entry in lane.entries if self._waits_in(lane, entry)})

    def _first(self, lane: _Lane, entries: list[tuple[float, int]] | None = None) -> tuple[float, int]:
        """The first entry of a lane, or of those in it that begin alike; it must not be empty."""
        entries = lane.entries if entries is None else entries
        while not self._waits_in(lane, entries[0]):
            heapq.heappop(entries)
        return entries[0]

    def _leave(self, lane: _Lane, prefix: str) -> None:
        """One of those that begin like this waits in the lane no longer."""
        alike = lane.alike[prefix]
        alike.size -= 1
        if not alike.size:
            del lane.alike[prefix]
        elif len(alike.entries) > 2 * alike.size + _SLACK_ENTRIES:
            alike.entries = self._rebuilt(lane, alike.entries)

    def _rebuilt(self, lane: _Lane, entries: list[tuple[float, int]]) -> list[tuple[float, int]]:
        """A heap without those that have gone."""
        # Sorted is a heap too; a set, as a task that went and came back has two entries.
        return sorted({entry for entry in entries if self._waits_in(lane, entry)})

    def _top(self, priority: int) -> _Rank | None:
        rank = self._ranks[priority]
        while rank:
            entry = rank[0]
            lane = entry[3]
            if not lane.size or lane.is_aside:
                heapq.heappop(rank)
                continue
            first = self._first(lane)
            if first == entry[:2]:
                return entry
            heapq.heapreplace(rank, (*first, entry[2], lane))
        return None

    def _rank(self, lane: _Lane) -> None:
        rank = self._ranks[lane.priority]
        if len(rank) > 2 * len(self._lanes) + _SLACK_ENTRIES:
            rank[:] = []
            for one in self._lanes.values():
                if one.priority == lane.priority and one is not lane:
                    self._push(rank, one)
        self._push(rank, lane)

    def _push(self, rank: list[_Rank], lane: _Lane) -> None:
        self._pushed += 1
        heapq.heappush(rank, (*self._first(lane), self._pushed, lane))
