"""Tasks of one model follow each other on a box, and nobody waits too long for that."""

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from koubou_broker.core_settings import CoreSettings
from koubou_broker.routing.grouping import DUE_SHARE, Grouping
from koubou_broker.routing.queue import HIGH, Head, Need, ReadyQueue
from koubou_broker.routing.workers import LiveWorker
from koubou_common.messages.values import TaskSpec
from support.core_boxes import Boxes, Given
from support.core_play import a_spec, a_worker, some_settings

A, B, C = "a:latest", "b:latest", "c:latest"
DUE_S = 200.0  # so long a task is overtaken
PATIENCE_S = DUE_S / DUE_SHARE


def a_house(*worker_ids: str, slots: int = 1, models: tuple[str, ...] = (A, B, C)) -> CoreSettings:
    workers = [a_worker(worker_id, model=models[0], models=models, slots=slots) for worker_id in worker_ids or ("w1",)]
    return replace(some_settings(*workers), patience_s=PATIENCE_S, aging_s=0.0)


def specs(models: str, priority: int = 5) -> list[TaskSpec]:
    """`ab`: a task for A, then one for B."""
    return [a_spec(f"task {nth}", model=f"{name}:latest", priority=priority) for nth, name in enumerate(models)]


def order(boxes: Boxes) -> list[int]:
    return [one.task_id for one in boxes.given]


def test_tasks_for_the_loaded_model_go_before_one_that_would_swap_it() -> None:
    boxes = Boxes(a_house())
    boxes.submit(*specs("abab"))
    boxes.run()
    assert order(boxes) == [1, 3, 2, 4]
    assert boxes.swaps == 1


def test_without_patience_the_order_is_strict() -> None:
    boxes = Boxes(replace(a_house(), patience_s=0.0))
    boxes.submit(*specs("abab"))
    boxes.run()
    assert order(boxes) == [1, 2, 3, 4]


def test_a_higher_priority_is_never_overtaken_by_a_lower_one() -> None:
    boxes = Boxes(a_house())
    boxes.submit(*specs("a", 5))
    boxes.submit(*specs("b", 6))
    boxes.submit(*specs("a", 5))
    boxes.run()
    assert order(boxes) == [1, 2, 3]


def test_a_higher_priority_may_overtake_what_waiting_has_raised() -> None:
    boxes = Boxes(replace(a_house(), aging_s=5.0))
    boxes.submit(*specs("a", 5))
    boxes.submit(*specs("b", 5))
    boxes.run(until_s=15.0)
    boxes.submit(*specs("a", 6))
    boxes.run()
    assert order(boxes) == [1, 3, 2]


@pytest.mark.parametrize("priority", [HIGH, 10])
def test_who_waits_now_is_never_overtaken(priority: int) -> None:
    boxes = Boxes(a_house())
    boxes.submit(*specs("aba", priority))
    boxes.run()
    assert order(boxes) == [1, 2, 3]


def test_a_task_goes_to_a_free_box_that_has_its_model_before_anything_is_held_back() -> None:
    boxes = Boxes(a_house("w1", "w2"))
    boxes.submit(*specs("ab"))
    boxes.submit(*specs("babababa"))
    boxes.run()
    assert boxes.swaps == 0
    on = {one.task_id: one.worker_id for one in boxes.given}
    assert on[1] != on[2]
    assert {on[nth] for nth in (4, 6, 8, 10)} == {on[1]}


def test_nothing_is_kept_for_tasks_that_the_box_could_not_take() -> None:
    boxes = Boxes(a_house("w1"))
    boxes.submit(*specs("ab"))
    boxes.submit(a_spec("elsewhere", model=A, worker="w1", min_context=0), a_spec("no", model=A, priority=4))
    boxes.run()
    assert order(boxes) == [1, 3, 2, 4]


def a_fast_and_a_slow_box(slow_slots: int = 1) -> Boxes:
    """Both have A loaded and are idle; tasks prefer the fast one."""
    house = a_house("w1", "w2")
    slow, fast = replace(house.workers[0], slots=slow_slots), replace(house.workers[1], performance_factor=2.0)
    boxes = Boxes(replace(house, workers=(slow, fast)))
    boxes.submit(*specs("a" * (slow_slots + 1)))
    boxes.run()
    boxes.given.clear()
    return boxes


