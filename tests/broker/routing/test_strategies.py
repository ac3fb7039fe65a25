"""Who gets it of those who could take it, and when it does better to wait."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from koubou_broker.core_settings import Rule
from koubou_broker.routing.placing import Held, Placed
from koubou_broker.routing.score import Standing, Times
from koubou_broker.routing.strategies import SHORT_TASK_S, STRATEGIES, Choice, EarliestFinish, PriorityBased, order_of
from koubou_broker.routing.weighing import Scales
from koubou_broker.routing.workers import LiveWorker
from koubou_common.reasons import Reason
from support.core_play import a_new_task, a_worker
from support.list_scheduling import least_makespan_s, makespan_s, some_jobs
from support.routing_bench import Bench

SPEEDS = (0.12, 0.25, 0.4, 0.5, 0.75, 1.0, 1.5, 2.0)
PLENTY_S = 1e6  # of work


def a_choice(
    worker_id: str = "a",
    *,
    points: float = 100.0,
    run_s: float = 60.0,
    load_s: float = 0.0,
    group: int = 0,
    is_doubtful: bool = False,
    window: int = 8_192,
    latency_ms: int = 0,
    idle_since_s: float = 0.0,
) -> Choice:
    """A worker that could take a task."""
    worker = LiveWorker(a_worker(worker_id), latency_ms=latency_ms, idle_since_s=idle_since_s)
    return Choice(
        worker, group, is_doubtful, Standing(points, 0.0, 0.0, 0.0), Times(run_s=run_s, load_s=load_s), window
    )


def by_points(*choices: Choice) -> str:
    """Who gets it by default."""
    best = PriorityBased().choose(choices, lambda: None)
    assert best is not None
    return best.worker.worker_id


def by_finish(*choices: Choice, otherwise_s: float | None = None) -> str:
    """Who gets it by the earliest finish; empty: it waits."""
    best = EarliestFinish().choose(choices, lambda: otherwise_s)
    return best.worker.worker_id if best is not None else ""


def test_the_best_by_points_gets_it_within_the_first_group() -> None:
    assert by_points(a_choice("a", points=100), a_choice("b", points=101)) == "b"
    assert by_points(a_choice("a", points=100), a_choice("b", points=101, group=1)) == "a"


@pytest.mark.parametrize("choose", [by_points, by_finish])
def test_a_window_that_may_be_too_small_comes_last_and_of_such_the_largest_first(choose: object) -> None:
    assert callable(choose)
    sure = a_choice("sure", points=1, run_s=99.0)
    doubtful = a_choice("small", is_doubtful=True, points=300, run_s=1.0)
    assert choose(doubtful, sure) == "sure"
    assert choose(doubtful, a_choice("large", is_doubtful=True, window=16_384)) == "large"


def test_a_tie_of_a_short_task_goes_to_the_nearer_box_and_else_to_the_longest_idle() -> None:
    far = a_choice("far", run_s=SHORT_TASK_S, latency_ms=40, idle_since_s=1.0)
    near = a_choice("near", run_s=SHORT_TASK_S, latency_ms=3, idle_since_s=2.0)
    assert by_points(far, near) == "near"
    assert by_points(replace(far, times=Times(60.0)), replace(near, times=Times(60.0))) == "far"
    longer_idle = a_choice("idle", run_s=SHORT_TASK_S, latency_ms=44, idle_since_s=1.0)
    assert by_points(longer_idle, a_choice("near", run_s=SHORT_TASK_S, latency_ms=40, idle_since_s=2.0)) == "idle"
    assert by_points(a_choice("b"), a_choice("a")) == "a"


def test_the_first_to_finish_gets_it_and_loading_counts() -> None:
    assert by_finish(a_choice("a", run_s=60.0, points=300), a_choice("b", run_s=50.0)) == "b"
    assert by_finish(a_choice("a", run_s=60.0), a_choice("b", run_s=50.0, load_s=20.0)) == "a"
    assert by_finish(a_choice("a", run_s=60.0, group=0), a_choice("b", run_s=50.0, group=1)) == "a"


def test_it_waits_where_the_others_have_it_done_sooner_and_not_where_there_are_none() -> None:
    assert by_finish(a_choice(run_s=60.0), otherwise_s=59.0) == ""
    assert by_finish(a_choice(run_s=60.0), otherwise_s=60.0) == "a"
    assert by_finish(a_choice(run_s=60.0), otherwise_s=None) == "a"


choices_drawn = st.lists(
    st.builds(
        a_choice,
        worker_id=st.sampled_from("abcdefgh"),
        points=st.floats(0.0, 300.0),
        run_s=st.floats(0.1, 1e4),
        group=st.integers(0, 2),
        is_doubtful=st.booleans(),
    ),
    min_size=1,
    unique_by=lambda one: one.worker.worker_id,
)


@given(choices_drawn, st.sampled_from(sorted(STRATEGIES)))
def test_an_eligible_better_worker_is_never_passed_over(choices: list[Choice], name: str) -> None:
    strategy = STRATEGIES[name]
    best = strategy.choose(choices, lambda: None)
    assert best is not None
    for other in choices:
        assert best.group <= other.group
        if (other.group, other.is_doubtful) == (best.group, best.is_doubtful):
            if name == "priority_based":
                assert best.standing.total >= other.standing.total
            else:
                assert best.finish_s <= other.finish_s
    assert strategy.choose(list(reversed(choices)), lambda: None) == best, "whatever the order they are named in"
    assert min(choices, key=order_of(strategy)) == best, "people are told the same order"


def two_boxes(*, fast_ends_s: float | None) -> Bench:
    """A slow box that is free, and one ten times as fast that is busy until then (or away)."""
    bench = Bench(a_worker("slow", factor=0.2), a_worker("fast", factor=2.0), strategy="earliest_finish", loaded=True)
    if fast_ends_s is None:
        bench.workers["fast"].disconnect()
    else:
        bench.busy_until("fast", fast_ends_s)
    return bench


def test_near_the_end_a_slow_box_does_not_take_what_a_fast_one_does_sooner() -> None:
    placed = two_boxes(fast_ends_s=5.0).placed()
    assert placed == Held(Reason.FASTER_ELSEWHERE)


def test_while_there_is_plenty_a_slow_box_is_used() -> None:
    placed = two_boxes(fast_ends_s=5.0).placed(work_s=PLENTY_S)
    assert isinstance(placed, Placed)
    assert placed.worker.worker_id == "slow"


def test_nobody_waits_for_a_box_that_is_away_or_busy_for_long_or_not_faster() -> None:
    assert two_boxes(fast_ends_s=None).place() == "slow"
    assert two_boxes(fast_ends_s=1e4).place() == "slow"
    equal = Bench(a_worker("a"), a_worker("b"), strategy="earliest_finish", loaded=True)
    equal.busy_until("a", 0.1)
    assert equal.place() == "b"


def test_nobody_waits_for_ever_for_a_box_that_should_have_been_free_long_ago() -> None:
    bench = two_boxes(fast_ends_s=-5.0)
    assert isinstance(bench.placed(), Held)
    assert two_boxes(fast_ends_s=-1e4).place() == "slow"


def test_a_box_that_may_not_run_it_is_not_waited_for() -> None:
    bench = two_boxes(fast_ends_s=5.0)
    assert bench.place(a_new_task(worker="slow")) == "slow"


def test_a_box_that_has_the_model_is_waited_for_rather_than_loaded_elsewhere() -> None:
    bench = Bench(a_worker("a"), a_worker("b"), strategy="earliest_finish")
    bench.load("a")
    bench.load("b", "other:7b")
    bench.busy_until("a", 5.0)
    assert bench.placed() == Held(Reason.FASTER_ELSEWHERE)
    bench.load("b")
    assert bench.place() == "b"


def test_a_box_that_would_not_get_it_either_is_not_waited_for() -> None:
    rules = (Rule(1, 10, ("local", "remote")),)
    bench = Bench(
        a_worker("slow", factor=0.2),
        a_worker("fast", factor=2.0, location="remote"),
        rules=rules,
        strategy="earliest_finish",
        loaded=True,
    )
    bench.busy_until("fast", 5.0)
    assert bench.place() == "slow", "by its rule it goes to the local box as soon as one is free"
    assert two_boxes(fast_ends_s=5.0).place(avoid="fast") == "slow"


def test_while_there_is_plenty_nobody_asks_the_busy_ones() -> None:
    bench = two_boxes(fast_ends_s=5.0)
    scales = Scales(bench.settings, bench.workers, bench.router.fitting, bench.router.performance)
    need = bench.need(a_new_task())
    slow = scales.choice(need, bench.workers["slow"])

    def asked() -> Iterator[LiveWorker]:
        raise AssertionError("a look at every worker")
        yield

    otherwise_s = scales.otherwise_s(need, [slow], asked(), PLENTY_S, 0.0)
    assert otherwise_s is not None
    assert otherwise_s >= slow.finish_s


def test_the_rule_says_whom_the_strategy_chooses_among() -> None:
    rules = (Rule(1, 10, ("local",), overflow_after_s=60.0),)
    bench = Bench(
        a_worker("l", factor=0.2),
        a_worker("r", factor=2.0, location="remote"),
        rules=rules,
        strategy="earliest_finish",
        loaded=True,
    )
    assert bench.place() == "l"
    bench.busy_until("l", 1e4)
    assert bench.placed(waited_s=59.0) == Held(Reason.WAITS_FOR_PREFERRED)
    assert bench.place(waited_s=60.0) == "r"


@pytest.mark.parametrize("seed", range(3))
def test_a_thousand_tasks_on_unequal_boxes_take_little_longer_than_they_must(seed: int) -> None:
    jobs = some_jobs(seed, 1_000)
    least_s = least_makespan_s(jobs, SPEEDS)
    makespans = {name: makespan_s(jobs, SPEEDS, strategy) / least_s for name, strategy in STRATEGIES.items()}
    assert makespans["earliest_finish"] <= 1.05, f"seed {seed}: {makespans}"
    assert makespans["earliest_finish"] <= makespans["priority_based"] + 0.01, f"seed {seed}: {makespans}"
    assert makespans["priority_based"] <= 1.10, f"seed {seed}: {makespans}"


def test_of_few_tasks_a_slow_box_takes_none_that_would_hold_up_the_end() -> None:
    ratios = []
    for seed in range(10):
        jobs = some_jobs(seed, 40, output_sigma=0.0)
        least_s = least_makespan_s(jobs, SPEEDS)
        ratios.append([makespan_s(jobs, SPEEDS, STRATEGIES[name]) / least_s for name in sorted(STRATEGIES)])
    earliest, by_default = (sorted(one[nth] for one in ratios) for nth in range(2))
    assert earliest[5] <= 1.25, ratios
    assert by_default[5] >= earliest[5] + 0.1, "then this shows nothing"
