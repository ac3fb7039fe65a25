"""What waits is given out: in order, to whom the router names, but for what a box has loaded or has read."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from koubou_broker.core.attempts import Attempts
from koubou_broker.core.lifecycle import Lifecycle
from koubou_broker.core.standings import hoped_s
from koubou_broker.core.state import State
from koubou_broker.routing.placing import Held, Placed
from koubou_broker.routing.queue import HIGH, Head
from koubou_broker.routing.roster import fits
from koubou_broker.routing.workers import LiveWorker
from koubou_broker.timers import Timer
from koubou_common.reasons import Reason

STARVED = "starved"  # the alert's code
# A person who waits for such a task waits minutes; who lets the rest stand for longer means it, or forgot a script.
STARVED_AFTER_S = 3_600.0
# As often as agents say something: what the choice to wait rested on has moved on by then.
_LOOK_AGAIN_S = 5.0
_SORTED_AGAIN_MOST = 200  # tasks in one step: a whole batch may have to, and others wait for the loop
# Of the time a task runs, what reading its beginning takes: for less than that nobody goes before another.
_WORTH_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class _HeldBack:
    """A task that would make these workers load another model while they have work for theirs."""

    head: Head
    worker_ids: frozenset[str]


class Dispatching:
    """Runs at the end of every step: what it costs does not depend on how many tasks wait or workers are busy."""

    def __init__(self, state: State, lifecycle: Lifecycle, attempts: Attempts) -> None:
        self._state = state
        self._lifecycle = lifecycle
        self._attempts = attempts
        self._held: list[_HeldBack] = []  # of the step at hand, in order
        self._sorted_again = 0  # in the step at hand
        self._low_since_s: float | None = None  # something below HIGH waits, and nothing of it went since then

    def dispatch_ready(self) -> None:
        """Give out what can go now: the most urgent first, then first in, first out."""
        state = self._state
        self._watch_low()
        if not len(state.queue):
            return
        now_s = state.now.mono_s
        roster = state.router.roster
        roster.refresh(now_s)
        if not roster.free:
            return
        self._sorted_again = 0
        while roster.free:
            head = state.queue.next(now_s)
            if head is not None:
                self._try(head)
            elif not self._go_back():
                break
        self._held = []
        state.queue.look_again()

    def _try(self, head: Head) -> None:
        """Give out the next task of all, or leave its lane for this step."""
        state = self._state
        now_s = state.now.mono_s
        model = head.need.model

        def is_kept(worker: LiveWorker) -> bool:
            # What was kept from a task may go to its equals and betters for the loaded model, and to nobody else.
            for one in self._held:
                if worker.worker_id in one.worker_ids and not (
                    head.priority >= one.head.priority and worker.is_resident(worker.model_for(model))
                ):
                    return True
            return state.grouping.keeps(worker, head, now_s)

        placed = self._place(head, is_kept)
        if isinstance(placed, Placed):
            follower = self._follower(head, placed.worker, is_kept)
            if follower is not None:
                self._go(*follower, before=head)
            else:
                self._go(head, placed)
            return
        if self._sort_again(head):
            return
        state.queue.pass_over(head)  # nor is there a place for the rest of its lane
        if placed.reason is Reason.KEPT_FOR_LOADED_MODEL:
            self._held.append(_HeldBack(head, frozenset(placed.worker_ids)))
        else:
            self._look_again(head, placed)

    def _sort_again(self, head: Head) -> bool:
        """Whether what was measured since it was sorted in lets other workers run it; then it is sorted in anew.

        All that wait at each such measurement would be too many, and those that find a worker need it not.
        """
        task = self._state.tasks[head.task_id]
        if self._sorted_again >= _SORTED_AGAIN_MOST:
            return False
        if self._state.router.need_of(task.spec, task.excluded, task.avoid) == head.need:
            return False
        self._sorted_again += 1
        self._lifecycle.requeue_bucket(task)
        return True

    def _follower(
        self, head: Head, worker: LiveWorker, kept: Callable[[LiveWorker], bool]
    ) -> tuple[Head, Placed] | None:
        """The task whose beginning the worker has read, if that is to go before the next one of all."""
        state = self._state
        read = worker.residency.prefixes_of(worker.model_for(head.need.model))
        if not read or head.need.prefix in read:
            return None
        now_s = state.now.mono_s
        follower = state.queue.follower(head, read, now_s)
        if follower is None or not state.grouping.reads_on(worker, head, follower.others, now_s):
            return None
        placed = self._place(follower.head, kept)
        # Another box may have read it too and be the better one.
        if not isinstance(placed, Placed) or placed.worker is not worker:
            return None
        times = placed.choice.times
        return (follower.head, placed) if times.saved_s >= _WORTH_SHARE * times.run_s else None

    def _go_back(self) -> bool:
        """All had their turn, and nobody took what was kept: it is for those it was kept from."""
        held, self._held = self._held, []
        for one in held:
            placed = self._place(one.head, lambda _worker: False)
            if isinstance(placed, Placed):
                # The lanes passed over may want what is loaded now.
                self._state.queue.look_again()
                self._go(one.head, placed)
                return True
            self._look_again(one.head, placed)
        return False

    def _look_again(self, head: Head, held: Held) -> None:
        """Soon, where a task waits for a box that is busy now: nobody tells when that is no longer wise."""
        if held.reason in (Reason.FASTER_ELSEWHERE, Reason.AVOIDED):
            task = self._state.tasks[head.task_id]
            if task.hopes_since_s is None:
                task.hopes_since_s = self._state.now.mono_s
            self._state.timers.set(Timer.LOOK_AGAIN, "", self._state.now.mono_s + _LOOK_AGAIN_S)

    def _place(self, head: Head, kept: Callable[[LiveWorker], bool]) -> Placed | Held:
        state = self._state
        now_s = state.now.mono_s
        task = state.tasks[head.task_id]
        return state.router.place(
            head.need,
            now_s,
            now_s - task.ready_since_s,
            lambda: state.queue.work_no_later(head.effective, now_s),
            kept,
            hoped_s=hoped_s(state, task),
        )

    def _go(self, head: Head, placed: Placed, before: Head | None = None) -> None:
        """Give it out; `before`: the next one of all, which it overtakes as the worker has read its beginning."""
        state = self._state
        worker = placed.worker
        now_s = state.now.mono_s
        overtaken = [one.head for one in self._held if worker.worker_id in one.worker_ids]
        for one in overtaken:
            state.grouping.overtaken(one, head, now_s)
        notes = [placed.note, *self._notes(head, worker, len(overtaken))]
        if before is not None:
            state.grouping.overtaken(before, head, now_s)
            notes.append(f"before its turn: {worker.worker_id} has read how its prompt begins")
        state.grouping.given(worker, worker.model_for(head.need.model), now_s, head.need.prefix)
        self._watch_high(head, worker)
        self._attempts.dispatch(
            state.tasks[head.task_id], head.need, replace(placed, note="; ".join(filter(None, notes)))
        )
        state.router.roster.touch(worker.worker_id)
        state.router.roster.refresh(now_s)

    def _notes(self, head: Head, worker: LiveWorker, overtaken: int) -> list[str]:
        notes = []
        if head.effective > head.priority:
            notes.append(f"raised from priority {head.priority} to {head.effective} by waiting")
        if overtaken:
            notes.append(f"before its turn: {worker.worker_id} goes on with the model it has loaded")
        elif worker.would_swap(worker.model_for(head.need.model)) and self._state.grouping.is_over(
            head, self._state.now.mono_s
        ):
            notes.append("others went before it for their loaded model for long enough")
        return notes

    def _watch_low(self) -> None:
        """Note since when something below HIGH waits."""
        state = self._state
        if not state.queue.low:
            self._low_since_s = None
            if STARVED in state.alerts:
                state.alert(STARVED, "")
        elif self._low_since_s is None:
            self._low_since_s = state.now.mono_s

    def _watch_high(self, head: Head, worker: LiveWorker) -> None:
        """Tell a person when the urgent have kept all others waiting for too long; the end of it too."""
        state = self._state
        if head.priority < HIGH:
            self._low_since_s = state.now.mono_s
            if STARVED in state.alerts:
                state.alert(STARVED, "")
            return
        if self._low_since_s is None or state.now.mono_s - self._low_since_s < STARVED_AFTER_S:
            return
        if any(fits(need, worker) for need in state.queue.needs_below(HIGH)):
            text = (
                f"tasks of priority {HIGH} to 10 have kept all others waiting for more than"
                f" {STARVED_AFTER_S / 60:.0f} minutes: submit with a lower priority what nobody waits for"
            )
            state.alert(STARVED, text)