def test_a_box_that_nobody_used_for_its_model_is_swapped_in_the_same_step() -> None:
    boxes = a_fast_and_a_slow_box()
    boxes.submit(*specs("ba"))
    assert [(one.model, one.worker_id) for one in boxes.given] == [(A, "w2"), (B, "w1")]


def test_what_was_kept_from_a_task_goes_to_nobody_of_a_lower_priority() -> None:
    boxes = a_fast_and_a_slow_box()
    boxes.submit(*specs("ba"), *specs("a", 4))
    assert [(one.model, one.worker_id) for one in boxes.given] == [(A, "w2"), (B, "w1")]


def test_who_was_passed_over_follows_a_swap_in_the_same_step() -> None:
    boxes = a_fast_and_a_slow_box(slow_slots=2)
    boxes.submit(*specs("b"), *specs("b", 4), *specs("a"))
    assert [(one.model, one.worker_id) for one in boxes.given] == [(A, "w2"), (B, "w1"), (B, "w1")]


def test_a_second_slot_is_kept_too() -> None:
    boxes = Boxes(a_house(slots=2))
    boxes.submit(*specs("aabbaa"))
    boxes.run()
    assert [one.model for one in boxes.given] == [A, A, A, A, B, B]


def test_after_its_patience_a_task_forces_the_swap() -> None:
    boxes = Boxes(a_house())
    boxes.submit(*specs("ab" + "a" * 40))
    boxes.run()
    begun = {one.task_id: one.at_s for one in boxes.given}
    first_overtaken_s = min(one.at_s for one in boxes.given if one.task_id > 2)
    assert first_overtaken_s + DUE_S <= begun[2] <= first_overtaken_s + DUE_S + 20.0


def test_a_task_behind_in_its_lane_has_its_clock_too() -> None:
    """The second B is overtaken from the same time on as the first: it does not begin anew when that has gone."""
    boxes = Boxes(a_house())
    boxes.submit(*specs("abb" + "a" * 40))
    boxes.run()
    begun = {one.task_id: one.at_s for one in boxes.given}
    assert begun[3] - begun[2] <= 50.0


def test_several_models_take_turns_within_one_patience_and_not_task_by_task() -> None:
    boxes = Boxes(a_house())
    boxes.submit(*specs("abc" * 60))
    boxes.run()
    assert len(boxes.given) == 180
    assert boxes.swaps <= 45, boxes.swaps  # five tasks fit into a third of the patience and a load: 36 turns at best
    fifo = Boxes(replace(a_house(), patience_s=0.0))
    fifo.submit(*specs("abc" * 60))
    fifo.run()
    assert fifo.swaps == 179


def test_high_tasks_go_first_whatever_is_loaded() -> None:
    boxes = Boxes(a_house())
    boxes.submit(*specs("aaaa"))
    boxes.run(until_s=10.0)
    boxes.submit(*specs("b", 9))
    boxes.run()
    assert order(boxes)[:2] == [1, 5]


@settings(max_examples=25, deadline=None)
@given(st.text("abc", min_size=1, max_size=60), st.integers(1, 3), st.integers(0, 1_000_000))
def test_nobody_waits_longer_than_the_patience_and_what_it_is_about_to_run(
    models: str, boxes_count: int, seed: int
) -> None:
    draw = random.Random(seed)
    lengths = [draw.uniform(1.0, 40.0) for _ in models]
    house = a_house(*(f"w{nth}" for nth in range(boxes_count)))
    boxes = Boxes(house, run_s=lambda task_id: lengths[task_id - 1])
    submitted = specs(models)
    boxes.submit(*submitted)
    boxes.run()
    assert len(boxes.given) == len(models)
    _no_overtaking_after_the_patience(boxes.given)


def _no_overtaking_after_the_patience(given: list[Given]) -> None:
    """Replays the clock of each task: from its first being overtaken for a loaded model's sake."""
    all_ids = {one.task_id: one.model for one in given}
    waiting = dict(all_ids)
    first_s: dict[int, float] = {}
    loaded: dict[str, str] = {}
    for one in given:
        del waiting[one.task_id]
        if loaded.get(one.worker_id) == one.model:
            for task_id, model in waiting.items():
                if task_id < one.task_id and model != one.model:
                    since_s = first_s.setdefault(task_id, one.at_s)
                    # Who is overtaken once more after its patience was held back for longer than that.
                    assert one.at_s - since_s < DUE_S or _has_gone_elsewhere(given, one, model), (one, task_id)
        loaded[one.worker_id] = one.model


