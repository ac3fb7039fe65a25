"""About when a task that waits will begin: by what runs, what goes before it, and how long such work takes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from koubou_broker.core.state import State
from koubou_broker.records import NewTask
from koubou_broker.routing.fitting import model_bytes_of
from koubou_common.messages.values import Candidate
from koubou_common.reasons import Reason

_RELEASING_SHARE = 0.5  # of a usual run: nobody knows how long Ollama goes on with a call that was given up
_SHORTEST_S = 0.001  # no task takes less: keeps a division whole
_HALVINGS = 24  # of the time searched in: far finer than anything here is known
_LONGEST_S = 30 * 86_400.0  # beyond it the number says nothing any more


@dataclass(frozen=True, slots=True)
class Start:
    """When a task would begin, and what that rests on, in words."""

    in_s: float | None  # None: nobody can tell
    basis: str


@dataclass(frozen=True, slots=True)
class Slot:
    """A place for one attempt after another."""

    free_in_s: float
    takes_s: float  # what one such task takes there


def start_of(
    state: State,
    spec: NewTask,
    candidates: Sequence[Candidate],
    ahead: int,
    *,
    waited_s: float = 0.0,
    pause_s: float = 0.0,
) -> Start:
    """For a task with so many before it, ready for `waited_s`, which may not begin before `pause_s` are over."""
    # Whoever goes before it would have taken that worker, if it could.
    if not pause_s and any(one.available for one in candidates):
        return Start(0.0, "a worker is free for it")
    slots_of = [_slots_of(state, spec, one, waited_s) for one in candidates if one.eligible]
    slots = [slot for some in slots_of for slot in some]
    if not slots:
        return Start(None, "no worker could take it as things stand")
    in_s = max(pause_s, begins_s(slots, ahead))
    if in_s > _LONGEST_S:
        return Start(None, f"{_tasks(ahead)} before it take more than a month")
    return Start(float(math.ceil(in_s)), _basis(slots, sum(map(bool, slots_of)), ahead, pause_s))


def tasks_before_new(state: State, spec: NewTask) -> int:
    """About how many would go before a task submitted now: by the work that waits, in tasks as long as this one."""
    work_s = state.queue.work_no_later(spec.priority, state.now.mono_s)
    return math.ceil(work_s / max(state.router.work_s(spec), _SHORTEST_S))


def begins_s(slots: Sequence[Slot], ahead: int) -> float:
    """When the slots, taking one task after the other, have begun all that go before and come to this one."""
    soonest_s = min(slot.free_in_s for slot in slots)
    if not ahead:
        return soonest_s
    least_s, most_s = soonest_s, min(slot.free_in_s + ahead * slot.takes_s for slot in slots)
    for _ in range(_HALVINGS):
        middle_s = (least_s + most_s) / 2
        begun = sum(_begun_by(slot, middle_s) for slot in slots)
        least_s, most_s = (least_s, middle_s) if begun > ahead else (middle_s, most_s)
    return most_s


def _slots_of(state: State, spec: NewTask, candidate: Candidate, waited_s: float) -> list[Slot]:
    worker = state.workers[candidate.worker_id]
    opens_s = _opens_s(state, spec, candidate, waited_s)
    if opens_s is None:
        return []
    model = worker.model_for(spec.model)
    tokens = state.router.fitting.estimate_tokens(model, model_bytes_of(spec))
    takes_s = state.router.performance.expected_s(worker, model, tokens)
    left_s = [0.0] * worker.free + worker.left_s(state.now.mono_s, takes_s)
    left_s += [takes_s * _RELEASING_SHARE] * (worker.slots - len(left_s))
    return [Slot(max(opens_s, one), takes_s) for one in left_s]


def _opens_s(state: State, spec: NewTask, candidate: Candidate, waited_s: float) -> float | None:
    """From when on the worker is for this task; None: it is kept from it for a time that nobody knows."""
    if candidate.code in (Reason.AVOIDED, Reason.FASTER_ELSEWHERE):
        return None
    if candidate.code is Reason.KEPT_FOR_LOADED_MODEL:
        return state.settings.patience_s
    rule = state.router.rule_of(spec.priority)
    is_preferred = rule < 0 or candidate.group < len(state.settings.rules[rule].preferred_workers)
    return 0.0 if is_preferred else max(0.0, state.router.overflow_after_s(rule) - waited_s)


def _begun_by(slot: Slot, at_s: float) -> int:
    """How many tasks the slot has begun at that time."""
    if at_s < slot.free_in_s:
        return 0
    return 1 + int((at_s - slot.free_in_s) / max(slot.takes_s, _SHORTEST_S))


def _basis(slots: Sequence[Slot], workers: int, ahead: int, pause_s: float) -> str:
    takes_s = sorted(slot.takes_s for slot in slots)[len(slots) // 2]
    where = f"{len(slots)} slot{'s' if len(slots) > 1 else ''} of {workers} worker{'s' if workers > 1 else ''}"
    each = f"{_tasks(ahead)} before it, each about {max(1, round(takes_s))} s"
    parts = [each if ahead else "nothing before it", where]
    if pause_s:
        parts.append(f"not before {math.ceil(pause_s)} s from now")
    return "; ".join(parts)


def _tasks(count: int) -> str:
    return "1 task" if count == 1 else f"{count:,} tasks"
