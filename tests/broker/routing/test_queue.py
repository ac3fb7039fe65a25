"""Ready tasks: order, lanes, passing over, cost."""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from koubou_broker.routing.queue import AGED_MOST, HIGH, Head, Need, ReadyQueue

AGING_S = 60.0


def a_need(model: str = "", *, avoid: str = "", unfit: tuple[str, ...] = (), prefix: str = "") -> Need:
    return Need(model=model, rule=-1, task_type="", avoid=avoid, unfit=frozenset(unfit), prefix=prefix)


def drain(queue: ReadyQueue, now_s: float = 0.0) -> list[int]:
    order = []
    while (head := queue.next(now_s)) is not None:
        order.append(head.task_id)
        queue.discard(head.task_id)
        queue.check()
    return order


def lanes(queue: ReadyQueue, now_s: float = 0.0) -> list[Head]:
    """The next task of every lane, in order."""
    heads = []
    while (head := queue.next(now_s)) is not None:
        heads.append(head)
        queue.pass_over(head)
    queue.look_again()
    queue.check()
    return heads


def test_the_urgent_go_first_then_the_first_in() -> None:
    queue = ReadyQueue()
    for task_id, priority in [(1, 5), (2, 8), (3, 5), (4, 10), (5, 8)]:
        queue.add(task_id, priority, a_need(f"m{task_id % 2}"))
    assert drain(queue) == [4, 2, 5, 1, 3]


def test_an_empty_queue_has_no_next_task() -> None:
    assert ReadyQueue().next(0.0) is None


def test_a_lane_goes_with_its_last_task() -> None:
    queue = ReadyQueue()
    queue.add(1, 5, a_need("a"))
    queue.discard(1)
    queue.check()
    assert (queue.next(0.0), queue.models, len(queue)) == (None, (), 0)


def test_a_task_that_is_not_there_is_discarded_in_vain() -> None:
    queue = ReadyQueue()
    queue.discard(7)
    assert len(queue) == 0


def test_a_task_may_come_back_to_another_lane() -> None:
    queue = ReadyQueue()
    queue.add(1, 5, a_need("a"))
    queue.add(2, 5, a_need("a"))
    queue.discard(1)
    queue.add(1, 5, a_need("b"))
    queue.check()
    assert [(head.task_id, head.need.model) for head in lanes(queue)] == [(1, "b"), (2, "a")]


def test_a_task_that_came_back_goes_before_those_that_came_after_it() -> None:
    queue = ReadyQueue(AGING_S)
    for task_id in (1, 2, 3):
        queue.add(task_id, 5, a_need(), since_s=float(task_id))
    queue.discard(1)
    queue.discard(2)
    queue.add(2, 5, a_need(), since_s=2.0)
    queue.check()
    assert drain(queue) == [2, 3]


def test_what_only_weighs_workers_opens_no_lane() -> None:
    queue = ReadyQueue()
    queue.add(1, 5, a_need(prefix="one"))
    queue.add(2, 5, a_need(prefix="two"))
    assert [head.task_id for head in lanes(queue)] == [1]
    head = queue.next(0.0)
    assert head is not None and head.need.prefix == "one"  # noqa: PT018 - for the type checker
    queue.discard(1)
    head = queue.next(0.0)
    assert head is not None and head.need.prefix == "two"  # noqa: PT018 - for the type checker


def test_lanes_passed_over_count_again_after_that() -> None:
    queue = ReadyQueue()
    for task_id, model in enumerate("abc", 1):
        queue.add(task_id, 5, a_need(model))
    first = queue.next(0.0)
    assert first is not None
    queue.pass_over(first)
    queue.pass_over(first)  # twice is once
    queue.add(0, 5, a_need("a"))  # a lane passed over stays so
    assert [head.task_id for head in _rest(queue)] == [2, 3]
    queue.look_again()
    queue.check()
    assert drain(queue) == [0, 1, 2, 3]


