"""A worker's points for a task."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from koubou_broker.records import BodyRef
from koubou_broker.routing.score import Standing, Times, standing_of, times_of
from koubou_broker.routing.weighing import Scales
from koubou_common.messages.values import File, ScorePart
from support.core_play import MODEL, a_body, a_new_task, a_worker
from support.routing_bench import Bench

PROMPT = 10_000  # tokens


def standing(bench: Bench, worker_id: str = "a", *, task_type: str = "") -> Standing:
    """How the worker stands for a task of no special kind."""
    need = replace(bench.need(a_new_task()), task_type=task_type)
    worker = bench.workers[worker_id]
    performance = bench.router.performance
    return standing_of(need, worker, performance, times_of(need, worker, performance, PROMPT, 0))


def test_the_score_is_the_sum_that_the_policy_names() -> None:
    bench = Bench(a_worker("a", factor=0.8, slots=2, capabilities=("review",)), loaded=True)
    assert standing(bench) == Standing(factor=80.0, idle=50.0, success=30.0, capability=0.0)
    assert standing(bench).score == 160.0
    assert standing(bench, task_type="review").score == 180.0
    bench.workers["a"].dispatched("u")
    assert standing(bench).score == 80.0
    bench.workers["a"].restore_scores(0, 1_000_000)
    assert standing(bench).success == 30.0 * bench.workers["a"].success_rate < 1.0


def test_each_part_is_shown_under_its_name_and_those_that_say_nothing_are_not() -> None:
    idle = Standing(factor=80.0, idle=50.0, success=29.96, capability=0.0, residency=-31.04)
    assert idle.parts() == (
        ScorePart("factor", 80.0),
        ScorePart("idle", 50.0),
        ScorePart("success", 30.0),
        ScorePart("residency", -31.0),
    )
    busy = Standing(factor=80.0, idle=-30.0, success=30.0, capability=20.0, prefix=12.0)
    assert [part.name for part in busy.parts()] == ["factor", "busy", "success", "capability", "prefix"]


def test_what_comes_beside_the_score_decides_and_is_not_in_it() -> None:
    one = Standing(factor=80.0, idle=50.0, success=30.0, capability=0.0, residency=-30.0, prefix=10.0)
    assert one.score == 160.0
    assert one.total == 140.0


def test_loading_a_model_costs_as_many_points_as_the_time_is_worth() -> None:
    bench = Bench(a_worker("a", factor=0.5))
    worker, performance = bench.workers["a"], bench.router.performance
    run_s, load_s = performance.expected_s(worker, MODEL, PROMPT), performance.load_s(worker, MODEL)
    assert standing(bench).residency == pytest.approx(50.0 * (run_s / (run_s + load_s) - 1))
    bench.load("a", "other:7b")
    assert standing(bench).residency < 0
    bench.load("a")
    assert standing(bench).residency == 0.0


def test_a_beginning_read_before_is_worth_the_time_it_saves() -> None:
    bench = Bench(a_worker("a"), loaded=True)
    worker, performance = bench.workers["a"], bench.router.performance
    shared = replace(
        a_new_task(), prompt=BodyRef(bytes(32), 1_000), files=(File("all.md", a_body("all", 20_000)),), prefix_files=1
    )
    need = bench.need(shared)
    assert need.prefix_bytes == 21_000
    assert times_of(need, worker, performance, PROMPT, 6_000).saved_s == 0.0
    worker.dispatched("u", MODEL, need.prefix)
    times = times_of(need, worker, performance, PROMPT, 6_000)
    assert times.saved_s == performance.prompt_s(worker, MODEL, 6_000)
    points = standing_of(need, worker, performance, times).prefix
    assert points == pytest.approx(100.0 * (times.run_s / (times.run_s - times.saved_s) - 1))
    assert times_of(bench.need(a_new_task()), worker, performance, PROMPT, 0).saved_s == 0.0


def test_a_box_that_is_shared_with_strangers_is_expected_to_take_longer() -> None:
    bench = Bench(a_worker("a", slots=2))
    worker, need = bench.workers["a"], bench.need(a_new_task())
    alone = times_of(need, worker, bench.router.performance, PROMPT, 0)
    worker.foreign.reported(["other:7b"], lambda _model: False, 0.0)
    assert worker.speed_share < 1.0
    shared = times_of(need, worker, bench.router.performance, PROMPT, 0)
    assert shared.run_s == pytest.approx(alone.run_s / worker.speed_share)


@given(st.floats(0.1, 1e4), st.floats(0.0, 1e3), st.floats(0.0, 1.0))
def test_it_is_done_after_loading_and_reading_what_was_not_read(run_s: float, load_s: float, share: float) -> None:
    times = Times(run_s, load_s, share * run_s)
    assert times.finish_s == pytest.approx(load_s + (1 - share) * run_s)


def test_of_two_equal_boxes_the_one_that_has_the_model_loaded_gets_it() -> None:
    bench = Bench(a_worker("a"), a_worker("b"))
    assert bench.place() == "a"
    bench.load("b")
    assert bench.place() == "b"


def test_a_much_faster_box_gets_it_although_it_has_to_load() -> None:
    bench = Bench(a_worker("slow", factor=0.2), a_worker("fast", factor=2.0))
    bench.load("slow")
    assert bench.place() == "fast"


def test_scales_change_nobody() -> None:
    bench = Bench(a_worker("a"))
    scales = Scales(bench.settings, bench.workers, bench.router.fitting, bench.router.performance)
    need = bench.need(a_new_task())
    assert scales.choice(need, bench.workers["a"]) == scales.choice(need, bench.workers["a"])