def _has_gone_elsewhere(given: list[Given], by: Given, model: str) -> bool:
    """Whether an older task of the overtaken one's model was given out in the same instant: it goes first."""
    return any(one.at_s == by.at_s and one.model == model and one.task_id < by.task_id for one in given)


@pytest.mark.parametrize("boxes_count", [1, 2, 3, 8])
def test_two_models_mixed_at_random_swap_ten_times_less_than_first_in_first_out(boxes_count: int) -> None:
    draw = random.Random(boxes_count)
    submitted = specs("".join(draw.choice("ab") for _ in range(400)))
    lengths = [draw.lognormvariate(3.0, 0.6) for _ in submitted]
    house = replace(a_house(*(f"w{nth}" for nth in range(boxes_count))), patience_s=CoreSettings().patience_s)
    swaps = {}
    for patience_s in (0.0, house.patience_s):
        boxes = Boxes(replace(house, patience_s=patience_s), run_s=lambda task_id: lengths[task_id - 1])
        boxes.submit(*submitted)
        boxes.run()
        assert Counter(order(boxes)) == Counter(range(1, len(submitted) + 1))
        swaps[patience_s] = boxes.swaps
    assert swaps[0.0] >= 10 * swaps[house.patience_s], swaps


def a_head(task_id: int, since_s: float = 0.0, priority: int = 5, model: str = B) -> Head:
    return Head(task_id, priority, priority, since_s, Need(model, -1, "", "", frozenset()))


def test_the_clock_begins_with_the_first_task_that_comes_after_it() -> None:
    grouping = Grouping(ReadyQueue(), PATIENCE_S)
    grouping.overtaken(a_head(1), a_head(5, model=A), 10.0)
    grouping.overtaken(a_head(1), a_head(9, model=A), 100.0)
    since = [grouping.overtaken_since_s(a_head(task_id)) for task_id in (1, 4, 5, 8, 9)]
    assert since == [10.0, 10.0, 100.0, 100.0, None]


def test_an_earlier_one_that_goes_later_starts_no_clock_anew() -> None:
    grouping = Grouping(ReadyQueue(), PATIENCE_S)
    grouping.overtaken(a_head(1), a_head(9, model=A), 10.0)
    grouping.overtaken(a_head(1), a_head(5, model=A), 100.0)
    assert grouping.overtaken_since_s(a_head(4)) == 10.0


def test_the_clocks_of_other_models_and_priorities_stand_still() -> None:
    grouping = Grouping(ReadyQueue(), PATIENCE_S)
    grouping.overtaken(a_head(1), a_head(9, model=A), 10.0)
    assert grouping.overtaken_since_s(a_head(2, model=C)) is None
    assert grouping.overtaken_since_s(a_head(2, priority=4)) is None


def test_one_of_a_higher_priority_starts_the_clock_of_all_that_wait() -> None:
    grouping = Grouping(ReadyQueue(), PATIENCE_S)
    grouping.overtaken(a_head(1, since_s=1.0), a_head(9, since_s=9.0, priority=6, model=A), 10.0)
    assert grouping.overtaken_since_s(a_head(3, since_s=9.9)) == 10.0
    assert grouping.overtaken_since_s(a_head(11, since_s=10.0)) is None


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(1, 50), st.floats(0.0, 40.0)), min_size=1, max_size=60))
def test_few_entries_tell_the_time_almost_as_well_as_all(events: list[tuple[int, float]]) -> None:
    grouping = Grouping(ReadyQueue(), PATIENCE_S)
    all_events: list[tuple[int, float]] = []
    now_s = 0.0
    for by, later_s in events:
        now_s += later_s
        all_events.append((by, now_s))
        grouping.overtaken(a_head(1), a_head(by, model=A), now_s)
        for task_id in range(1, 52):
            exact = min((at_s for by_id, at_s in all_events if by_id > task_id), default=None)
            known = grouping.overtaken_since_s(a_head(task_id))
            assert (known is None) == (exact is None)
            if exact is None or known is None:
                continue
            if now_s - exact >= DUE_S:
                assert now_s - known >= DUE_S
            else:
                assert exact - DUE_S / 64 <= known <= exact


