"""Which worker goes on with the model it has loaded or the prompt it has read, and how long at whose cost. Pure."""

from bisect import bisect_right

from koubou_broker.routing.queue import HIGH, Head, ReadyQueue
from koubou_broker.routing.workers import LiveWorker

_STEPS = 64  # of the patience: overtaking is noted to one of these; the clock begins a step too early at most

_OTHERS_MOST = 8  # models that share the patience, for each of which a box is kept for a while
# Of the patience, after which a task is due. Whoever is due still stands behind others that are, and a box behind the
# task it is at: the rest of the patience is for that.
DUE_SHARE = 0.75

# Of what a task may be overtaken, for the sake of what a worker has read. The rest is for the workers that have its
# model to come free: were it due everywhere at the same moment, a worker would load its model for it.
_READING_SHARE = 2 / 3

_Place = tuple[float, int]  # waits since, task id: the order among tasks of one priority


class Grouping:
    """Tasks of one model follow each other on a box; whom they overtake is overtaken for `patience_s` at most."""

    def __init__(self, queue: ReadyQueue, patience_s: float) -> None:
        """`patience_s` 0: nobody is overtaken."""
        self._queue = queue
        self._patience_s = patience_s * DUE_SHARE
        self._fronts: dict[tuple[str, int], _Front] = {}  # by what a task asks for: model, priority
        self._turns: dict[str, tuple[str, float]] = {}  # by worker: the model it was given last, since when
        self._readings: dict[str, tuple[str, float]] = {}  # by worker: the prefix it was given last, since when

    def keeps(self, worker: LiveWorker, head: Head, now_s: float) -> bool:
        """Whether the worker should go on with what it has loaded rather than load another model for this task."""
        if head.priority >= HIGH or self._patience_s <= 0:
            return False
        if not worker.would_swap(worker.model_for(head.need.model)) or self._is_due(worker, head, now_s):
            return False
        queue = self._queue
        return any(
            worker.is_resident(worker.model_for(asked)) and queue.has_for(worker.worker_id, asked, head.priority)
            for asked in queue.models
        )

    def reads_on(self, worker: LiveWorker, head: Head, others: int, now_s: float) -> bool:
        """Whether a task that begins like what the worker has read may have it, though this one comes first.

        `others`: in how many ways the prompts begin that wait for longer than that task.
        """
        if head.priority >= HIGH or self._patience_s <= 0:
            return False
        since_s = self.overtaken_since_s(head)
        if since_s is None:
            return True
        _, turn_s = self._readings.get(worker.worker_id, ("", now_s))
        most_s = _READING_SHARE * self._patience_s
        # Each of several batches has a share, as models do.
        return now_s - since_s < most_s and min(now_s - since_s, now_s - turn_s) < most_s / max(
            1, min(_OTHERS_MOST, others)
        )

    def given(self, worker: LiveWorker, model: str, now_s: float, prefix: str = "") -> None:
        """The worker was given a task for `model` (resolved), whose prompt begins with `prefix`."""
        for turns, what in ((self._turns, model), (self._readings, prefix)):
            before = turns.get(worker.worker_id)
            if before is None or before[0] != what:
                turns[worker.worker_id] = what, now_s

    def overtaken(self, head: Head, by: Head, now_s: float) -> None:
        """`by` was given a worker that has loaded or read what it needs, not what `head` does, which comes first."""
        key = head.need.model, head.priority
        front = self._fronts.get(key)
        if front is None:
            front = self._fronts[key] = _Front()
        # Of another priority, `by` may have aged past tasks behind `head` too: all that wait now, to be safe.
        place = (by.since_s, by.task_id) if by.priority == head.priority else (now_s, 0)
        front.note(place, now_s, self._patience_s)

    def overtaken_since_s(self, head: Head) -> float | None:
        """Since when tasks that come after it go before it for what a worker has loaded or read; None: none did."""
        front = self._fronts.get((head.need.model, head.priority))
        return front.since_s((head.since_s, head.task_id)) if front is not None else None

    def is_over(self, head: Head, now_s: float) -> bool:
        """Whether it was overtaken for as long as a task may be."""
        since_s = self.overtaken_since_s(head)
        return since_s is not None and now_s - since_s >= self._patience_s

    def _is_due(self, worker: LiveWorker, head: Head, now_s: float) -> bool:
        """Whether the task was overtaken for long enough as far as this worker is concerned."""
        since_s = self.overtaken_since_s(head)
        if since_s is None:
            return False
        overtaken_s = now_s - since_s
        if overtaken_s >= self._patience_s:
            return True
        _, turn_s = self._turns.get(worker.worker_id, ("", now_s))
        if min(overtaken_s, now_s - turn_s) < self._patience_s / _OTHERS_MOST:
            return False
        # With several models waiting each has a share of the patience: were they all due at once, they would be
        # loaded in turn for one task each.
        others = {
            worker.model_for(asked) for asked in self._queue.models if self._queue.has_for(worker.worker_id, asked)
        }
        waiting = sum(not worker.is_resident(model) for model in others)
        return min(overtaken_s, now_s - turn_s) >= self._patience_s / max(1, min(_OTHERS_MOST, waiting))


class _Front:
    """How far those who overtake have come, and when: whoever stands before a place was overtaken at its time.

    Both grow, so that few entries tell the time for any number of tasks.
    """

    def __init__(self) -> None:
        self._places: list[_Place] = []
        self._times_s: list[float] = []

    def note(self, place: _Place, now_s: float, patience_s: float) -> None:
        """All tasks before `place` have been overtaken."""
        if self._places and place <= self._places[-1]:
            return
        if self._times_s and now_s - self._times_s[-1] < patience_s / _STEPS:
            self._places[-1] = place
            return
        self._places.append(place)
        self._times_s.append(now_s)
        over = bisect_right(self._times_s, now_s - patience_s)
        if over > 1:
            # Whoever was overtaken long enough is due all the same, whenever it began.
            del self._places[: over - 1], self._times_s[: over - 1]

    def since_s(self, place: _Place) -> float | None:
        """When the task at this place was overtaken for the first time."""
        nth = bisect_right(self._places, place)
        return self._times_s[nth] if nth < len(self._places) else None
