"""Ready tasks in buckets by what they need, so that a dispatch costs the same however many wait. Pure."""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Need:
    """What decides where a task may go: tasks with equal needs wait in one bucket."""

    model: str  # normal spelling; empty: the worker's default model
    rule: int  # index of the routing rule; -1: none
    task_type: str  # empty when no worker claims it as a capability
    avoid: str  # the worker that failed last; only if nobody else is eligible
    unfit: frozenset[str]  # worker_ids that cannot run it, whatever happens to them


Head = tuple[int, int, Need]  # -priority, task id, need: the smallest is the next to go


class ReadyQueue:
    """Higher priority first, then the lower task id: first in, first out. Removal is lazy."""

    def __init__(self) -> None:
        self._needs: dict[int, Need] = {}
        self._buckets: dict[Need, list[tuple[int, int]]] = {}
        self._sizes: dict[Need, int] = {}

    def __len__(self) -> int:
        return len(self._needs)

    def __contains__(self, task_id: int) -> bool:
        return task_id in self._needs

    def __iter__(self) -> Iterator[int]:
        return iter(self._needs)

    def add(self, task_id: int, priority: int, need: Need) -> None:
        """A task may go; it must not be here already."""
        assert task_id not in self._needs, f"task {task_id} is ready already"
        self._needs[task_id] = need
        heapq.heappush(self._buckets.setdefault(need, []), (-priority, task_id))
        self._sizes[need] = self._sizes.get(need, 0) + 1

    def discard(self, task_id: int) -> None:
        """It may not go any more, or has gone."""
        need = self._needs.pop(task_id, None)
        if need is None:
            return
        self._sizes[need] -= 1
        if not self._sizes[need]:
            # An empty bucket must go at once: exclusions make ever new needs.
            del self._sizes[need], self._buckets[need]

    def head(self, need: Need) -> Head | None:
        """The next task of one bucket."""
        bucket = self._buckets.get(need)
        while bucket:
            minus_priority, task_id = bucket[0]
            if self._needs.get(task_id) == need:
                return minus_priority, task_id, need
            heapq.heappop(bucket)
        return None

    def heads(self) -> list[Head]:
        """The next task of every bucket, as a heap."""
        heads = [head for need in self._buckets if (head := self.head(need)) is not None]
        heapq.heapify(heads)
        return heads

    def check(self) -> None:
        """Assert that the indexes agree."""
        counted: dict[Need, int] = {}
        entries = {need: {task_id for _, task_id in bucket} for need, bucket in self._buckets.items()}
        for task_id, need in self._needs.items():
            counted[need] = counted.get(need, 0) + 1
            assert task_id in entries[need], f"task {task_id} is in no bucket"
        assert counted == self._sizes, "bucket sizes"
        assert set(self._buckets) == set(self._sizes), "bucket names"