def _rest(queue: ReadyQueue) -> list[Head]:
    heads = []
    while (head := queue.next(0.0)) is not None:
        heads.append(head)
        queue.pass_over(head)
    return heads


@pytest.mark.parametrize(
    ("priority", "waited_s", "effective"),
    [(1, 0, 1), (1, 59.9, 1), (1, 60, 2), (5, 120, 7), (5, 6_000, 7), (7, 6_000, 7), (8, 6_000, 8), (10, 0, 10)],
)
def test_waiting_raises_a_priority_by_one_a_step_and_to_seven_at_most(
    priority: int, waited_s: float, effective: int
) -> None:
    assert ReadyQueue(AGING_S).effective(priority, 0.0, waited_s) == effective


def test_without_ageing_a_priority_stays() -> None:
    assert ReadyQueue(0.0).effective(1, 0.0, 1e9) == 1


def test_a_clock_that_lies_in_the_future_lowers_nothing() -> None:
    assert ReadyQueue(AGING_S).effective(3, 500.0, 0.0) == 3


def test_how_many_go_before_a_task_is_its_place_in_the_order() -> None:
    queue = ReadyQueue(AGING_S)
    for task_id, (priority, since_s) in enumerate([(5, 0.0), (9, 30.0), (6, 30.0), (1, 30.0), (5, 40.0)], 1):
        queue.add(task_id, priority, a_need(f"m{task_id % 2}"), since_s=since_s)
    for now_s in (40.0, 95.0, 1_000.0):
        places = {task_id: queue.ahead_of(task_id, now_s) for task_id in queue}
        order = [head for head, _ in sorted(places.items(), key=lambda one: one[1])]
        assert sorted(places.values()) == [0, 1, 2, 3, 4]
        assert order == _drained_copy(queue, now_s)


def _drained_copy(queue: ReadyQueue, now_s: float) -> list[int]:
    copy = ReadyQueue(AGING_S)
    for task_id in queue:
        head = queue.head_of(task_id, now_s)
        copy.add(task_id, head.priority, head.need, since_s=head.since_s)
    return drain(copy, now_s)


def test_work_is_summed_over_what_goes_no_later() -> None:
    queue = ReadyQueue(AGING_S)
    queue.add(1, 9, a_need("a"), work_s=1.0)
    queue.add(2, 6, a_need("a"), work_s=10.0)
    queue.add(3, 5, a_need("b"), work_s=100.0)
    queue.add(4, 5, a_need("b"), work_s=1_000.0)
    assert [queue.work_no_later(priority, 0.0) for priority in (10, 9, 7, 6, 5, 1)] == [0, 1, 1, 11, 1_111, 1_111]
    assert queue.work_no_later(6, AGING_S) == 1_111
    queue.discard(4)
    assert queue.work_no_later(5, 0.0) == 111


def test_it_tells_whether_a_worker_has_work_for_a_model() -> None:
    queue = ReadyQueue()
    queue.add(1, 5, a_need("a", unfit=("w2",)))
    queue.add(2, 3, a_need("a", avoid="w3"))
    assert queue.models == ("a",)
    assert [queue.has_for(worker_id, "a", 4) for worker_id in ("w1", "w2", "w3")] == [True, False, True]
    assert [queue.has_for(worker_id, "a", 6) for worker_id in ("w1", "w2", "w3")] == [False] * 3
    assert [queue.has_for(worker_id, "a") for worker_id in ("w2", "w3")] == [True, True]
    assert not queue.has_for("w1", "b")
    queue.discard(1)
    assert not queue.has_for("w3", "a")


def test_it_counts_what_is_not_urgent() -> None:
    queue = ReadyQueue()
    for task_id, priority in enumerate((10, 8, 7, 1)):
        queue.add(task_id, priority, a_need(str(priority)))
    assert queue.low == 2
    assert [need.model for need in queue.needs_below(HIGH)] == ["7", "1"]
    queue.discard(3)
    assert queue.low == 1