def test_a_box_with_nothing_loaded_or_room_for_both_is_kept_for_nobody() -> None:
    queue = ReadyQueue()
    worker = LiveWorker(a_worker("w1", model=A, models=(A, B)))
    queue.add(1, 5, a_head(1).need)
    queue.add(2, 5, a_head(2, model=A).need)
    grouping = Grouping(queue, PATIENCE_S)
    assert not grouping.keeps(worker, a_head(1), 0.0)
    worker.residency.reported([A])
    assert grouping.keeps(worker, a_head(1), 0.0)
    worker.residency.reported([A, B])
    assert not grouping.keeps(worker, a_head(1), 0.0)


def test_a_box_is_kept_for_tasks_of_the_same_or_a_higher_priority_alone() -> None:
    grouping, worker = a_box_with_a(priority=5)
    assert [grouping.keeps(worker, a_head(1, priority=priority), 0.0) for priority in (4, 5, 6)] == [True, True, False]


def test_whoever_is_overtaken_for_the_patience_is_due_however_short_the_box_has_had_its_model() -> None:
    grouping, worker = a_box_with_a(priority=5)
    grouping.overtaken(a_head(1), a_head(2, model=A), 0.0)
    grouping.given(worker, A, DUE_S - 1.0)
    assert grouping.keeps(worker, a_head(1), DUE_S - 0.5)
    assert not grouping.keeps(worker, a_head(1), DUE_S)


def test_of_several_models_each_gets_its_share_of_the_patience() -> None:
    grouping, worker = a_box_with_a(priority=5, others=(B, C))
    grouping.given(worker, A, 0.0)
    grouping.overtaken(a_head(1), a_head(2, model=A), 0.0)
    assert grouping.keeps(worker, a_head(1), DUE_S / 2 - 1.0)
    assert not grouping.keeps(worker, a_head(1), DUE_S / 2)
    grouping.given(worker, A, DUE_S / 4)  # no new turn: it is the same model
    assert not grouping.keeps(worker, a_head(1), DUE_S / 2)


def test_of_several_batches_each_gets_its_share_of_the_patience() -> None:
    grouping, worker = a_box_with_a(priority=5)
    head = a_head(1)
    assert grouping.reads_on(worker, head, 2, 0.0), "nobody has overtaken it yet"
    grouping.given(worker, A, 0.0, "p")
    grouping.overtaken(head, a_head(2), 0.0)
    assert grouping.reads_on(worker, head, 2, PATIENCE_S / 5)
    assert not grouping.reads_on(worker, head, 2, 0.4 * PATIENCE_S)
    assert grouping.reads_on(worker, head, 1, 0.4 * PATIENCE_S)
    grouping.given(worker, A, 0.4 * PATIENCE_S, "q")  # a turn begins
    assert grouping.reads_on(worker, head, 2, 0.4 * PATIENCE_S + 1.0)


def test_who_has_been_overtaken_for_long_enough_is_so_whatever_for() -> None:
    grouping, worker = a_box_with_a(priority=5)
    grouping.overtaken(a_head(1), a_head(2, model=A), 0.0)
    grouping.given(worker, A, PATIENCE_S - 2.0, "p")
    assert not grouping.reads_on(worker, a_head(1), 8, PATIENCE_S - 1.0)


def test_a_due_beginning_comes_before_the_load_is_due() -> None:
    """Else every box would load the model of the one that waits, though a box that has it will be free soon."""
    grouping, worker = a_box_with_a(priority=5)
    grouping.given(worker, A, 0.0, "p")
    grouping.overtaken(a_head(1), a_head(2), 0.0)
    at_s = next(now_s for now_s in range(1_000) if not grouping.reads_on(worker, a_head(1), 1, now_s))
    assert grouping.keeps(worker, a_head(1), at_s)


def a_box_with_a(priority: int, others: tuple[str, ...] = (B,)) -> tuple[Grouping, LiveWorker]:
    """A box with A loaded, a task for A, one for each of the others."""
    queue = ReadyQueue()
    worker = LiveWorker(a_worker("w1", model=A, models=(A, *others)))
    worker.residency.reported([A])
    for nth, model in enumerate((A, *others), 1):
        queue.add(nth, priority, a_head(nth, model=model).need)
    return Grouping(queue, PATIENCE_S), worker
