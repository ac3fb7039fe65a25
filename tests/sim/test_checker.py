"""The checker itself: a clean history passes, and each promise broken once is noticed by its name."""

from dataclasses import replace

import pytest

from koubou_common.messages.values import AttemptState, TaskState
from sim.checker import violations
from sim.facts import Accepted, AttemptRow, EventRow, Facts, Invariant, Load, TaskRow, Told

OUTPUT, OTHER = b"what attempt b made", b"something else"

TASK = TaskRow(1, "mika", TaskState.SUCCEEDED, result=OUTPUT)
STOPPED = TaskRow(2, "mika", TaskState.CANCELLED)
OF_ANOTHER = TaskRow(3, "rin", TaskState.FAILED)
LOST = AttemptRow("a", 1, 1, "w0", AttemptState.LOST)
WON = AttemptRow("b", 1, 2, "w1", AttemptState.SUCCEEDED)
ABORTED = AttemptRow("c", 2, 1, "w0", AttemptState.ABORTED)
FAILED = AttemptRow("d", 3, 1, "w0", AttemptState.FAILED)
EVENTS = (
    EventRow(1, 1, "", "queued"),
    EventRow(2, 1, "queued", "running", 1),
    EventRow(3, 2, "", "queued"),
    EventRow(4, 1, "running", "queued", 1),
    EventRow(5, 3, "", "queued"),
    EventRow(6, 1, "queued", "running", 2),
    EventRow(7, 2, "queued", "running", 1),
    EventRow(8, 1, "running", "succeeded", 2),
    EventRow(9, 2, "running", "cancelled"),
    EventRow(10, 3, "queued", "running", 1),
    EventRow(11, 3, "running", "failed", 1),
)
CLEAN = Facts(
    tasks=(TASK, STOPPED, OF_ANOTHER),
    attempts=(LOST, WON, ABORTED, FAILED),
    events=EVENTS,
    parked=frozenset({"of a lost time"}),
    written=(TASK, WON, STOPPED, ABORTED, OF_ANOTHER, FAILED),
    wanted=frozenset({("mika", "k1"), ("mika", "k2"), ("rin", "k1")}),
    accepted=(Accepted("mika", "k1", (1,)), Accepted("mika", "k2", (2,)), Accepted("rin", "k1", (3,))),
    told=(
        Told("mika", 1, TaskState.SUCCEEDED),
        Told("mika", 1, TaskState.SUCCEEDED),
        Told("mika", 2, TaskState.CANCELLED),
    ),
    asked=(
        Told("mika", 1, TaskState.SUCCEEDED),
        Told("mika", 2, TaskState.CANCELLED),
        Told("rin", 3, TaskState.FAILED),
    ),
    cancels=frozenset({("mika", 2)}),
    issued={"a": 1, "b": 1, "c": 2, "d": 3},
    outputs={"b": OUTPUT, "of a lost time": OTHER},
    right={1: OUTPUT},
    spooled=frozenset({"b", "d", "of a lost time"}),
    let_go=frozenset({"b", "d", "of a lost time"}),
    loads=(Load("w0", 2, 2, 2), Load("w1", 1, 1, 1)),
    seen_tasks=frozenset({("mika", 1), ("mika", 2), ("rin", 3), ("boss", 1)}),
    seen_attempts=frozenset({("w0", "a"), ("w1", "b"), ("w0", "c"), ("w0", "d")}),
    operators=frozenset({"boss"}),
)


def _tasks(*changed: TaskRow) -> tuple[TaskRow, ...]:
    now = {row.task_id: row for row in (*CLEAN.tasks, *changed)}
    return tuple(now.values())


def _attempts(*changed: AttemptRow) -> tuple[AttemptRow, ...]:
    now = {row.uid: row for row in (*CLEAN.attempts, *changed)}
    return tuple(now.values())


