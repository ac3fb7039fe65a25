"""Measured performance factors: how fast a worker is beside the local ones, for a standard job. Pure."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from koubou_broker.routing.speeds import Speed

FACTOR_LEAST, FACTOR_MOST = 0.1, 2.0  # the requirement's
LOCAL_BASELINE = "the local workers"
MEDIAN_BASELINE = "the median worker"
_NOTABLE = 0.01  # a smaller change of a factor is noise


@dataclass(frozen=True, slots=True)
class Factor:
    """What was measured of one worker."""

    factor: float
    samples: int  # successful runs it rests on
    baseline: str  # whom it is measured against, in words


@dataclass(frozen=True, slots=True)
class _Ratio:
    """Of one worker with one model: the baseline's time for the standard job by its own."""

    worker_id: str
    ratio: float
    samples: int
    baseline: str


def measured_factors(speeds: Iterable[Speed], local: Collection[str], min_samples: int) -> dict[str, Factor]:
    """By worker_id; who has too few successful runs, or nobody to be measured against, is not among them.

    A factor is the mean of the worker's ratios with each model, weighted by its runs. A ratio is of times for
    the model's standard job (its mean prompt and answer over all workers) by tokens a second: long jobs do not
    make a box look slow, and failures, which are not counted, do not make one look fast.
    """
    by_model: dict[str, list[Speed]] = {}
    for one in speeds:
        if one.is_measured:
            by_model.setdefault(one.model, []).append(one)
    of_worker: dict[str, list[_Ratio]] = {}
    for of_model in by_model.values():
        for ratio in _ratios(of_model, local, min_samples):
            of_worker.setdefault(ratio.worker_id, []).append(ratio)
    return {
        worker_id: _factor(ratios)
        for worker_id, ratios in of_worker.items()
        if sum(one.samples for one in ratios) >= min_samples
    }


def _ratios(speeds: list[Speed], local: Collection[str], min_samples: int) -> list[_Ratio]:
    """Of all workers with one model."""
    total = _sum(speeds)
    prompt_tokens, output_tokens = total.prompt_tokens / total.runs, total.output_tokens / total.runs

    def job_ms(speed: Speed) -> float:
        # Where no prompt was really read, what all read stands for it: it then speaks for nobody.
        read = speed if speed.read_tokens and speed.read_ms else total
        reading_ms = prompt_tokens * read.read_ms / read.read_tokens if read.read_tokens else 0.0
        return reading_ms + output_tokens * speed.eval_ms / speed.output_tokens

    here = [one for one in speeds if one.worker_id in local]
    if here and sum(one.runs for one in here) >= min_samples:
        base_ms, baseline = job_ms(_sum(here)), LOCAL_BASELINE
    else:
        known = [one for one in speeds if one.runs >= min_samples]
        if len(known) < 2:  # one alone would be measured against itself
            return []
        base_ms, baseline = _median(job_ms(one) for one in known), MEDIAN_BASELINE
    return [_Ratio(one.worker_id, base_ms / job_ms(one), one.runs, baseline) for one in speeds]


def _sum(speeds: Sequence[Speed]) -> Speed:
    return sum(speeds[1:], speeds[0])


def _median(numbers: Iterable[float]) -> float:
    ordered = sorted(numbers)
    middle = len(ordered) // 2
    return (ordered[middle] + ordered[-middle - 1]) / 2


def _factor(ratios: list[_Ratio]) -> Factor:
    samples = sum(one.samples for one in ratios)
    mean = sum(one.ratio * one.samples for one in ratios) / samples
    most = max(ratios, key=lambda one: one.samples)
    return Factor(max(FACTOR_LEAST, min(FACTOR_MOST, mean)), samples, most.baseline)


def has_changed(before: float, after: float) -> bool:
    """Whether a change of a factor is worth a line of history."""
    return abs(after - before) > _NOTABLE * before
