"""Waiting raises a priority, over attempts and restarts; who starves is told."""

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from koubou_broker.core.dispatching import STARVED, STARVED_AFTER_S
from koubou_broker.core_settings import CoreSettings
from koubou_broker.effects import Alert, Effect
from koubou_common.errors import ErrorClass
from koubou_common.messages import Cancel, Dispatch, Retry
from support.core_boxes import Boxes
from support.core_play import (
    Play,
    a_client,
    a_failure,
    a_heartbeat,
    a_result,
    a_spec,
    a_status,
    a_worker,
    an_agent,
    sent,
    some_settings,
    the,
)

W1 = an_agent("w1")
AGING_S = 1_800.0


def a_house(*, slots: int = 1) -> CoreSettings:
    return replace(some_settings(a_worker(slots=slots)), aging_s=AGING_S)


def order(boxes: Boxes) -> list[int]:
    return [one.task_id for one in boxes.given]


def long_tasks(_task_id: int) -> float:
    return AGING_S


def test_a_low_task_overtakes_younger_ones_of_a_higher_priority_when_it_has_waited_long_enough() -> None:
    boxes = Boxes(a_house(), run_s=long_tasks)
    boxes.submit(a_spec("runs"))
    boxes.submit(a_spec("low", priority=5))
    boxes.run(until_s=AGING_S / 2)
    boxes.submit(a_spec("high", priority=6))
    boxes.submit(a_spec("higher", priority=7))
    boxes.run()
    # When the first ends, low has aged to 6 and is older than high; none is as urgent as higher.
    assert order(boxes) == [1, 4, 2, 3]


def test_nothing_ages_past_those_who_wait_now() -> None:
    boxes = Boxes(a_house(), run_s=lambda _task_id: 20 * AGING_S)
    boxes.submit(a_spec("runs"))
    boxes.submit(a_spec("old", priority=7))
    boxes.run(until_s=10 * AGING_S)
    boxes.submit(a_spec("now", priority=8))
    boxes.run()
    assert order(boxes) == [1, 3, 2]


def test_without_ageing_a_low_task_waits_for_all_above_it() -> None:
    boxes = Boxes(replace(a_house(), aging_s=0.0), run_s=long_tasks)
    boxes.submit(a_spec("runs"))
    boxes.submit(a_spec("low", priority=1))
    boxes.submit(*(a_spec(f"high {nth}", priority=2) for nth in range(20)))
    boxes.run()
    assert order(boxes)[-1] == 2


def test_a_failed_attempt_does_not_begin_the_wait_anew() -> None:
    play = Play(a_house())
    play.join(W1)
    first = play.dispatched(a_spec("first", priority=4))
    for nth in range(200):
        if nth == 100:
            play.submit(a_spec("second", priority=5))
        play.say(W1, a_heartbeat(a_status([first.attempt_uid], free=0, last=1)))
        play.wait(10)
    # It has aged to 5 by now, and is the older one.
    uid = first.attempt_uid
    effects = play.say(W1, a_failure(uid, ErrorClass.DRAIN, a_status(spooled=[uid], last=1)))
    assert the(sent(effects, Dispatch)).task_id == 1


def test_a_restart_does_not_begin_the_wait_anew() -> None:
    play = Play(a_house())
    play.submit(a_spec("old", priority=4))
    play.wait(AGING_S)
    play.submit(a_spec("young", priority=5))
    again = play.restart()
    assert [one.task_id for one in sent(again.join(W1), Dispatch)] == [1]


def test_after_a_restart_the_first_in_is_first_though_the_wall_clock_had_jumped_back_in_between() -> None:
    play = Play(a_house())
    play.submit(a_spec("first"), a_spec("second"))
    play.wait(100)
    first = play.shelf.tasks[1]
    play.shelf.tasks[1] = replace(first, submitted_ms=first.submitted_ms + 3_600_000)
    again = play.restart()
    assert [one.task_id for one in sent(again.join(W1), Dispatch)] == [1]


@pytest.mark.parametrize("restarted", [False, True])
def test_a_retry_begins_the_wait_anew_and_a_restart_remembers_when_that_was(*, restarted: bool) -> None:
    play = Play(a_house())
    play.submit(a_spec("retried", priority=5))
    play.say(a_client(), Cancel("c", (1,)))
    play.wait(10 * AGING_S)
    play.submit(a_spec("waiting", priority=5))
    play.wait(AGING_S / 2)
    play.say(a_client(), Retry("r", (1,)))
    play.wait(AGING_S / 2)
    house = play.restart() if restarted else play
    assert [message.task_id for message in sent(house.join(W1), Dispatch)] == [2]


