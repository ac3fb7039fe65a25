"""Tasks that begin alike follow each other on a box that has read the beginning, and nobody waits too long for that."""

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from koubou_broker.core import CoreSettings
from koubou_broker.routing.queue import HIGH
from koubou_common.messages.values import TaskSpec
from support.core_boxes import Boxes, Given
from support.core_play import MODEL, a_spec, a_worker, some_settings

PATIENCE_S = 300.0
OTHER = "other:latest"
_SHARED_BYTES = 12_000
_PROMPT_TOKENS = 4_000  # 10 s where nothing was measured: a good part of a run


def a_house(*worker_ids: str, slots: int = 1, patience_s: float = PATIENCE_S) -> CoreSettings:
    workers = [a_worker(worker_id, models=(MODEL, OTHER), slots=slots) for worker_id in worker_ids or ("w1",)]
    return replace(some_settings(*workers), patience_s=patience_s, aging_s=0.0)


def specs(batches: str, priority: int = 5, model: str = MODEL) -> list[TaskSpec]:
    """`pq`: a task of batch P, then one of Q; `.`: one that is like no other."""
    return [
        a_spec(f"task {nth}", priority=priority, model=model)
        if batch == "."
        else replace(
            a_spec(
                "the same", files=[(f"{batch}.md", _SHARED_BYTES), (f"{nth}.py", 300)], priority=priority, model=model
            ),
            prefix_files=1,
        )
        for nth, batch in enumerate(batches)
    ]


def boxes_of(house: CoreSettings, run_s: Callable[[int], float] = lambda _task_id: 20.0) -> Boxes:
    return Boxes(house, run_s=run_s, prompt_tokens=_PROMPT_TOKENS)


def play(house: CoreSettings, *some: list[TaskSpec], run_s: float = 20.0) -> Boxes:
    boxes = boxes_of(house, lambda _task_id: run_s)
    for one in some:
        boxes.submit(*one)
    boxes.run()
    boxes.core.check()
    return boxes


def order(boxes: Boxes) -> list[int]:
    return [one.task_id for one in boxes.given]


def readings(given: list[Given], batches: str) -> int:
    """How often a box with one slot was given a beginning that it had not read just before."""
    read: dict[str, str] = {}
    count = 0
    for one in given:
        batch = batches[one.task_id - 1]
        count += batch != "." and read.get(one.worker_id) != batch
        read[one.worker_id] = batch
    return count


def test_tasks_that_begin_alike_follow_each_other() -> None:
    assert order(play(a_house(), specs("pqpq.p"))) == [1, 3, 6, 2, 4, 5]


def test_without_patience_the_order_is_strict() -> None:
    assert order(play(a_house(patience_s=0.0), specs("pqpq"))) == [1, 2, 3, 4]


def test_a_beginning_that_is_read_in_no_time_is_no_reason() -> None:
    boxes = Boxes(a_house(), prompt_tokens=300)  # not a second of twenty
    boxes.submit(*specs("pqpq"))
    boxes.run()
    assert order(boxes) == [1, 2, 3, 4]


@pytest.mark.parametrize("priority", [HIGH, 10])
def test_who_waits_now_is_never_overtaken(priority: int) -> None:
    assert order(play(a_house(), specs("pqpq", priority))) == [1, 2, 3, 4]


def test_nobody_of_a_higher_priority_is_overtaken() -> None:
    assert order(play(a_house(), specs("pq", 5), specs("q", 6), specs("p", 5))) == [1, 3, 2, 4]


def test_nobody_of_a_higher_priority_is_overtaken_when_waiting_has_made_all_equal() -> None:
    boxes = boxes_of(replace(a_house(), aging_s=1.0))
    boxes.submit(*specs("pq", 4))
    boxes.wait(0.5)
    boxes.submit(*specs("q", 5))
    boxes.wait(0.5)
    boxes.submit(*specs("p", 4))
    boxes.run()
    assert order(boxes) == [1, 2, 3, 4]


def test_a_box_with_two_slots_goes_on_with_both_that_it_has_read() -> None:
    boxes = play(a_house(slots=2), specs("pqrpqr"))
    assert sorted(order(boxes)[:4]) == [1, 2, 4, 5]


def test_two_batches_mixed_are_read_hardly_more_often_than_one_after_the_other() -> None:
    batches = "pq" * 30
    for count in (1, 2, 3):
        boxes = play(a_house(*(f"w{nth}" for nth in range(count)), patience_s=900.0), specs(batches))
        assert sorted(order(boxes)) == list(range(1, len(batches) + 1))
        assert readings(boxes.given, batches) <= 2 * count + 2


def test_several_batches_take_turns_within_one_patience_and_not_task_by_task() -> None:
    batches = "pqr" * 60
    in_turn = readings(play(a_house(), specs(batches), run_s=5.0).given, batches)
    assert in_turn <= 60
    assert readings(play(a_house(patience_s=0.0), specs(batches), run_s=5.0).given, batches) == len(batches)


def test_the_last_of_another_batch_does_not_wait_for_the_end_of_a_long_one() -> None:
    boxes = play(a_house(), specs("pq" + "p" * 60))
    begun = {one.task_id: one.at_s for one in boxes.given}
    overtaken_s = begun[3]
    assert begun[2] - overtaken_s <= PATIENCE_S + 20.0
    assert order(boxes).index(2) > 5


def test_batches_do_not_cost_loads() -> None:
    """Two models, two batches of each: what goes first for its beginning makes no box load a model."""
    mixed = [one for _ in range(60) for one in (*specs("pq"), *specs("pq", model=OTHER))]
    alike = [replace(one, prefix_files=0) for one in mixed]
    house = a_house("w1", "w2")
    assert play(house, mixed).swaps <= play(house, alike).swaps


def test_what_goes_first_says_so() -> None:
    boxes = boxes_of(a_house())
    boxes.submit(*specs("pqp"))
    boxes.run(until_s=60.0)
    decisions = {one.task_id: one.decision for one in boxes.decided}
    assert decisions[3].note == "before its turn: w1 has read how its prompt begins"
    assert 2 not in decisions


@settings(max_examples=25, deadline=None)
@given(st.text("pqr.", min_size=1, max_size=80), st.integers(1, 3), st.integers(0, 1_000_000))
def test_nobody_is_overtaken_for_longer_than_the_patience(batches: str, count: int, seed: int) -> None:
    draw = random.Random(seed)
    lengths = [draw.uniform(1.0, 40.0) for _ in batches]
    boxes = boxes_of(
        a_house(*(f"w{nth}" for nth in range(count)), patience_s=100.0), lambda task_id: lengths[task_id - 1]
    )
    boxes.submit(*specs(batches))
    boxes.run()
    assert sorted(order(boxes)) == list(range(1, len(batches) + 1))
    first_s: dict[int, float] = {}
    waiting = set(range(1, len(batches) + 1))
    for one in boxes.given:
        waiting.discard(one.task_id)
        for task_id in waiting:
            if task_id < one.task_id:
                assert one.at_s - first_s.setdefault(task_id, one.at_s) < 100.0, (one, task_id)
