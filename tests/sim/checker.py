"""One checker for the ten promises (I1-I10), stricter than "nothing lost": a duplicate breaks them too. Pure.

    violations(facts) -> list[Violation(invariant, task_id, text)]      empty: every promise was kept

`Facts` (facts.py) are plain and may be partial: what is not known stays empty and is not checked, so the same
checker judges a simulated world and real processes. With `is_over=False` only what holds at every instant is
checked (I2-I6, I8, I9); with the default also that everything ended, and that the events replay.

For real processes: `tasks`, `attempts`, `events`, `parked` from the database; `wanted` from the journals (keys
written down before they were sent), `accepted`, `told`, `cancels`, `reopened` from what clients were told; `asked`
by asking for every task when all is over; `right` where the only right output of a task is known; `let_go` and
`spooled` where the spools were watched.
"""

import itertools
from collections.abc import Callable, Iterator

from koubou_common.messages.values import AttemptState, TaskState
from sim.answer_checks import alike, earlier_answers, of_one_version
from sim.facts import (
    Accepted,
    AttemptRow,
    EventRow,
    Facts,
    Invariant,
    Load,
    TaskRow,
    Told,
    Violation,
)
from sim.view import View

__all__ = [
    "Accepted",
    "AttemptRow",
    "BrokenPromiseError",
    "EventRow",
    "Facts",
    "Invariant",
    "Load",
    "TaskRow",
    "Told",
    "Violation",
    "violations",
]

# How an attempt stands once its delivered outcome is stored; a failure of a superseded attempt changes nothing.
STORED_SUCCESS = (AttemptState.SUCCEEDED, AttemptState.LATE)
STORED_FAILURE = (AttemptState.FAILED, AttemptState.LOST, AttemptState.ABORTED)

# Written down a second time, apart from the broker's own table: the checker must not err together with it.
_MOVES = {
    ("", "queued"),
    ("queued", "running"),
    ("queued", "succeeded"),
    ("queued", "failed"),
    ("queued", "cancelled"),
    ("running", "queued"),
    ("running", "succeeded"),
    ("running", "failed"),
    ("running", "cancelled"),
    ("succeeded", "queued"),
    ("failed", "queued"),
    ("cancelled", "queued"),
}
_ENDS = {"succeeded", "failed", "cancelled"}


class BrokenPromiseError(AssertionError):
    """A promise was broken."""

    def __init__(self, violation: Violation) -> None:
        super().__init__(str(violation))
        self.violation = violation


def violations(facts: Facts) -> list[Violation]:
    """Every broken promise, in the order of their names."""
    view = View(facts)
    found = [violation for check in _CHECKS for violation in check(view)]
    return sorted(found, key=lambda one: int(one.invariant.name[1:]))


def _acknowledged_ends(view: View) -> Iterator[Violation]:
    facts = view.facts
    for one in facts.accepted:
        for task_id in one.task_ids:
            if task_id not in view.tasks:
                yield Violation(Invariant.I1, task_id, f"was acknowledged to {one.principal} and is gone")
    if not facts.is_over:
        return
    for task in facts.tasks:
        if not task.state.is_terminal:
            yield Violation(Invariant.I1, task.task_id, f"has not ended, it is {task.state}")
    known = {(one.principal, one.key) for one in facts.accepted}
    for principal, key in sorted(facts.wanted - known):
        yield Violation(Invariant.I1, 0, f"{principal} was never told that {key} is accepted")
    answered = {(one.principal, one.task_id) for one in facts.asked}
    for one in facts.accepted:
        for task_id in one.task_ids:
            if facts.asked and task_id in view.tasks and (one.principal, task_id) not in answered:
                yield Violation(Invariant.I1, task_id, f"{one.principal} could not learn how it ended")


def _one_task_a_key(view: View) -> Iterator[Violation]:
    facts = view.facts
    ids_of: dict[tuple[str, str], tuple[int, ...]] = {}
    meaning: dict[int, tuple[str, str]] = {}
    for one in (*facts.voided, *facts.accepted):
        name = (one.principal, one.key)
        for task_id in one.task_ids:
            if meaning.setdefault(task_id, name) != name:
                yield Violation(Invariant.I2, task_id, f"is the task of two keys, {meaning[task_id]} and {name}")
    for one in facts.accepted:
        name = (one.principal, one.key)
        if ids_of.setdefault(name, one.task_ids) != one.task_ids:
            text = f"{name} was acknowledged as {ids_of[name]} and as {one.task_ids}"
            yield Violation(Invariant.I2, one.task_ids[0], text)
    if not facts.is_over:
        return
    clients = {principal for principal, _ in facts.wanted}
    theirs = {task_id for one in facts.accepted for task_id in one.task_ids}
    for task in facts.tasks:
        if task.principal in clients and task.task_id not in theirs:
            text = f"is a task of {task.principal} beside those of its keys"
            yield Violation(Invariant.I2, task.task_id, text)


