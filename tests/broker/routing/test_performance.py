"""Rates: learned from each success, borrowed from other workers, and the limits that follow from them."""

from dataclasses import replace

import pytest

from koubou_broker.core_settings import PerformanceSettings
from koubou_broker.routing.performance import Performance, TimeLimits
from koubou_broker.routing.speeds import Speed, speeds_of
from koubou_broker.routing.workers import LiveWorker
from koubou_common.messages.values import Metrics, WorkerLimits
from support.core_play import MODEL, a_worker
from support.store_play import START_MS, a_metric

FAST = Metrics(prompt_tokens=1_000, prompt_ms=2_000, output_tokens=300, thinking_tokens=100, eval_ms=10_000)


class House:
    """Some workers and what is known of their speed."""

    def __init__(self, *workers: LiveWorker, min_samples: int = 5) -> None:
        self.workers = {worker.worker_id: worker for worker in workers}
        self.speed = Performance(self.workers, PerformanceSettings(min_samples=min_samples))

    def run(self, worker_id: str, metrics: Metrics = FAST, times: int = 1, model: str = MODEL) -> None:
        """So many successes."""
        for _ in range(times):
            self.speed.learn(self.workers[worker_id], model, metrics)

    def rates(self, worker_id: str, model: str = MODEL) -> tuple[float, float]:
        """Tokens a second, read and said."""
        read, said = self.speed.measured_rates(self.workers[worker_id], model)
        return round(read, 1), round(said, 1)


def a_live(worker_id: str = "w1", factor: float = 1.0, location: str = "local") -> LiveWorker:
    return LiveWorker(a_worker(worker_id, factor=factor, location=location))


def test_where_nothing_is_known_the_configured_factor_alone_tells_workers_apart() -> None:
    house = House(a_live(), a_live("w2", 0.5))
    w1, w2 = house.workers.values()
    assert house.speed.expected_s(w2, MODEL, 800) == 2 * house.speed.expected_s(w1, MODEL, 800)
    assert house.speed.load_s(w2, MODEL) == 2 * house.speed.load_s(w1, MODEL)


def test_a_workers_own_successes_are_its_rates() -> None:
    house = House(a_live())
    house.run("w1", times=3)
    assert house.rates("w1") == (500.0, 40.0)
    assert house.speed.expected_s(house.workers["w1"], MODEL, 1_000) == pytest.approx(12.0)


def test_every_spelling_of_a_model_is_the_same_model() -> None:
    house = House(a_live())
    house.run("w1", model="Qwen3")
    assert house.rates("w1", "qwen3:latest") == house.rates("w1", "Qwen3") != (0.0, 0.0)


def test_small_and_large_prompts_together_give_the_time_of_both() -> None:
    house = House(a_live())
    for _ in range(20):
        house.run("w1", Metrics(prompt_tokens=400, prompt_ms=800, output_tokens=100, eval_ms=5_000))
        house.run("w1", Metrics(prompt_tokens=8_000, prompt_ms=16_000, output_tokens=100, eval_ms=5_000))
    worker = house.workers["w1"]
    assert house.speed.prompt_s(worker, MODEL, 400) == pytest.approx(0.8)
    assert house.speed.prompt_s(worker, MODEL, 8_000) == pytest.approx(16.0)


def test_a_prompt_that_was_known_already_does_not_make_a_worker_a_fast_reader() -> None:
    house = House(a_live())
    house.run("w1", times=10)
    house.run("w1", replace(FAST, prompt_ms=20), times=10)
    assert house.rates("w1")[0] < 600


def test_a_worker_that_became_slower_or_lastingly_faster_is_seen() -> None:
    house = House(a_live())
    house.run("w1", times=10)
    house.run("w1", replace(FAST, prompt_ms=8_000, eval_ms=40_000), times=60)
    assert house.rates("w1")[0] == pytest.approx(125, rel=0.1)
    assert house.rates("w1")[1] == pytest.approx(10, rel=0.1)
    house.run("w1", replace(FAST, prompt_ms=500), times=600)
    assert house.rates("w1")[0] > 1_500


def test_a_worker_without_runs_borrows_the_rates_of_others_scaled_by_the_factors() -> None:
    house = House(a_live(), a_live("w2", 0.5))
    house.run("w1", replace(FAST, load_ms=8_000))
    assert house.speed.expected_s(house.workers["w2"], MODEL, 1_000) == pytest.approx(24.0)
    assert house.speed.load_s(house.workers["w2"], MODEL) == pytest.approx(16.0)
    assert house.rates("w2") == (0.0, 0.0)  # nothing of its own