def test_the_decision_says_that_waiting_raised_the_priority() -> None:
    boxes = Boxes(a_house(), run_s=long_tasks)
    boxes.submit(a_spec("runs"), a_spec("waits", priority=3))
    boxes.run()
    attempt = the([one for one in boxes.shelf.attempts.values() if one.task_id == 2])
    assert "raised from priority 3 to 4 by waiting" in attempt.placement


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 7), st.integers(1, 900), st.integers(0, 600)), min_size=1, max_size=40),
    st.integers(1, 3),
)
def test_nothing_below_eight_starves_behind_anything_below_eight(tasks: list[tuple[int, int, int]], slots: int) -> None:
    """After as long as it takes to reach 7 only what was there before can go before it."""
    boxes = Boxes(a_house(slots=slots), run_s=lambda task_id: tasks[task_id - 1][1])
    submitted_s = {}
    at_s = 0.0
    for task_id, (priority, _, later_s) in enumerate(tasks, 1):
        at_s += later_s
        boxes.run(until_s=at_s)
        submitted_s[task_id] = at_s
        boxes.submit(a_spec(f"task {task_id}", priority=priority))
    boxes.run()
    assert sorted(order(boxes)) == sorted(submitted_s)
    for nth, one in enumerate(boxes.given):
        for later in boxes.given[nth + 1 :]:
            aged_s = submitted_s[later.task_id] + 7 * AGING_S
            assert submitted_s[one.task_id] < aged_s or one.at_s < aged_s, (one, later)
            assert boxes_order_holds(tasks, submitted_s, one.at_s, one.task_id, later.task_id), (one, later)


def boxes_order_holds(
    tasks: list[tuple[int, int, int]], submitted_s: dict[int, float], now_s: float, first: int, second: int
) -> bool:
    """Whether `first` may go at `now_s` while `second` waits, by the rule alone."""
    if submitted_s[second] > now_s or (submitted_s[second] == now_s and second > first):
        return True

    def place(task_id: int) -> tuple[int, int]:
        waited = int((now_s - submitted_s[task_id]) // AGING_S)
        return -min(7, tasks[task_id - 1][0] + waited), task_id

    return place(first) < place(second)


def test_a_low_task_among_a_stream_of_higher_ones_goes_within_a_bounded_number_of_dispatches() -> None:
    boxes = Boxes(a_house(), run_s=lambda _task_id: 60.0)
    boxes.submit(a_spec("runs", priority=7))
    boxes.submit(a_spec("low", priority=1))
    for nth in range(400):
        boxes.submit(a_spec(f"stream {nth}", priority=7))
        boxes.run(until_s=60.0 * (nth + 1))
    # Six steps of age, then the stream that was there before it: its own length.
    place = order(boxes).index(2)
    assert 6 * AGING_S / 60.0 <= place <= 6 * AGING_S / 60.0 + 5, place


def alerts(effects: list[Effect]) -> list[bool]:
    """Whether the alert was raised (True) or ended, in order."""
    return [bool(one.message) for one in effects if isinstance(one, Alert) and one.code == STARVED]


class Urgent(Play):
    """A house where tasks of priority 9 are always there first."""

    def __init__(self) -> None:
        super().__init__(a_house())
        self.join(W1)
        self.running = self.dispatched(a_spec("urgent", priority=9))
        self.count = 0

    def go_on(self, seconds: float, *, urgent: bool = True) -> list[Effect]:
        """The urgent one ends after so long; another one was submitted, or none."""
        effects = []
        for _ in range(round(seconds / 10)):
            effects += self.wait(10)
            effects += self.say(W1, a_heartbeat(a_status([self.running.attempt_uid], free=0, last=99)))
        self.count += 1
        if urgent:
            effects += self.submit(a_spec(f"urgent {self.count}", priority=9))
        uid = self.running.attempt_uid
        result = self.say(W1, a_result(uid, a_status(spooled=[uid], free=1, last=99)))
        self.running = sent(result, Dispatch)[0] if sent(result, Dispatch) else self.running
        return effects + result


def test_an_alert_tells_when_the_urgent_keep_all_others_waiting_and_ends_with_the_first_of_these() -> None:
    play = Urgent()
    play.submit(a_spec("low"))
    assert alerts(play.go_on(STARVED_AFTER_S / 2)) == []
    assert alerts(play.go_on(STARVED_AFTER_S / 2)) == [True]
    assert "8 to 10" in play.core._state.alerts[STARVED].message
    assert alerts(play.go_on(60)) == []
    assert alerts(play.go_on(60, urgent=False)) == [False]
    assert play.running.task_id == 2


def test_the_alert_ends_when_nothing_else_waits_any_more() -> None:
    play = Urgent()
    play.submit(a_spec("low"))
    play.go_on(STARVED_AFTER_S / 2)
    assert alerts(play.go_on(STARVED_AFTER_S / 2)) == [True]
    assert alerts(play.say(a_client(), Cancel("c", (2,)))) == [False]


@pytest.mark.parametrize("worker", ["", "w9"])
def test_who_waits_for_another_box_is_not_kept_waiting_by_the_urgent(worker: str) -> None:
    house = a_house()
    play = Urgent()
    if worker:
        house = replace(house, workers=(*house.workers, a_worker(worker)))
        play.core._state.add_worker(worker)
    play.submit(a_spec("low", worker=worker))
    play.go_on(STARVED_AFTER_S / 2)
    assert alerts(play.go_on(STARVED_AFTER_S / 2)) == ([] if worker else [True])


def test_the_same_inputs_give_the_same_decisions() -> None:
    given = []
    for _ in range(2):
        draw = random.Random(7)
        boxes = Boxes(a_house(slots=2), run_s=lambda task_id: 10.0 + task_id % 7)
        for nth in range(60):
            boxes.submit(a_spec(f"task {nth}", priority=draw.randint(1, 10)))
            boxes.run(until_s=5.0 * nth)
        boxes.run()
        given.append(boxes.given)
    assert given[0] == given[1]
