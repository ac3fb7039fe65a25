"""The soak's arithmetic, on made-up samples."""

import pytest

from chaos.samples import MIB, Sample, is_bounded, slope_mib_per_h, trend


def series(minutes: int, start_mib: float, mib_per_h: float) -> list[tuple[float, float]]:
    return [(at_s, (start_mib + mib_per_h * at_s / 3_600) * MIB) for at_s in range(0, minutes * 60, 10)]


def a_sample(at_s: float, *, fds: int = 20, rss_mib: float = 50.0) -> Sample:
    return Sample(at_s, round(rss_mib * MIB), fds, 9)


@pytest.mark.parametrize("mib_per_h", [0.0, 3.5, -2.0])
def test_the_slope_of_a_straight_line_is_found(mib_per_h: float) -> None:
    assert slope_mib_per_h(series(60, 40.0, mib_per_h)) == pytest.approx(mib_per_h, abs=1e-6)


def test_the_first_half_warms_up_and_does_not_count() -> None:
    warm_up = [(at_s, at_s * MIB) for at_s in range(0, 600, 10)]
    flat = [(at_s, 600.0 * MIB) for at_s in range(600, 1_200, 10)]
    assert slope_mib_per_h([*warm_up, *flat]) == pytest.approx(0.0, abs=1e-6)


def test_noise_around_a_level_has_hardly_a_slope() -> None:
    noisy = [(at_s, (50 + (number % 2) * 0.5) * MIB) for number, at_s in enumerate(range(0, 3_600, 10))]
    assert abs(slope_mib_per_h(noisy)) < 0.05


def test_too_few_moments_have_no_slope() -> None:
    assert slope_mib_per_h([]) == 0.0
    assert slope_mib_per_h([(0.0, 1.0), (1.0, 2.0)]) == 0.0


def test_a_trend_begins_when_everybody_is_connected() -> None:
    samples = [a_sample(at_s, fds=fds) for at_s, fds in zip(range(0, 100, 5), [5, 5, *[30] * 18], strict=True)]
    seen = trend(samples)
    assert (seen.fds_first, seen.fds_last, seen.leaks_fds) == (30, 30, False)


def test_files_that_stay_open_are_a_leak() -> None:
    assert trend([a_sample(at_s, fds=20 + at_s) for at_s in range(20)]).leaks_fds


def test_a_database_that_levels_off_is_bounded_and_one_that_grows_is_not() -> None:
    assert is_bounded([*range(100, 200), *[200] * 100])
    assert is_bounded([*range(100, 200), *[200, 190] * 50])
    assert not is_bounded(list(range(100, 300)))
    assert is_bounded([1, 2]), "too short to tell"