def test_how_long_answers_are_is_the_models_matter_not_the_workers() -> None:
    house = House(a_live(), a_live("w2"))
    house.run("w1", replace(FAST, output_tokens=1_900, eval_ms=50_000))
    house.run("w2", replace(FAST, output_tokens=0, eval_ms=2_500))
    answers_s = [house.speed.answer_s(worker, MODEL) for worker in house.workers.values()]
    assert answers_s == [pytest.approx(1_050 / 40)] * 2


def test_a_success_without_tokens_teaches_nothing() -> None:
    house = House(a_live())
    house.run("w1", Metrics(prompt_tokens=10, total_ms=50))
    assert house.rates("w1") == (0.0, 0.0)


def test_sums_of_the_last_hours_fill_what_is_not_known_yet_and_leave_the_rest() -> None:
    house = House(a_live(), a_live("w2", location="remote"))
    house.run("w1")
    slow = Speed("w2", MODEL, 10, 10_000, 10_000, 40_000, 4_000, 200_000, 2, 30_000)
    house.speed.take_over((replace(slow, worker_id="w1"), slow))
    assert house.rates("w1") == (500.0, 40.0)
    assert house.rates("w2") == (250.0, 20.0)
    assert house.speed.load_s(house.workers["w2"], MODEL) == 15.0


def test_a_measured_factor_counts_and_goes_when_its_runs_are_too_old() -> None:
    house = House(a_live(), a_live("w2", 1.0, "remote"))
    fast = Speed("w1", MODEL, 10, 10_000, 10_000, 20_000, 4_000, 100_000, 0, 0)
    slow = replace(fast, worker_id="w2", read_ms=40_000, eval_ms=200_000)
    w2 = house.workers["w2"]
    factors = house.speed.take_over((fast, slow))
    assert (house.speed.factor(w2), w2.factor_samples, factors["w2"].samples) == (0.5, 10, 10)
    house.speed.take_over(())
    assert (house.speed.factor(w2), w2.factor_samples) == (1.0, 0)


def test_a_worker_that_nobody_knows_any_more_is_left_out() -> None:
    house = House(a_live())
    gone = Speed("gone", MODEL, 10, 10_000, 10_000, 20_000, 4_000, 100_000, 0, 0)
    assert house.speed.take_over((gone,)) == {}


def test_limits_follow_the_rates_within_what_is_configured() -> None:
    limits = WorkerLimits(first_token_s=10.0, total_s=1_000.0)
    settings = replace(a_worker(), limits=limits, total_least_s=60.0)
    house = House(LiveWorker(settings))
    worker = house.workers["w1"]
    house.run("w1", replace(FAST, load_ms=10_000), times=5)  # reads 500, says 40 tokens a second
    # 3 x 8,000 / 500; 3 x (16 + 4,000 / 40 + 10)
    found = house.speed.limits(worker, MODEL, 8_000, 4_000)
    assert found is not None
    assert (found.first_token_s, found.total_s) == pytest.approx((48.0, 378.0))
    assert house.speed.limits(worker, MODEL, 100, 10) == TimeLimits(10.0, 60.0)
    assert house.speed.limits(worker, MODEL, 800_000, 400_000) == TimeLimits(1_000.0, 1_000.0)


def test_the_least_total_limit_never_lifts_the_configured_one() -> None:
    settings = replace(a_worker(), limits=WorkerLimits(total_s=30.0), total_least_s=600.0)
    house = House(LiveWorker(settings))
    house.run("w1", times=5)
    assert house.speed.limits(house.workers["w1"], MODEL, 100, 10) == TimeLimits(30.0, 30.0)


def test_no_limit_follows_from_too_few_runs() -> None:
    house = House(a_live(), a_live("w2"))
    house.run("w1", times=4)
    w1, w2 = house.workers.values()
    assert house.speed.limits(w1, MODEL, 100, 10) is None
    house.run("w1")
    assert house.speed.limits(w1, MODEL, 100, 10) is not None
    assert house.speed.limits(w2, MODEL, 100, 10) is None  # what others measured is no ground to give up


def test_speeds_count_successes_of_the_window_and_tell_read_prompts_from_known_ones() -> None:
    read = a_metric(prompt_tokens=1_000, prompt_ms=2_000, output_tokens=50, thinking_tokens=30, eval_ms=4_000)
    known = replace(read, prompt_ms=40, load_ms=700)
    rows = [read, known, replace(read, success=False, error_type="stalled"), replace(read, measured_ms=START_MS - 10)]
    assert speeds_of(rows, START_MS) == (Speed("lan_001", "gpt-oss:20b", 2, 2_000, 1_000, 2_000, 160, 8_000, 1, 700),)