def _one_outcome(view: View) -> Iterator[Violation]:
    facts = view.facts
    yield from _unchanged_rows(facts)
    for task in facts.tasks:
        won = view.winners(task)
        if task.state is TaskState.SUCCEEDED:
            if facts.attempts and len(won) != (0 if task.is_cached else 1):
                said = f"{len(won)} attempts are recorded as its success{', an earlier answer' * task.is_cached}"
                yield Violation(Invariant.I3, task.task_id, said)
        elif won:
            yield Violation(Invariant.I3, task.task_id, f"is {task.state}, and attempt {won[0].number} its success")
        rows = view.attempts_of[task.task_id]
        numbers = [row.number for row in rows]
        if len(numbers) != len(set(numbers)):
            yield Violation(Invariant.I3, task.task_id, f"attempt numbers {sorted(numbers)}")
        runs = [row.number for row in rows if row.state is AttemptState.RUNNING]
        if task.state.is_terminal and runs:
            yield Violation(Invariant.I3, task.task_id, f"is {task.state}, and attempts {runs} run on")
    yield from _told_the_same(view)


def _unchanged_rows(facts: Facts) -> Iterator[Violation]:
    last: dict[int, TaskRow] = {}
    for row in facts.written:
        if not isinstance(row, TaskRow):
            continue
        before = last.get(row.task_id)
        if before is not None and before.state.is_terminal and before.generation == row.generation and row != before:
            text = f"was recorded as {before.state}, then as {row.state}"
            yield Violation(Invariant.I3, row.task_id, text)
        last[row.task_id] = row


def _told_the_same(view: View) -> Iterator[Violation]:
    facts = view.facts
    first: dict[int, Told] = {}
    for one in facts.told:
        before = first.setdefault(one.task_id, one)
        ends = {event.after for event in view.events_of[one.task_id]} & _ENDS
        if one.task_id not in facts.reopened and before.state is not one.state:
            text = f"was told as {before.state} to {before.principal}, as {one.state} to {one.principal}"
            yield Violation(Invariant.I3, one.task_id, text)
        elif facts.events and one.state.value not in ends:
            text = f"{one.principal} was told that it is {one.state}, which it never was"
            yield Violation(Invariant.I3, one.task_id, text)
    for one in facts.asked:
        task = view.tasks.get(one.task_id)
        if task is not None and task.state is not one.state:
            yield Violation(Invariant.I3, one.task_id, f"{one.principal} is told {one.state}, recorded is {task.state}")


def _outcome_of_its_own(view: View) -> Iterator[Violation]:
    facts = view.facts
    for attempt in facts.attempts:
        task_id = facts.issued.get(attempt.uid)
        if attempt.state is AttemptState.SUCCEEDED and facts.issued and task_id != attempt.task_id:
            text = f"its attempt {attempt.uid} was issued for {task_id or 'nobody'}"
            yield Violation(Invariant.I4, attempt.task_id, text)
    for task in facts.tasks:
        if task.state is not TaskState.SUCCEEDED:
            continue
        if task.result is None:
            yield Violation(Invariant.I4, task.task_id, "succeeded without an output")
            continue
        if facts.right and task.result != facts.right.get(task.task_id):
            yield Violation(Invariant.I4, task.task_id, "its output is not what its prompt asks for")
        won = view.winners(task)
        if facts.outputs and won and all(task.result != facts.outputs.get(one.uid) for one in won):
            text = f"its output is not what attempt {won[0].uid} made"
            yield Violation(Invariant.I4, task.task_id, text)


def _cancels_stay(view: View) -> Iterator[Violation]:
    for principal, task_id in sorted(view.facts.cancels):
        task = view.tasks.get(task_id)
        if task is not None and task.state is not TaskState.CANCELLED and task_id not in view.facts.reopened:
            yield Violation(Invariant.I5, task_id, f"{principal}'s cancel was acknowledged, and it is {task.state}")