BROKEN: dict[str, tuple[Invariant, Facts]] = {
    "an acknowledged task is gone": (
        Invariant.I1,
        replace(CLEAN, accepted=(*CLEAN.accepted, Accepted("mika", "k3", (9,)))),
    ),
    "a task never ends": (Invariant.I1, replace(CLEAN, tasks=_tasks(replace(OF_ANOTHER, state=TaskState.QUEUED)))),
    "a submission is never acknowledged": (Invariant.I1, replace(CLEAN, wanted=CLEAN.wanted | {("rin", "k2")})),
    "a client never learns how its task ended": (Invariant.I1, replace(CLEAN, asked=CLEAN.asked[:2])),
    "a key has two tasks": (
        Invariant.I2,
        replace(CLEAN, accepted=(*CLEAN.accepted, Accepted("mika", "k1", (3,)))),
    ),
    "a key has a task nobody was told of": (
        Invariant.I2,
        replace(
            CLEAN,
            tasks=_tasks(TaskRow(4, "mika", TaskState.CANCELLED)),
            events=(*EVENTS, EventRow(12, 4, "", "queued"), EventRow(13, 4, "queued", "cancelled")),
        ),
    ),
    "an id has two keys": (
        Invariant.I2,
        replace(CLEAN, accepted=(*CLEAN.accepted, Accepted("rin", "k9", (1,)))),
    ),
    "a restored broker gives an id away again": (
        Invariant.I2,
        replace(CLEAN, voided=(Accepted("rin", "k8", (2,)),)),
    ),
    "two attempts succeed": (
        Invariant.I3,
        replace(CLEAN, attempts=_attempts(replace(LOST, state=AttemptState.SUCCEEDED))),
    ),
    "an attempt of a cancelled task succeeds": (
        Invariant.I3,
        replace(CLEAN, attempts=_attempts(replace(ABORTED, state=AttemptState.SUCCEEDED))),
    ),
    "an outcome is written over": (
        Invariant.I3,
        replace(CLEAN, written=(replace(TASK, state=TaskState.FAILED, result=None), *CLEAN.written)),
    ),
    "an outcome is written over with another text": (
        Invariant.I3,
        replace(CLEAN, written=(replace(TASK, result=OTHER), *CLEAN.written)),
    ),
    "an attempt runs on": (
        Invariant.I3,
        replace(CLEAN, attempts=_attempts(replace(FAILED, state=AttemptState.RUNNING))),
    ),
    "two attempts have one number": (Invariant.I3, replace(CLEAN, attempts=_attempts(replace(LOST, number=2)))),
    "a client is told two ends": (
        Invariant.I3,
        replace(CLEAN, told=(*CLEAN.told, Told("mika", 1, TaskState.FAILED))),
    ),
    "a client is told an end that never was": (
        Invariant.I3,
        replace(CLEAN, told=(Told("rin", 3, TaskState.SUCCEEDED),)),
    ),
    "the answer at the end is not the record": (
        Invariant.I3,
        replace(CLEAN, asked=(*CLEAN.asked[:2], Told("rin", 3, TaskState.CANCELLED))),
    ),
    "an attempt wins that was issued for another task": (Invariant.I4, replace(CLEAN, issued={"b": 2})),
    "an attempt wins that nobody issued": (Invariant.I4, replace(CLEAN, issued={"a": 1})),
    "a success has no output": (Invariant.I4, replace(CLEAN, tasks=_tasks(replace(TASK, result=None)))),
    "the output is of another attempt": (Invariant.I4, replace(CLEAN, tasks=_tasks(replace(TASK, result=OTHER)))),
    "the output is not of this prompt": (Invariant.I4, replace(CLEAN, right={1: OTHER})),
    "a cancelled task succeeds": (Invariant.I5, replace(CLEAN, cancels=CLEAN.cancels | {("mika", 1)})),
    "a spool lets go of what nobody knows": (
        Invariant.I6,
        replace(CLEAN, let_go=CLEAN.let_go | {"e"}, spooled=CLEAN.spooled | {"e"}),
    ),
    "a spool lets go of a success that is recorded as lost": (
        Invariant.I6,
        replace(CLEAN, let_go=CLEAN.let_go | {"a"}, spooled=CLEAN.spooled | {"a"}, outputs={"a": OTHER, "b": OUTPUT}),
    ),
    "a success is put by as late before the task ends": (
        Invariant.I7,
        replace(CLEAN, written=(replace(LOST, state=AttemptState.LATE), *CLEAN.written)),
    ),
    "an outcome stays in its spool for ever": (Invariant.I7, replace(CLEAN, let_go=CLEAN.let_go - {"d"})),
    "a worker runs too many": (Invariant.I8, replace(CLEAN, loads=(Load("w1", 1, 2),))),
    "a worker is given too many": (Invariant.I8, replace(CLEAN, loads=(Load("w1", 2, 2, 3),))),
    "a client sees a task of another": (Invariant.I9, replace(CLEAN, seen_tasks=frozenset({("rin", 1)}))),
    "a worker sees an attempt of another": (Invariant.I9, replace(CLEAN, seen_attempts=frozenset({("w0", "b")}))),
    "an event is missing": (Invariant.I10, replace(CLEAN, events=EVENTS[:3] + EVENTS[4:])),
    "the events end elsewhere": (Invariant.I10, replace(CLEAN, events=EVENTS[:10], told=())),
    "events come in the wrong order": (Invariant.I10, replace(CLEAN, events=(EVENTS[2], EVENTS[0], *EVENTS[3:]))),
    "an ended task goes on without a generation": (
        Invariant.I10,
        replace(CLEAN, events=(*EVENTS, EventRow(12, 3, "failed", "queued"), EventRow(13, 3, "queued", "failed"))),
    ),
    "an event makes a move that does not exist": (
        Invariant.I10,
        replace(CLEAN, events=(*EVENTS, EventRow(12, 3, "failed", "running"), EventRow(13, 3, "running", "failed"))),
    ),
    "the events name another winner": (
        Invariant.I10,
        replace(CLEAN, events=(*EVENTS[:7], replace(EVENTS[7], attempt=1), *EVENTS[8:])),
    ),
    "events tell of a task without a row": (
        Invariant.I10,
        replace(CLEAN, events=(*EVENTS, EventRow(12, 8, "", "queued"))),
    ),
}


