"""What a soak measures of a process every few seconds, and what the series says: slope, growth, bound. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

MIB = 1 << 20
_HOUR_S = 3_600.0
FDS_SPARE = 5  # connections come and go: so many more at the end are no leak
BOUND = 1.10  # the database may be so much larger in the last quarter than in the one before


@dataclass(frozen=True, slots=True)
class Sample:
    """A process at one moment."""

    at_s: float
    rss_bytes: int
    fds: int
    threads: int


@dataclass(frozen=True, slots=True)
class Trend:
    """A process over the whole soak."""

    rss_first_mib: float
    rss_last_mib: float
    slope_mib_per_h: float  # of the second half: the first one still warms up
    fds_first: int
    fds_last: int
    threads_first: int
    threads_last: int

    @property
    def leaks_fds(self) -> bool:
        """Whether more files are open than at the beginning, beyond what comes and goes."""
        return self.fds_last > self.fds_first + FDS_SPARE


def trend(samples: Sequence[Sample]) -> Trend:
    """Of at least two samples; "first" is the first of the second tenth, when everybody is connected."""
    first, last = samples[len(samples) // 10], samples[-1]
    return Trend(
        first.rss_bytes / MIB,
        last.rss_bytes / MIB,
        slope_mib_per_h([(one.at_s, one.rss_bytes) for one in samples]),
        first.fds,
        last.fds,
        first.threads,
        last.threads,
    )


def slope_mib_per_h(series: Sequence[tuple[float, float]]) -> float:
    """Least squares over the second half of (seconds, bytes); 0 where that has less than two moments."""
    half = series[len(series) // 2 :]
    if len(half) < 2:
        return 0.0
    mean_s = sum(at_s for at_s, _ in half) / len(half)
    mean = sum(size for _, size in half) / len(half)
    spread = sum((at_s - mean_s) ** 2 for at_s, _ in half)
    if spread == 0:
        return 0.0
    return sum((at_s - mean_s) * (size - mean) for at_s, size in half) / spread * _HOUR_S / MIB


def is_bounded(sizes: Sequence[int]) -> bool:
    """Whether the last quarter's largest is hardly above the third's."""
    quarter = len(sizes) // 4
    if not quarter:
        return True
    return max(sizes[-quarter:]) <= BOUND * max(sizes[-2 * quarter : -quarter])