def _spools_keep(view: View) -> Iterator[Violation]:
    facts = view.facts
    for uid in sorted(facts.let_go - facts.parked):
        attempt = view.attempts.get(uid)
        if attempt is None:
            yield Violation(Invariant.I6, 0, f"attempt {uid} left its spool and is neither recorded nor parked")
            continue
        stored: tuple[AttemptState, ...] = STORED_SUCCESS if uid in facts.outputs else STORED_FAILURE
        wanted = facts.version_of.get(attempt.task_id)
        if wanted and uid in facts.outputs and facts.versions.get(uid, wanted) != wanted:
            stored = (*STORED_FAILURE, AttemptState.LATE)  # an answer, and not one that was asked for
        if attempt.state not in stored:
            text = f"attempt {uid} left its spool and is recorded as {attempt.state}"
            yield Violation(Invariant.I6, attempt.task_id, text)


def _finished_counts(view: View) -> Iterator[Violation]:
    facts = view.facts
    ended: set[tuple[int, int]] = set()  # (task, generation)
    for row in facts.written:
        if isinstance(row, TaskRow):
            if row.state.is_terminal:
                ended.add((row.task_id, row.generation))
        elif row.state is AttemptState.LATE and (row.task_id, row.generation) not in ended:
            text = f"the success of attempt {row.uid} was put by as late, and the task had not ended"
            yield Violation(Invariant.I7, row.task_id, text)
    if not facts.is_over:
        return
    for uid in sorted(facts.spooled - facts.let_go):
        task_id = view.attempts[uid].task_id if uid in view.attempts else 0
        yield Violation(Invariant.I7, task_id, f"the outcome of attempt {uid} was never delivered")


def _within_slots(view: View) -> Iterator[Violation]:
    for load in view.facts.loads:
        if load.running > load.slots:
            yield Violation(Invariant.I8, 0, f"{load.worker_id} ran {load.running} attempts in {load.slots} slots")
        if load.given > load.slots:
            yield Violation(Invariant.I8, 0, f"{load.worker_id} was given {load.given} attempts for {load.slots} slots")


def _nothing_of_others(view: View) -> Iterator[Violation]:
    facts = view.facts
    owners = {task_id: one.principal for one in (*facts.voided, *facts.accepted) for task_id in one.task_ids}
    owners |= {task.task_id: task.principal for task in facts.tasks}
    for principal, task_id in sorted(facts.seen_tasks):
        owner = owners.get(task_id)
        if owner is not None and owner != principal and principal not in facts.operators:
            yield Violation(Invariant.I9, task_id, f"{principal} saw a task of {owner}")
    for worker_id, uid in sorted(facts.seen_attempts):
        attempt = view.attempts.get(uid)
        if attempt is not None and attempt.worker_id != worker_id:
            yield Violation(Invariant.I9, attempt.task_id, f"{worker_id} saw attempt {uid} of {attempt.worker_id}")


def _events_replay(view: View) -> Iterator[Violation]:
    facts = view.facts
    if not facts.events or not facts.is_over:
        return
    seqs = [event.seq for event in facts.events]
    if any(later <= earlier for earlier, later in itertools.pairwise(seqs)):
        yield Violation(Invariant.I10, 0, "event numbers do not rise")
    for task_id in sorted(view.events_of.keys() - view.tasks.keys()):
        if view.events_of[task_id]:
            yield Violation(Invariant.I10, task_id, "has events and no row")
    for task in facts.tasks:
        yield from _replayed(view, task)


def _replayed(view: View, task: TaskRow) -> Iterator[Violation]:
    state, generation, won = "", 1, 0
    for event in view.events_of[task.task_id]:
        if event.before != state:
            text = f"event {event.seq} begins at {event.before or 'nothing'}, the one before ended at {state}"
            yield Violation(Invariant.I10, task.task_id, text)
        if (event.before, event.after) not in _MOVES:
            text = f"event {event.seq} goes from {event.before} to {event.after}"
            yield Violation(Invariant.I10, task.task_id, text)
        generation += event.before in _ENDS
        won = event.attempt if event.after == TaskState.SUCCEEDED else 0
        state = event.after
    if state != task.state:
        yield Violation(Invariant.I10, task.task_id, f"its events end at {state or 'nothing'}, its row is {task.state}")
    if generation != task.generation:
        text = f"its events tell of {generation} generations, its row of {task.generation}"
        yield Violation(Invariant.I10, task.task_id, text)
    if won and view.facts.attempts and all(row.number != won for row in view.winners(task)):
        yield Violation(Invariant.I10, task.task_id, f"its events name attempt {won} as its success, the rows do not")


_CHECKS: tuple[Callable[[View], Iterator[Violation]], ...] = (
    _acknowledged_ends,
    _one_task_a_key,
    _one_outcome,
    _outcome_of_its_own,
    earlier_answers,
    of_one_version,
    alike,
    _cancels_stay,
    _spools_keep,
    _finished_counts,
    _within_slots,
    _nothing_of_others,
    _events_replay,
)
