"""How the workers stand for a task that waits: what the router says of each, and what the dispatch has in mind."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from koubou_broker.core.state import State
from koubou_broker.routing.placing import Held, Placed
from koubou_broker.routing.queue import Head, Need
from koubou_broker.routing.roster import fits
from koubou_broker.routing.workers import LiveWorker
from koubou_broker.task import Task
from koubou_common.messages.values import Candidate, TaskState
from koubou_common.reasons import Reason

_WORKERS_NAMED = 5  # in the sentence on what a task waits for
_TEXTS_NAMED = 3  # of reasons that never go away
_ASKED_MOST = 50  # workers, where none can ever take it: the others say much the same


def candidates_for(state: State, task: Task) -> list[Candidate]:
    """Every known worker; of one that has room, whether the task waits all the same, and why."""
    now_s = state.now.mono_s
    candidates = state.router.weigh(task.spec, task.excluded, task.avoid, now_s, waited_s(state, task))
    if task.task_id not in state.queue or not any(one.available for one in candidates):
        return candidates
    held = _held(state, task, state.queue.head_of(task.task_id, now_s))
    return [_told(one, held) for one in candidates]


class Waits:
    """On what tasks wait, in a sentence each; those with the same need are looked at once. Good for one instant."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._known: dict[Need, str] = {}

    def of(self, task: Task) -> str:
        """Why a queued task does not run yet; empty: nothing special."""
        state = self._state
        if task.state is not TaskState.QUEUED:
            return ""
        if task.not_before_ms > state.now.wall_ms:
            pause_s = (task.not_before_ms - state.now.wall_ms) / 1000
            return f"its next attempt, in {pause_s:.0f} s"
        if task.asks_cache:
            return "the result cache"
        if not state.workers:
            return "a worker: none has joined yet"
        need = state.router.need_of(task.spec, task.excluded, task.avoid)
        if need not in self._known:
            self._known[need] = self._sentence(task, need)
        return self._known[need]

    def _sentence(self, task: Task, need: Need) -> str:
        state = self._state
        roster = state.router.roster
        roster.refresh(state.now.mono_s)
        # A list shows hundreds of tasks: no worker's points are counted for a sentence.
        able = [worker for worker in state.workers.values() if worker.worker_id not in need.unfit]
        fit = [worker for worker in able if worker.worker_id in roster.eligible and fits(need, worker)]
        if any(worker.worker_id in roster.free for worker in fit):
            candidates = candidates_for(state, task)
            if any(one.available for one in candidates):
                return ""
            return _for_slots([(one.worker_id, one.code, one.reason) for one in candidates if one.eligible])
        if fit:
            told = ((worker, roster.reason_of(worker.worker_id)) for worker in fit)
            return _for_slots([(one.worker_id, code, _in_words(state, need, one, code)) for one, code in told])
        if able:
            named = able[:_WORKERS_NAMED]
            return "; ".join(f"{one.worker_id} ({self._obstacle(need, one)})" for one in named)
        some = list(state.workers.values())[:_ASKED_MOST]
        misfits = (state.router.fitting.misfit(task.spec, task.excluded, worker) for worker in some)
        texts = Counter(misfit.text for misfit in misfits if misfit is not None)
        return "a worker that can run it: " + "; ".join(text for text, _ in texts.most_common(_TEXTS_NAMED))

    def _obstacle(self, need: Need, worker: LiveWorker) -> str:
        return _in_words(self._state, need, worker, self._state.router.obstacle(need, worker, self._state.now.mono_s))


def waited_s(state: State, task: Task) -> float:
    """How long a ready task has waited for a preferred worker; one that pauses has not begun to."""
    return state.now.mono_s - task.ready_since_s if task.task_id in state.queue else 0.0


def hoped_s(state: State, task: Task) -> float:
    """For how long a task was left waiting for a busy worker although another one was free."""
    return state.now.mono_s - task.hopes_since_s if task.hopes_since_s is not None else 0.0


def _in_words(state: State, need: Need, worker: LiveWorker, reason: Reason | None) -> str:
    return state.router.in_words(need, worker, reason) if reason is not None else ""


def _for_slots(eligible: Sequence[tuple[str, Reason | None, str]]) -> str:
    """Workers that could take it, had they room; and those that have room, but other plans."""
    occupied = [worker_id for worker_id, code, _ in eligible if code is Reason.BUSY]
    more = len(occupied) - _WORKERS_NAMED
    names = ", ".join(occupied[:_WORKERS_NAMED]) + (f" and {more} more" if more > 0 else "")
    parts = [f"a free slot on {names}"] if occupied else []
    others = [(worker_id, text) for worker_id, code, text in eligible if code is not Reason.BUSY]
    return "; ".join([*parts, *(f"{worker_id} ({text})" for worker_id, text in others[:_WORKERS_NAMED])])


def _held(state: State, task: Task, head: Head) -> dict[str, Reason] | Reason | None:
    """For which reason all workers with room are kept from the task, or which of them; None: no reason."""
    now_s = state.now.mono_s
    state.router.roster.refresh(now_s)
    found = state.router.place(
        head.need,
        now_s,
        waited_s(state, task),
        lambda: state.queue.work_no_later(head.effective, now_s),
        lambda worker: state.grouping.keeps(worker, head, now_s),
        hoped_s=hoped_s(state, task),
    )
    match found:
        case Placed():
            return dict.fromkeys(found.kept, Reason.KEPT_FOR_LOADED_MODEL)
        case Held(Reason.KEPT_FOR_LOADED_MODEL):
            return dict.fromkeys(found.worker_ids, Reason.KEPT_FOR_LOADED_MODEL)
        case Held(Reason.FASTER_ELSEWHERE):
            return Reason.FASTER_ELSEWHERE
        case _:
            return None


def _told(candidate: Candidate, held: dict[str, Reason] | Reason | None) -> Candidate:
    code = held.get(candidate.worker_id) if isinstance(held, dict) else held
    if code is None or not candidate.available:
        return candidate
    return replace(candidate, available=False, code=code, reason=code.text)
