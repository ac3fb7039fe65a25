"""When a task would begin: the same as if the slots took one task after the other, told with what it rests on."""

import heapq
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from koubou_broker.core.estimate import Slot, begins_s
from koubou_broker.core_settings import Rule
from koubou_common.errors import Code
from koubou_common.messages import Preview, Submit
from koubou_common.messages.values import Plan, TaskSpec
from koubou_common.reasons import Reason
from support.core_play import (
    Play,
    a_client,
    a_spec,
    a_status,
    a_worker,
    an_agent,
    an_agent_hello,
    refusal,
    sent,
    some_settings,
    the,
)

MIKA = a_client()
slots = some.builds(Slot, some.floats(0, 500), some.floats(1, 500))


def begun_one_by_one(given_slots: list[Slot], ahead: int) -> float:
    """The naive truth: each task goes to the slot that is free first."""
    free = [(slot.free_in_s, nth) for nth, slot in enumerate(given_slots)]
    heapq.heapify(free)
    for _ in range(ahead):
        at_s, nth = heapq.heappop(free)
        heapq.heappush(free, (at_s + given_slots[nth].takes_s, nth))
    return free[0][0]


@given(some.lists(slots, min_size=1, max_size=8), some.integers(0, 200))
@settings(max_examples=150, deadline=None)
def test_a_task_begins_when_the_slots_have_begun_all_before_it(given_slots: list[Slot], ahead: int) -> None:
    assert begins_s(given_slots, ahead) == pytest.approx(begun_one_by_one(given_slots, ahead), rel=1e-3, abs=0.02)


def a_plan(play: Play, spec: TaskSpec | None = None) -> Plan:
    """What a dry run tells."""
    play.join(MIKA)
    asked = Submit("d", "k-dry", (spec or a_spec(),), dry_run=True)
    return the(the(sent(play.say(MIKA, asked), Preview)).plans)


def test_with_a_free_worker_it_would_begin_at_once() -> None:
    play = Play()
    play.join(an_agent())
    plan = a_plan(play)
    assert (plan.starts_in_s, plan.starts_basis, plan.reasons) == (0.0, "a worker is free for it", ())


def test_tasks_that_wait_for_somebody_else_do_not_keep_it_from_a_free_worker() -> None:
    play = Play(some_settings(a_worker("w1"), a_worker("w2")))
    play.join(an_agent("w1"))
    play.submit(*(a_spec(f"waits {nth}", worker="w2", priority=9) for nth in range(3)))
    assert a_plan(play).starts_in_s == 0.0


def test_without_a_worker_nobody_can_tell() -> None:
    plan = a_plan(Play())
    assert (plan.starts_in_s, plan.starts_basis) == (None, "no worker could take it as things stand")
    assert [(one.reason, one.count) for one in plan.reasons] == [(Reason.NOT_CONNECTED, 1)]


def test_a_dry_run_of_very_many_tasks_is_refused_before_any_is_weighed() -> None:
    play = Play()
    play.join(MIKA)
    refused = refusal(play.say(MIKA, Submit("d", "k", (a_spec(),) * 51, dry_run=True)))
    assert refused.code is Code.TOO_LARGE
    assert "at most 50" in refused.message


def test_what_would_be_refused_has_no_time() -> None:
    plan = a_plan(Play(), a_spec(model="nobody:has"))
    assert plan.refusal
    assert (plan.starts_in_s, plan.starts_basis) == (None, "")


def test_a_new_task_begins_after_what_runs_and_what_goes_before_it() -> None:
    play = Play()
    play.join(an_agent())
    play.submit(a_spec("runs"))
    first = a_plan(play)
    assert first.starts_in_s is not None
    assert first.starts_in_s > 0
    assert first.starts_basis == "nothing before it; 1 slot of 1 worker"
    play.submit(*(a_spec(f"waits {nth}") for nth in range(3)))
    later = a_plan(play)
    assert later.starts_in_s is not None
    # Three like itself, each for as long as such a task takes there.
    takes_s = (later.starts_in_s - first.starts_in_s) / 3
    assert later.starts_basis == f"3 tasks before it, each about {takes_s:.0f} s; 1 slot of 1 worker"
    assert a_plan(play, a_spec(priority=9)).starts_in_s == first.starts_in_s, "nothing goes before an urgent one"
    play.wait(first.starts_in_s / 2)
    nearer = a_plan(play, a_spec(priority=9)).starts_in_s
    assert nearer is None, "the agent has been silent meanwhile"


def test_what_runs_comes_nearer_to_its_end() -> None:
    play = Play()
    play.join(an_agent())
    uid = play.dispatched(a_spec("runs")).attempt_uid
    before_s = a_plan(play).starts_in_s
    play.wait(5)
    play.say(an_agent(), an_agent_hello(a_status([uid], free=0, last=1)))
    after_s = a_plan(play).starts_in_s
    assert before_s is not None
    assert after_s is not None
    assert before_s - after_s == pytest.approx(5, abs=1)


def test_a_worker_that_the_rule_keeps_for_later_counts_from_then() -> None:
    rules = (Rule(1, 10, ("local",), overflow_after_s=120.0),)
    workers = (a_worker("w1", slots=1), a_worker("lan", location="remote"))
    play = Play(replace(some_settings(*workers), rules=rules))
    play.join(an_agent("lan"))
    plan = a_plan(play)
    assert plan.starts_in_s == 120.0
    assert [(one.reason, one.count) for one in plan.reasons] == [
        (Reason.NOT_CONNECTED, 1),
        (Reason.WAITS_FOR_PREFERRED, 1),
    ]
