"""Measured factors: who counts, against whom, and what must not show in them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from koubou_broker.routing.factors import FACTOR_LEAST, FACTOR_MOST, Factor, has_changed, measured_factors
from koubou_broker.routing.speeds import Speed

MODEL = "gpt-oss:20b"


def a_speed(
    worker_id: str,
    *,
    model: str = MODEL,
    runs: int = 10,
    prompt: int = 400,
    output: int = 200,
    reads_per_s: float = 400.0,
    says_per_s: float = 20.0,
) -> Speed:
    """So many runs of equal size at so many tokens a second."""
    tokens = runs * prompt
    return Speed(
        worker_id,
        model,
        runs,
        tokens,
        tokens,
        round(1000 * tokens / reads_per_s),
        runs * output,
        round(1000 * runs * output / says_per_s),
        0,
        0,
    )


def factors(*speeds: Speed, local: tuple[str, ...] = ("here",), min_samples: int = 5) -> dict[str, float]:
    """Rounded, as people see them."""
    found = measured_factors(speeds, local, min_samples)
    return {worker_id: round(one.factor, 2) for worker_id, one in found.items()}


def test_half_the_speed_is_half_the_factor() -> None:
    slow = a_speed("far", reads_per_s=200.0, says_per_s=10.0)
    assert factors(a_speed("here"), slow) == {"here": 1.0, "far": 0.5}


def test_long_jobs_do_not_make_a_worker_look_slow() -> None:
    assert factors(a_speed("here"), a_speed("far", prompt=6_000, output=4_000)) == {"here": 1.0, "far": 1.0}


def test_all_local_workers_together_are_the_baseline() -> None:
    slow_here = a_speed("here2", reads_per_s=200.0, says_per_s=10.0)
    found = measured_factors((a_speed("here"), slow_here, a_speed("far")), ("here", "here2"), 5)
    assert found["far"].baseline == "the local workers"
    assert factors(a_speed("here"), slow_here, a_speed("far"), local=("here", "here2")) == {
        "here": 1.5,
        "here2": 0.75,
        "far": 1.5,
    }


def test_without_local_runs_the_median_worker_is_the_baseline() -> None:
    speeds = [a_speed(name, reads_per_s=20 * rate, says_per_s=rate) for name, rate in (("a", 10), ("b", 20), ("c", 40))]
    assert factors(*speeds) == {"a": 0.5, "b": 1.0, "c": 2.0}
    assert measured_factors(speeds, (), 5)["a"] == Factor(0.5, 10, "the median worker")


def test_a_few_local_runs_are_no_baseline() -> None:
    speeds = (a_speed("here", runs=4, says_per_s=1.0), a_speed("a"), a_speed("b"))
    assert factors(*speeds) == {"a": 1.0, "b": 1.0}


def test_a_remote_worker_alone_with_its_model_is_measured_against_nobody() -> None:
    assert factors(a_speed("here"), a_speed("far", model="qwen3:8b")) == {"here": 1.0}


def test_too_few_runs_measure_nothing() -> None:
    assert factors(a_speed("here"), a_speed("far", runs=4)) == {"here": 1.0}
    assert factors(a_speed("here"), a_speed("far", runs=5)) == {"here": 1.0, "far": 1.0}


def test_ratios_of_several_models_count_by_their_runs() -> None:
    slow = a_speed("far", runs=30, reads_per_s=200.0, says_per_s=10.0)
    other = a_speed("far", runs=10, model="qwen3:8b")
    assert factors(a_speed("here"), a_speed("here", model="qwen3:8b"), slow, other) == {"here": 1.0, "far": 0.62}


def test_a_model_that_only_one_has_does_not_hide_the_other_one() -> None:
    slow = a_speed("far", reads_per_s=200.0, says_per_s=10.0)
    assert factors(a_speed("here"), slow, a_speed("far", model="only:far", runs=900)) == {"here": 1.0, "far": 0.5}


@pytest.mark.parametrize(("times", "factor"), [(50.0, FACTOR_MOST), (0.01, FACTOR_LEAST)])
def test_a_factor_stays_within_its_bounds(times: float, factor: float) -> None:
    fast = a_speed("far", reads_per_s=400 * times, says_per_s=20 * times)
    assert factors(a_speed("here"), fast)["far"] == factor


def test_where_no_prompt_was_really_read_the_answers_alone_speak() -> None:
    known = a_speed("far", says_per_s=10.0)
    known = Speed(known.worker_id, MODEL, 10, known.prompt_tokens, 0, 0, known.output_tokens, known.eval_ms, 0, 0)
    assert 0.5 < factors(a_speed("here"), known)["far"] < 0.6  # as if it read at the mean speed of all


def test_runs_without_a_token_or_a_time_measure_nothing() -> None:
    nothing = Speed("far", MODEL, 10, 4_000, 4_000, 10_000, 0, 0, 0, 0)
    assert factors(a_speed("here"), nothing) == {"here": 1.0}
    assert factors() == {}


@pytest.mark.parametrize(("before", "after", "changed"), [(1.0, 1.009, False), (1.0, 1.011, True), (0.5, 0.494, True)])
def test_a_change_below_one_per_cent_is_no_change(before: float, after: float, changed: bool) -> None:
    assert has_changed(before, after) is changed


@given(
    rates=st.lists(st.floats(0.2, 5.0), min_size=2, max_size=6),
    sizes=st.lists(st.tuples(st.integers(50, 8_000), st.integers(20, 4_000)), min_size=6, max_size=6),
)
def test_factors_are_the_ratios_of_speeds_whatever_jobs_a_worker_had(
    rates: list[float], sizes: list[tuple[int, int]]
) -> None:
    speeds = [
        a_speed(f"w{nth}", prompt=prompt, output=output, reads_per_s=400 * rate, says_per_s=20 * rate)
        for nth, (rate, (prompt, output)) in enumerate(zip(rates, sizes, strict=False))
    ]
    found = measured_factors(speeds, ("w0",), 5)
    for nth, rate in enumerate(rates):
        right = max(FACTOR_LEAST, min(FACTOR_MOST, rate / rates[0]))
        assert abs(found[f"w{nth}"].factor - right) <= 0.02 * right, f"w{nth}"