def test_a_clean_history_breaks_nothing() -> None:
    assert violations(CLEAN) == []


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_promise_is_noticed_by_its_name(what: str) -> None:
    invariant, facts = BROKEN[what]
    found = violations(facts)
    assert invariant in {one.invariant for one in found}, f"{what}: {found}"


def test_every_promise_is_broken_once_here() -> None:
    assert {invariant for invariant, _ in BROKEN.values()} == set(Invariant)


def test_what_is_not_known_breaks_nothing() -> None:
    assert violations(Facts()) == []
    assert violations(Facts(tasks=CLEAN.tasks, accepted=CLEAN.accepted)) == []


def test_while_things_go_on_nothing_has_to_have_ended() -> None:
    running = replace(CLEAN, tasks=_tasks(replace(OF_ANOTHER, state=TaskState.RUNNING)), asked=(), is_over=False)
    assert violations(running) == []
    twice = replace(running, attempts=_attempts(replace(LOST, state=AttemptState.SUCCEEDED)))
    assert [one.invariant for one in violations(twice)] == [Invariant.I3]


def test_a_retried_task_has_an_outcome_a_generation() -> None:
    again = replace(
        CLEAN,
        tasks=_tasks(replace(OF_ANOTHER, state=TaskState.CANCELLED, generation=2)),
        events=(*EVENTS, EventRow(12, 3, "failed", "queued"), EventRow(13, 3, "queued", "cancelled")),
        told=(Told("rin", 3, TaskState.FAILED), Told("rin", 3, TaskState.CANCELLED)),
        asked=(*CLEAN.asked[:2], Told("rin", 3, TaskState.CANCELLED)),
        reopened=frozenset({3}),
    )
    assert violations(again) == []


def test_what_a_restore_took_back_may_be_submitted_again_under_its_key() -> None:
    restored = replace(CLEAN, voided=(Accepted("rin", "k1", (77,)),))
    assert violations(restored) == []


def test_a_violation_says_its_name_its_task_and_what_happened() -> None:
    found = violations(BROKEN["a worker sees an attempt of another"][1])
    assert [str(one) for one in found] == [
        "I9 (nobody sees what belongs to somebody else), task 1: w0 saw attempt b of w1"
    ]
