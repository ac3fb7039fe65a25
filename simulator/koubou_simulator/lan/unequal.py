"""Eight boxes of very unequal speed, jobs of very unequal size: who keeps the slow ones from holding up the end."""

import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from random import Random
from statistics import median

from koubou_simulator.lan.finding import Finding, Line, Target
from koubou_simulator.lan.outcome import Outcome, lower_bound_s
from koubou_simulator.lan.scenarios import SETTINGS, sizes
from koubou_simulator.lan.things import LOCAL, REMOTE, BoxSpec, Job
from koubou_simulator.lan.ways import EARLIEST, OURS, WAYS, play

JOBS = 1_000
_MANY = 20  # seeds: then the median says something about small differences
_SPEEDS = (2.0, 1.35, 0.9, 0.6, 0.4, 0.27, 0.18, 0.12)  # each two thirds of the one before
BOXES = tuple(
    BoxSpec(f"box_{nth}", speed, LOCAL if nth == 1 else REMOTE, starts_loaded=True)
    for nth, speed in enumerate(_SPEEDS, start=1)
)


def unequal_makespan(seed: int, seeds: int) -> Finding:
    """Makespan over the lower bound by every way: median of the seeds, and the worst of them."""
    outcomes = {way: run(way, seed) for way in WAYS}
    ratios = {way: [_over_bound(one, seed)] for way, one in outcomes.items()}
    cases = [(way, one) for one in range(seed + 1, seed + seeds) for way in WAYS]
    for (way, _), ratio in zip(cases, _all(cases), strict=True):
        ratios[way].append(ratio)
    medians = {way: median(ratios[way]) for way in WAYS}
    worst = {way: max(ratios[way]) for way in WAYS}
    best = min(medians[way] for way in OURS)
    others = min(value for way, value in medians.items() if way not in OURS)
    width = max(len(way) for way in WAYS)
    return Finding(
        name="unequal_makespan",
        about=f"{JOBS:,} tasks at once, lognormal sizes",
        boxes=BOXES,
        lines=[Line(way, one) for way, one in outcomes.items()],
        figures={"unequal_makespan": medians, "unequal_makespan_worst": worst},
        targets=[
            Target("the better of ours, median over the bound", best, most=1.10),
            # On few seeds any way that takes whatever box is free may be lucky.
            *([Target("the same over the best of all others", best / others, most=1.0)] if seeds >= _MANY else []),
        ],
        notes=[
            f"The table above is of seed {seed}; makespan over the lower bound, seeds {seed} to {seed + seeds - 1}:",
            f"{''.ljust(width)}  median  worst seed",
            *(f"{way.ljust(width)}  {medians[way]:6.3f}  {worst[way]:6.3f}" for way in WAYS),
        ],
        chart=Line(EARLIEST, outcomes[EARLIEST]),
    )


def jobs_of(seed: int) -> list[Job]:
    """The jobs of a seed."""
    return sizes(Random(f"unequal/{seed}"), JOBS, output_median=400, sigma=0.8)


def run(way: str, seed: int) -> Outcome:
    """One run."""
    return play(way, SETTINGS, BOXES, jobs_of(seed), seed)


def ratio_of(case: tuple[str, int]) -> float:
    """Makespan over the bound of one way and seed."""
    way, seed = case
    return _over_bound(run(way, seed), seed)


def _over_bound(outcome: Outcome, seed: int) -> float:
    return outcome.makespan_s / lower_bound_s(jobs_of(seed), BOXES)


def _all(cases: list[tuple[str, int]]) -> Iterable[float]:
    processes = min(os.cpu_count() or 1, len(cases))
    if processes <= 1 or len(cases) <= len(WAYS):
        return [ratio_of(case) for case in cases]
    with ProcessPoolExecutor(processes) as pool:
        return list(pool.map(ratio_of, cases, chunksize=len(WAYS)))
