"""Answers given again and answers of one version: what is allowed passes, and each liberty taken is noticed."""

from dataclasses import replace

import pytest

from koubou_common.messages.values import AttemptState, TaskState
from sim.checker import violations
from sim.facts import AttemptRow, EventRow, Facts, Invariant, TaskRow

OUTPUT, OTHER = b"what was said first", b"what was said of something else"
FIRST = TaskRow(1, "mika", TaskState.SUCCEEDED, result=OUTPUT)
AGAIN = TaskRow(2, "mika", TaskState.SUCCEEDED, result=OUTPUT, is_cached=True)
OF_RIN = TaskRow(3, "rin", TaskState.SUCCEEDED, result=OTHER)
MADE = AttemptRow("a", 1, 1, "w0", AttemptState.SUCCEEDED)
MADE_FOR_RIN = AttemptRow("b", 3, 1, "w1", AttemptState.SUCCEEDED)
CLEAN = Facts(
    tasks=(FIRST, AGAIN, OF_RIN),
    attempts=(MADE, MADE_FOR_RIN),
    events=(
        EventRow(1, 1, "", "queued"),
        EventRow(2, 1, "queued", "running", 1),
        EventRow(3, 1, "running", "succeeded", 1),
        EventRow(4, 2, "", "queued"),
        EventRow(5, 2, "queued", "succeeded"),
        EventRow(6, 3, "", "queued"),
        EventRow(7, 3, "queued", "running", 1),
        EventRow(8, 3, "running", "succeeded", 1),
    ),
    questions={1: "which?", 2: "which?", 3: "which?"},
    version_of={2: "v1"},
    alike=frozenset({frozenset({1, 2})}),
    outputs={"a": OUTPUT, "b": OTHER},
    versions={"a": "v1", "b": "v2"},
)


def with_task(task: TaskRow) -> Facts:
    return replace(CLEAN, tasks=tuple(task if one.task_id == task.task_id else one for one in CLEAN.tasks))


BROKEN = {
    "the answer of somebody else": (Invariant.I4, with_task(replace(AGAIN, result=OTHER))),
    "the answer to another question": (Invariant.I4, replace(CLEAN, questions={**CLEAN.questions, 2: "where?"})),
    "an answer that nobody made": (Invariant.I4, with_task(replace(AGAIN, result=b"invented"))),
    "no answer at all": (Invariant.I4, with_task(replace(AGAIN, result=None))),
    "an answer that did not count": (
        Invariant.I4,
        replace(
            with_task(replace(FIRST, state=TaskState.CANCELLED)), attempts=(replace(MADE, state=AttemptState.LATE),)
        ),
    ),
    "an earlier answer for who wants a new one": (Invariant.I4, replace(CLEAN, wants_new=frozenset({2}))),
    "an earlier answer and an attempt": (
        Invariant.I3,
        replace(CLEAN, attempts=(*CLEAN.attempts, AttemptRow("c", 2, 1, "w0", AttemptState.SUCCEEDED))),
    ),
    "no attempt, and no earlier answer": (Invariant.I3, with_task(replace(AGAIN, is_cached=False))),
    "the answer of another version than asked for": (Invariant.I4, replace(CLEAN, version_of={2: "v2"})),
    "two versions for tasks that are alike": (
        Invariant.I4,
        replace(CLEAN, alike=frozenset({frozenset({1, 3})})),
    ),
}


def test_an_answer_may_be_given_again() -> None:
    assert violations(CLEAN) == []


@pytest.mark.parametrize("what", BROKEN)
def test_each_liberty_is_noticed(what: str) -> None:
    invariant, facts = BROKEN[what]
    assert invariant in {one.invariant for one in violations(facts)}


def test_an_answer_may_be_given_again_though_its_task_was_opened_once_more() -> None:
    retried = replace(with_task(replace(FIRST, state=TaskState.CANCELLED, generation=2, result=None)), events=())
    assert violations(retried) == []


def test_an_answer_of_the_wrong_version_is_recorded_as_a_failure() -> None:
    failed = AttemptRow("a", 1, 1, "w0", AttemptState.FAILED)
    task = replace(FIRST, state=TaskState.FAILED, result=None)
    facts = Facts(
        tasks=(task,),
        attempts=(failed,),
        outputs={"a": OUTPUT},
        versions={"a": "v2"},
        version_of={1: "v1"},
        spooled=frozenset({"a"}),
        let_go=frozenset({"a"}),
    )
    assert violations(facts) == []
    assert [one.invariant for one in violations(replace(facts, versions={"a": "v1"}))] == [Invariant.I6]
