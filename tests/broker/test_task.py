"""The table of transitions and what a failure means."""

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from koubou_broker.core_settings import CoreSettings
from koubou_broker.task import TRANSITIONS, Cause, Task, allowed, charge, forgive, judge
from koubou_common.errors import Category, ErrorClass, category_of
from koubou_common.messages.values import TaskState
from support.core_play import a_new_task

SETTINGS = CoreSettings()
TERMINAL = (TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELLED)


def a_task(state: TaskState = TaskState.QUEUED, max_attempts: int = 5) -> Task:
    return Task(a_new_task(max_attempts=max_attempts), state)


def test_the_table_is_the_picture_in_the_design() -> None:
    moves = {(before, after) for (before, _), after in TRANSITIONS.items()}
    queued, running = TaskState.QUEUED, TaskState.RUNNING
    assert moves == {
        (queued, running),
        *((queued, end) for end in TERMINAL),
        (running, queued),
        *((running, end) for end in TERMINAL),
        *((end, queued) for end in TERMINAL),
    }


def test_only_an_explicit_retry_leads_out_of_an_end() -> None:
    assert {cause for state, cause in TRANSITIONS if state in TERMINAL} == {Cause.REOPENED}
    assert not any(allowed(state, Cause.REOPENED) for state in (TaskState.QUEUED, TaskState.RUNNING))


@given(st.lists(st.sampled_from(Cause), max_size=30))
def test_a_task_moves_by_the_table_or_not_at_all(causes: list[Cause]) -> None:
    task = a_task()
    for cause in causes:
        before = task.state
        if allowed(before, cause):
            assert task.move(cause) is before
            assert task.state is TRANSITIONS[before, cause]
        else:
            with pytest.raises(AssertionError, match=f"no move {cause} from {before}"):
                task.move(cause)
            assert task.state is before


def test_a_wrong_move_tells_the_story_of_the_task() -> None:
    task = a_task()
    task.move(Cause.CANCELLED, "by mika")
    with pytest.raises(AssertionError, match=re.escape("queued -> cancelled: cancelled (by mika)")):
        task.move(Cause.DISPATCHED)


def test_the_story_keeps_its_last_lines() -> None:
    task = a_task()
    for nth in range(1_000):
        task.tell(f"line {nth}")
    assert len(task.story) < 100
    assert task.story[-1] == "line 999"


def test_rows_and_back_are_the_same_task() -> None:
    task = a_task(TaskState.RUNNING)
    charge(task, ErrorClass.AGENT_LOST, "w1", "b1")
    charge(task, ErrorClass.MODEL_MISSING, "w2", "b2")
    assert Task.restored(task.spec, task.progress()).progress() == task.progress()


def test_a_reopened_task_counts_anew_and_numbers_on() -> None:
    task = a_task(TaskState.FAILED)
    task.issued, task.transient_failures, task.excluded = 5, 5, ("w1",)
    again = task.reopened()
    assert (again.generation, again.issued, again.transient_failures, again.excluded) == (2, 5, 0, ())


def test_a_transient_failure_goes_back_with_a_growing_wait() -> None:
    task = a_task(max_attempts=100)
    waits = []
    for _ in range(10):
        charge(task, ErrorClass.STALLED, "w1", "b1")
        verdict = judge(task, ErrorClass.STALLED, "no token", SETTINGS, another_left=True)
        assert verdict.error_class is None
        waits.append(verdict.wait_most_s)
    assert waits == [2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
    assert task.avoid == "w1"


@pytest.mark.parametrize("most", [1, 3, 5])
def test_transient_failures_end_the_task_at_its_own_limit(most: int) -> None:
    task = a_task(max_attempts=most)
    verdicts = []
    for _ in range(most):
        charge(task, ErrorClass.STALLED, "w1", "b1")
        verdicts.append(judge(task, ErrorClass.STALLED, "no token", SETTINGS, another_left=True))
    assert [one.error_class for one in verdicts] == [None] * (most - 1) + [ErrorClass.ATTEMPTS_EXHAUSTED]
    assert "stalled: no token" in verdicts[-1].message


def test_a_lost_agent_costs_nothing_and_waits_for_nothing() -> None:
    task = a_task(max_attempts=1)
    charge(task, ErrorClass.AGENT_LOST, "w1", "b1")
    verdict = judge(task, ErrorClass.AGENT_LOST, "", SETTINGS, another_left=True)
    assert (verdict.error_class, verdict.wait_most_s) == (None, 0.0)
    assert task.transient_failures == 0


def test_three_deaths_of_different_agents_or_boots_are_poison() -> None:
    task = a_task()
    for worker_id, boot_id in [("w1", "b1"), ("w1", "b1"), ("w1", "b2")]:
        charge(task, ErrorClass.AGENT_LOST, worker_id, boot_id)
        assert judge(task, ErrorClass.AGENT_LOST, "", SETTINGS, another_left=True).error_class is None
    charge(task, ErrorClass.RUNNER_KILLED, "w2", "b9")
    verdict = judge(task, ErrorClass.RUNNER_KILLED, "out of memory", SETTINGS, another_left=True)
    assert verdict.error_class is ErrorClass.POISON
    assert "w1, w1, w2" in verdict.message


def test_an_agent_found_alive_did_not_die() -> None:
    task = a_task()
    charge(task, ErrorClass.AGENT_LOST, "w1", "b1")
    forgive(task, "w1", "b1")
    assert (task.deaths, task.error_cause) == ((), None)


def test_a_drain_is_no_death() -> None:
    task = a_task()
    for boot in range(10):
        charge(task, ErrorClass.DRAIN, "w1", f"b{boot}")
    assert task.deaths == ()


def test_never_more_than_twenty_attempts() -> None:
    task = a_task()
    task.uids = [str(nth) for nth in range(20)]
    charge(task, ErrorClass.DRAIN, "w1", "b1")
    verdict = judge(task, ErrorClass.DRAIN, "", SETTINGS, another_left=True)
    assert verdict.error_class is ErrorClass.ATTEMPTS_EXHAUSTED
    assert "20 attempts" in verdict.message


def test_a_worker_failure_excludes_the_worker_and_ends_the_task_with_its_own_class() -> None:
    task = a_task()
    charge(task, ErrorClass.MODEL_MISSING, "w1", "b1")
    assert task.excluded == ("w1",)
    assert judge(task, ErrorClass.MODEL_MISSING, "", SETTINGS, another_left=True).error_class is None
    last = judge(task, ErrorClass.MODEL_MISSING, "", SETTINGS, another_left=False)
    assert last.error_class is ErrorClass.MODEL_MISSING


@pytest.mark.parametrize("error_class", [one for one in ErrorClass if category_of(one) is Category.PERMANENT])
def test_a_permanent_failure_is_never_retried(error_class: ErrorClass) -> None:
    task = a_task()
    charge(task, error_class, "w1", "b1")
    assert judge(task, error_class, "", SETTINGS, another_left=True).error_class is error_class


def test_the_wait_stays_finite_after_any_number_of_failures() -> None:
    task = a_task(max_attempts=20)
    settings = replace(SETTINGS, transient_attempts=10**6)
    task.infra_failures = 10**6
    charge(task, ErrorClass.RUNNER_KILLED, "w1", "b1")
    assert judge(task, ErrorClass.RUNNER_KILLED, "", settings, another_left=True).wait_most_s == 300
