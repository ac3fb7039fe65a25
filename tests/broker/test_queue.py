"""Ready tasks: order, buckets, cost."""

import sys
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from koubou_broker.queue import Need, ReadyQueue


def a_need(model: str = "") -> Need:
    return Need(model=model, rule=-1, task_type="", avoid="", unfit=frozenset())


def drain(queue: ReadyQueue) -> list[int]:
    order = []
    while heads := queue.heads():
        order.append(heads[0][1])
        queue.discard(heads[0][1])
        queue.check()
    return order


def test_the_urgent_go_first_then_the_first_in() -> None:
    queue = ReadyQueue()
    for task_id, priority in [(1, 5), (2, 8), (3, 5), (4, 10), (5, 8)]:
        queue.add(task_id, priority, a_need(f"m{task_id % 2}"))
    assert drain(queue) == [4, 2, 5, 1, 3]


def test_a_bucket_goes_with_its_last_task() -> None:
    queue = ReadyQueue()
    queue.add(1, 5, a_need("a"))
    queue.discard(1)
    queue.check()
    assert (queue.heads(), queue.head(a_need("a")), len(queue)) == ([], None, 0)


def test_a_task_may_come_back_to_another_bucket() -> None:
    queue = ReadyQueue()
    queue.add(1, 5, a_need("a"))
    queue.add(2, 5, a_need("a"))
    queue.discard(1)
    queue.add(1, 5, a_need("b"))
    queue.check()
    assert sorted((task_id, need.model) for _, task_id, need in queue.heads()) == [(1, "b"), (2, "a")]


Step = tuple[int, int, int]


@given(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 10), st.integers(0, 3)), max_size=80))
def test_it_behaves_like_a_sorted_list(steps: list[Step]) -> None:
    queue = ReadyQueue()
    model: dict[int, tuple[int, int]] = {}
    priorities: dict[int, int] = {}
    for task_id, priority, bucket in steps:
        if task_id in model:
            queue.discard(task_id)
            del model[task_id]
        else:
            priority = priorities.setdefault(task_id, priority)  # noqa: PLW2901 - a task's priority never changes
            queue.add(task_id, priority, a_need(f"m{bucket}"))
            model[task_id] = (-priority, task_id)
        queue.check()
        assert len(queue) == len(model)
        assert set(queue) == set(model)
    assert drain(queue) == [task_id for _, task_id in sorted(model.values())]


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


def test_a_dispatch_costs_the_same_however_many_wait() -> None:
    costs = []
    for waiting in (10, 20_000):
        queue = ReadyQueue()
        for task_id in range(waiting):
            queue.add(task_id, 1 + task_id % 10, a_need(f"m{task_id % 5}"))

        def dispatch(queue: ReadyQueue = queue) -> None:
            queue.discard(queue.heads()[0][1])

        costs.append(_calls(dispatch))
    assert costs[1] <= costs[0] + 5, costs