@dataclass(frozen=True)
class Waiting:
    """A task in the plain list that the queue is compared with."""

    task_id: int
    priority: int
    since_s: float
    model: str

    def place(self, now_s: float) -> tuple[int, float, int]:
        aged = self.priority + int((now_s - self.since_s) // AGING_S)
        effective = self.priority if self.priority >= HIGH else min(AGED_MOST, aged)
        return -effective, self.since_s, self.task_id


Step = tuple[int, int, int, int]
STEPS = st.lists(
    st.tuples(st.integers(1, 14), st.integers(1, 10), st.integers(0, 3), st.integers(0, 90)), min_size=1, max_size=80
)


@settings(max_examples=150)
@given(STEPS)
def test_the_order_is_that_of_a_sorted_list(steps: list[Step]) -> None:
    queue = ReadyQueue(AGING_S)
    naive: dict[int, Waiting] = {}
    known: dict[int, tuple[int, float]] = {}
    now_s = 0.0
    for task_id, priority, lane, later_s in steps:
        now_s += later_s
        if task_id in naive:
            queue.discard(task_id)
            del naive[task_id]
        else:
            # Its priority never changes, nor does the time since when it waits, however often it comes back.
            priority, since_s = known.setdefault(task_id, (priority, now_s))  # noqa: PLW2901 - see above
            queue.add(task_id, priority, a_need(f"m{lane}"), since_s=since_s)
            naive[task_id] = Waiting(task_id, priority, since_s, f"m{lane}")
        queue.check()
        assert set(queue) == set(naive)
        expected = min((one.place(now_s) for one in naive.values()), default=None)
        head = queue.next(now_s)
        assert (head.place if head is not None else None) == expected
    assert drain(queue, now_s) == [one.task_id for one in sorted(naive.values(), key=lambda one: one.place(now_s))]


@settings(max_examples=100)
@given(STEPS, st.sets(st.integers(0, 3)))
def test_what_is_passed_over_leaves_the_order_of_the_rest(steps: list[Step], passed: set[int]) -> None:
    queue = ReadyQueue(AGING_S)
    naive: dict[int, Waiting] = {}
    for nth, (_, priority, lane, since_s) in enumerate(steps):
        naive[nth] = Waiting(nth, priority, float(since_s), f"m{lane}")
        queue.add(nth, priority, a_need(f"m{lane}"), since_s=float(since_s))
    now_s = 90.0
    order = []
    while (head := queue.next(now_s)) is not None:
        if int(head.need.model[1:]) in passed:
            queue.pass_over(head)
        else:
            order.append(head.task_id)
            queue.discard(head.task_id)
    queue.look_again()
    queue.check()
    rest = [one for one in naive.values() if int(one.model[1:]) not in passed]
    assert order == [one.task_id for one in sorted(rest, key=lambda one: one.place(now_s))]
    assert len(queue) == len(naive) - len(rest)


def test_a_follower_begins_alike_and_has_the_same_need_and_priority() -> None:
    queue = ReadyQueue()
    for task_id, (model, prefix, priority) in enumerate(
        [("m", "q", 5), ("n", "p", 5), ("m", "p", 4), ("m", "r", 5), ("m", "p", 5), ("m", "p", 5)], 1
    ):
        queue.add(task_id, priority, a_need(model, prefix=prefix))
    found = queue.follower(queue.head_of(1, 0.0), {"p"}, 0.0)
    assert found is not None
    assert (found.head.task_id, found.others) == (5, 2)
    assert queue.follower(queue.head_of(1, 0.0), {"other"}, 0.0) is None
    queue.discard(5)
    queue.discard(4)
    found = queue.follower(queue.head_of(1, 0.0), {"p"}, 0.0)
    assert found is not None
    assert (found.head.task_id, found.others) == (6, 1)
    queue.discard(6)
    queue.check()
    assert queue.follower(queue.head_of(1, 0.0), {"p"}, 0.0) is None


@settings(max_examples=150)
@given(STEPS, st.sets(st.sampled_from("0123"), min_size=1), st.sampled_from([100.0, 150.0, 600.0]))
def test_a_follower_goes_before_nobody_of_a_higher_priority(steps: list[Step], read: set[str], now_s: float) -> None:
    queue = ReadyQueue(AGING_S)
    naive: dict[int, Waiting] = {}
    for nth, (of_lane, priority, prefix, since_s) in enumerate(steps):
        model = f"m{of_lane % 2}"
        naive[nth] = Waiting(nth, priority, float(since_s), model)
        queue.add(nth, priority, a_need(model, prefix=str(prefix)), since_s=float(since_s))
    prefixes = {nth: str(step[2]) for nth, step in enumerate(steps)}
    while (head := queue.next(now_s)) is not None:
        first = naive[head.task_id]
        alike = [
            one
            for one in naive.values()
            if (one.model, one.priority) == (first.model, first.priority) and prefixes[one.task_id] in read
        ]
        best = min(alike, key=lambda one: one.place(now_s), default=None)
        if best is not None and any(
            one.priority > best.priority and one.place(now_s) < best.place(now_s) for one in naive.values()
        ):
            best = None
        found = queue.follower(head, read, now_s)
        assert (found.head.task_id if found is not None else None) == (best.task_id if best is not None else None)
        queue.discard(head.task_id)
        del naive[head.task_id]
        queue.check()


def test_ever_new_beginnings_leave_nothing_behind() -> None:
    queue = ReadyQueue()
    queue.add(0, 5, a_need())
    queue.add(1, 5, a_need(prefix="one"))
    for task_id in range(2, 2_000):
        queue.add(task_id, 5, a_need(prefix=str(task_id)))
        queue.discard(task_id)
        queue.discard(1)
        queue.add(1, 5, a_need(prefix="one"))
    queue.check()
    (lane,) = queue._lanes.values()
    assert list(lane.alike) == ["one"]
    assert len(lane.alike["one"].entries) < 100


@pytest.mark.parametrize("prefixes", [2, 1_000_000])
def test_a_follower_costs_the_same_however_many_wait(prefixes: int) -> None:
    costs = []
    for waiting in (40, 20_000):
        queue = ReadyQueue(AGING_S)
        for task_id in range(waiting):
            queue.add(task_id, 5, a_need(prefix=str(task_id % prefixes)), since_s=task_id / 100)
        head = queue.next(1_000.0)
        assert head is not None

        def follow(queue: ReadyQueue = queue, head: Head = head) -> None:
            assert queue.follower(head, {"1", "35"}, 1_000.0) is not None

        costs.append(_calls(follow))
    assert costs[1] <= costs[0] + 5, costs


def test_tasks_that_come_and_go_leave_nothing_behind() -> None:
    queue = ReadyQueue(AGING_S)
    queue.add(0, 5, a_need("stays"))
    for turn in range(2_000):
        queue.add(1, 5, a_need("a"), since_s=1.0)
        queue.add(2, 5, a_need(f"b{turn % 7}"), since_s=2.0)
        queue.discard(1)
        queue.discard(2)
    queue.check()
    assert sum(len(rank) for rank in queue._ranks) < 200
    assert drain(queue) == [0]


def _calls(work: Callable[[], object]) -> int:
    counted = 0

    def count(_frame: object, event: str, _arg: object) -> None:
        nonlocal counted
        counted += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return counted


@pytest.mark.parametrize("prefixes", [1, 1_000_000])
def test_a_dispatch_costs_the_same_however_many_wait(prefixes: int) -> None:
    costs = []
    for waiting in (10, 20_000):
        queue = ReadyQueue(AGING_S)
        for task_id in range(waiting):
            need = a_need(f"m{task_id % 5}", prefix=str(task_id % prefixes))
            queue.add(task_id, 1 + task_id % 10, need, since_s=task_id / 100)

        def dispatch(queue: ReadyQueue = queue) -> None:
            head = queue.next(1_000.0)
            assert head is not None
            queue.discard(head.task_id)
            queue.next(1_000.0)

        costs.append(_calls(dispatch))
    assert costs[1] <= costs[0] + 5, costs
