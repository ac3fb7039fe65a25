"""The scenarios: which boxes, which jobs, what is compared, what should come out."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from random import Random
from statistics import fmean

from koubou_broker.core import CoreSettings
from koubou_broker.core_settings import Rule
from koubou_simulator.lan.finding import Finding, Line, Target
from koubou_simulator.lan.outcome import Outcome, lower_bound_s, percentile
from koubou_simulator.lan.things import LOCAL, MODEL, OTHER_MODEL, OVERHEAD_S, REMOTE, Absence, BoxSpec, Job
from koubou_simulator.lan.ways import DEFAULT, EARLIEST, FIFO, OURS, WAYS, play

# The rules of the original design.
RULES = (
    Rule(8, 10, ("local",), "high priority stays local"),
    Rule(5, 7, ("local", "remote"), "balanced"),
    Rule(1, 4, ("remote",), "low priority goes out"),
)
# Fewer heartbeats than the 5 s of the default: the runs take half the time and nothing else changes.
SETTINGS = CoreSettings(heartbeat_s=30.0, lease_s=120.0)
_EQUAL = Job(0.0, prompt_tokens=1_000, output_tokens=630)  # 20 s at speed 1.0
_EQUAL_S = _EQUAL.work_s + OVERHEAD_S  # as long as a box of speed 1.0 takes for it
_NEVER_S = 1e9
THREE = (
    BoxSpec("local_001", 1.0, LOCAL, starts_loaded=True),
    BoxSpec("lan_001", 0.5, REMOTE, starts_loaded=True),
    BoxSpec("lan_002", 0.5, REMOTE, starts_loaded=True),
)


def equal_makespan(seed: int, seeds: int) -> Finding:
    """A local box of 1.0, two remote ones of 0.5, 200 equal tasks."""
    del seeds
    jobs = [_EQUAL] * 200
    bound_s = lower_bound_s(jobs, THREE)
    outcomes = {way: play(way, SETTINGS, THREE, jobs, seed) for way in WAYS}
    ruled = play(DEFAULT, replace(SETTINGS, rules=RULES), THREE, jobs, seed)
    ratio = outcomes[DEFAULT].makespan_s / bound_s
    return Finding(
        name="equal_makespan",
        about="200 equal tasks at once",
        boxes=THREE,
        lines=[*(Line(way, one) for way, one in outcomes.items()), Line(f"{DEFAULT}, with rules", ruled)],
        figures={
            "equal_makespan": {way: one.makespan_s / bound_s for way, one in outcomes.items()},
            "equal_makespan_with_rules": ruled.makespan_s / bound_s,
        },
        targets=[Target("makespan of the default over the bound", ratio, most=1.05)],
        chart=Line(DEFAULT, outcomes[DEFAULT]),
    )


def learned_response(seed: int, seeds: int) -> Finding:
    """The same boxes at 50 % load, factors right, wrong but measured, wrong for ever."""
    del seeds
    rng = Random(f"learned/{seed}")
    boxes = tuple(replace(box, jitter=0.1) for box in THREE)
    warm, counted = 200, 1_000
    sized = sizes(rng, warm + counted, output_median=400, sigma=0.5)
    rate = 0.5 * sum(box.speed for box in boxes) / fmean(job.work_s for job in sized)
    jobs = _poisson(rng, sized, rate)
    wrong = tuple(replace(box, factor=1.0) for box in boxes)
    never = replace(SETTINGS, performance=replace(SETTINGS.performance, update_s=_NEVER_S))
    lines: list[Line] = []
    notes: list[str] = []
    learned: dict[str, float] = {}
    unlearned: dict[str, float] = {}
    for way in OURS:
        outcomes = {
            "right factors": play(way, never, boxes, jobs, seed),
            "all 1.0, learned": play(way, SETTINGS, wrong, jobs, seed),
            "all 1.0, never learned": play(way, never, wrong, jobs, seed),
        }
        right_s, learned_s, unlearned_s = (_mean_response_s(one, warm) for one in outcomes.values())
        learned[way], unlearned[way] = learned_s / right_s, unlearned_s / right_s
        lines += [Line(f"{way}, {label}", one) for label, one in outcomes.items()]
        notes.append(
            f"{way}, mean response after the first {warm}: right factors {right_s:.1f} s,"
            f" learned {learned_s:.1f} s, never learned {unlearned_s:.1f} s"
        )
    better = unlearned[DEFAULT] / learned[DEFAULT]
    return Finding(
        name="learned_response",
        about=f"50 % load, {counted:,} tasks counted after {warm} to learn from",
        boxes=boxes,
        lines=lines,
        figures={"learned_response": learned, "unlearned_response": unlearned},
        targets=[
            *(Target(f"{way}: learned, over right factors", learned[way], most=1.10) for way in OURS),
            Target("the default: never learned, over learned (or the scenario shows nothing)", better, least=1.02),
        ],
        notes=notes,
    )


def swaps(seed: int, seeds: int) -> Finding:
    """Two models on every box, memory for one, 1,000 tasks that ask for them at random."""
    del seeds
    rng = Random(f"swaps/{seed}")
    boxes = tuple(BoxSpec(f"box_{nth}", 1.0, models=(MODEL, OTHER_MODEL)) for nth in range(1, 5))
    jobs = [replace(_EQUAL, model=rng.choice((MODEL, OTHER_MODEL))) for _ in range(1_000)]
    outcomes = {
        way: play(way, SETTINGS, boxes, jobs, seed) for way in (DEFAULT, EARLIEST, FIFO, "round_robin_at_submit")
    }
    ratio = outcomes[FIFO].swaps / max(1, outcomes[DEFAULT].swaps)
    overtaken_s = outcomes[DEFAULT].overtaken_s()
    fifo = {one.task_id: one.wait_s for one in outcomes[FIFO].jobs}
    longer_s = max(one.wait_s - fifo[one.task_id] for one in outcomes[DEFAULT].jobs)
    return Finding(
        name="swaps",
        about="two models on every box, memory for one, 1,000 tasks mixed at random",
        boxes=boxes,
        lines=[Line(way, one) for way, one in outcomes.items()],
        figures={"swaps_fifo_over_default": ratio, "swaps_overtaken_s": overtaken_s, "swaps_longer_wait_s": longer_s},
        targets=[
            Target("swaps, first-in-first-out over default", ratio, least=10.0),
            Target("longest for which later tasks went before one, s", overtaken_s, most=SETTINGS.patience_s),
            Target("longest that one waited more than first in, first out, s", longer_s, most=SETTINGS.patience_s),
        ],
        chart=Line(DEFAULT, outcomes[DEFAULT]),
    )


def trickle(seed: int, seeds: int) -> Finding:
    """Two models at 70 % load, coming one by one: what grouping does to those who wait for it."""
    del seeds
    rng = Random(f"trickle/{seed}")
    boxes = tuple(BoxSpec(f"box_{nth}", 1.0, models=(MODEL, OTHER_MODEL)) for nth in range(1, 5))
    sized = [replace(_EQUAL, model=rng.choice((MODEL, OTHER_MODEL))) for _ in range(1_000)]
    jobs = _poisson(rng, sized, 0.7 * len(boxes) / _EQUAL.work_s)
    outcomes = {way: play(way, SETTINGS, boxes, jobs, seed) for way in (DEFAULT, EARLIEST, FIFO)}
    return Finding(
        name="trickle",
        about="the same boxes and models, tasks coming at random at 70 % load",
        boxes=boxes,
        lines=[Line(way, one) for way, one in outcomes.items()],
        figures={
            "trickle_swaps_fifo_over_default": outcomes[FIFO].swaps / max(1, outcomes[DEFAULT].swaps),
            "trickle_response_default_over_fifo": outcomes[DEFAULT].mean_response_s / outcomes[FIFO].mean_response_s,
        },
    )


def high_priority(seed: int, seeds: int) -> Finding:
    """A backlog of low priority, people who wait now come in between."""
    del seeds
    rng = Random(f"high/{seed}")
    boxes = tuple(BoxSpec(f"box_{nth}", 1.0, starts_loaded=True) for nth in range(1, 5))
    low = [replace(_EQUAL, priority=rng.randint(1, 4)) for _ in range(2_400)]
    high = _poisson(
        rng, [replace(_EQUAL, priority=rng.randint(8, 10)) for _ in range(240)], 0.1 * len(boxes) / _EQUAL.work_s
    )
    outcome = play(DEFAULT, SETTINGS, boxes, [*low, *high], seed)
    p99 = percentile(outcome.waits_s(8, 10), 0.99) / _EQUAL_S
    return Finding(
        name="high_priority",
        about="2,400 tasks of 1-4 at once, 240 of 8-10 coming at random (10 % load) meanwhile",
        boxes=boxes,
        lines=[Line(DEFAULT, outcome)],
        figures={"high_priority_p99_wait_tasks": p99, "high_priority_unfinished": float(outcome.not_succeeded)},
        targets=[
            Target("p99 wait of 8-10, in lengths of one task", p99, most=1.0),
            Target("tasks that did not end well", float(outcome.not_succeeded), most=0.0),
        ],
        chart=Line(DEFAULT, outcome),
    )


def ageing(seed: int, seeds: int) -> Finding:
    """More work of priority 7 than the boxes can do, for hours, and a few tasks of priority 1 under it."""
    del seeds
    rng = Random(f"ageing/{seed}")
    boxes = tuple(BoxSpec(f"box_{nth}", 1.0, starts_loaded=True) for nth in range(1, 3))
    low = [replace(_EQUAL, priority=1) for _ in range(20)]
    middle = _poisson(rng, [replace(_EQUAL, priority=7)] * 2_000, 1.1 * len(boxes) / _EQUAL.work_s)
    outcomes = {
        "ageing": play(DEFAULT, SETTINGS, boxes, [*low, *middle], seed),
        "no ageing": play(DEFAULT, replace(SETTINGS, aging_s=0.0), boxes, [*low, *middle], seed),
    }
    last_h = {label: max(one.waits_s(1, 4)) / 3_600 for label, one in outcomes.items()}
    # Six steps from 1 to 7, then it is first of its new equals; one more step as room.
    most_h = 7 * SETTINGS.aging_s / 3_600
    return Finding(
        name="ageing",
        about="110 % load of priority 7 for five hours, 20 tasks of priority 1 under it",
        boxes=boxes,
        lines=[Line(label, one) for label, one in outcomes.items()],
        figures={"ageing_longest_wait_h": last_h["ageing"], "no_ageing_longest_wait_h": last_h["no ageing"]},
        targets=[Target("longest wait of priority 1, hours", last_h["ageing"], most=most_h)],
    )


def failing_worker(seed: int, seeds: int) -> Finding:
    """One of four boxes fails everything in 50 ms."""
    del seeds
    got: dict[str, float] = {}
    outcomes: dict[str, Outcome] = {}
    boxes: tuple[BoxSpec, ...] = ()
    for slots in (1, 2, 4):
        boxes = (
            *(BoxSpec(f"good_{nth}", 1.0, slots=slots, starts_loaded=True) for nth in range(1, 4)),
            BoxSpec("failing", 1.0, slots=slots, fails_after_s=0.05),
        )
        label = f"{slots} slot{'s' if slots > 1 else ''}"
        outcomes[label] = play(DEFAULT, SETTINGS, boxes, [_EQUAL] * 300, seed)
        got[label] = float(_given_before_breaker(outcomes[label], "failing"))
    worst = max(got.values())
    unfinished = sum(one.not_succeeded for one in outcomes.values())
    return Finding(
        name="failing_worker",
        about="300 tasks, one of four boxes fails each in 50 ms",
        boxes=boxes,
        lines=[Line(label, one) for label, one in outcomes.items()],
        figures={"failing_worker_tasks": worst},
        targets=[
            Target("tasks it gets before its breaker opens", worst, most=5.0),
            Target("tasks that did not end well", float(unfinished), most=0.0),
        ],
        notes=[f"given to it before the breaker opened: {', '.join(f'{k}: {v:.0f}' for k, v in got.items())}"],
    )


def come_and_go(seed: int, seeds: int) -> Finding:
    """A workshop as it is: unequal boxes, two models, all priorities, some boxes not always there."""
    del seeds
    rng = Random(f"come and go/{seed}")
    both = (MODEL, OTHER_MODEL)
    boxes = (
        BoxSpec("desk", 1.0, LOCAL, slots=2, models=both, memory_models=2),
        BoxSpec("rack", 2.0, REMOTE, models=both),
        BoxSpec("laptop", 0.6, REMOTE, models=both, absences=(Absence(400.0, 900.0),)),
        BoxSpec("gaming", 1.5, REMOTE, absences=(Absence(0.0, 600.0),)),
        BoxSpec(
            "flaky", 0.8, REMOTE, models=both, absences=(Absence(300.0, 500.0, True), Absence(1_000.0, 1_100.0, True))
        ),
        BoxSpec("old", 0.25, REMOTE, models=(OTHER_MODEL,)),
    )
    jobs = [
        replace(job, arrives_s=rng.uniform(0.0, 700.0), model=rng.choice(both), priority=rng.choice((2, 2, 5, 5, 5, 9)))
        for job in sizes(rng, 240, output_median=500, sigma=0.7)
    ]
    jobs.sort(key=lambda job: job.arrives_s)
    outcomes = {way: play(way, SETTINGS, boxes, jobs, seed) for way in (*OURS, "random", "least_connections")}
    outcomes[f"{DEFAULT}, with rules"] = play(DEFAULT, replace(SETTINGS, rules=RULES), boxes, jobs, seed)
    repeated = sum(len(one.given_s) - 1 for one in outcomes[DEFAULT].jobs)
    unfinished = sum(one.not_succeeded for one in outcomes.values())
    return Finding(
        name="come_and_go",
        about="240 tasks of two models and all bands in 700 s; boxes leave, crash, come late",
        boxes=boxes,
        lines=[Line(label, one) for label, one in outcomes.items()],
        figures={"come_and_go_makespan_s": {label: one.makespan_s for label, one in outcomes.items()}},
        targets=[Target("tasks that did not end well", float(unfinished), most=0.0)],
        notes=[f"begun again because their box was lost: {repeated} tasks ({DEFAULT})"],
        chart=Line(DEFAULT, outcomes[DEFAULT]),
    )


def prefix(seed: int, seeds: int) -> Finding:
    """Batches over common files: the beginning of the prompt is read once a box, if the box sees it again."""
    del seeds
    rng = Random(f"prefix/{seed}")
    boxes = tuple(BoxSpec(f"box_{nth}", 1.0, starts_loaded=True) for nth in range(1, 5))
    mixed = [
        Job(0.0, 6_000 + 200, rng.randint(80, 220), prefix=f"batch {2 * pair + person}", prefix_tokens=6_000)
        for pair in range(10)
        for _ in range(20)
        for person in (0, 1)
    ]
    coming = _poisson(rng, mixed, 0.5 * len(boxes) / fmean(job.work_s for job in mixed))
    lines: list[Line] = []
    ratios: dict[str, float] = {}
    in_order: dict[str, float] = {}
    for label, jobs in (("at once", mixed), ("50 % load", coming)):
        outcomes = {way: play(way, SETTINGS, boxes, jobs, seed) for way in (*OURS, "random", FIFO)}
        lines += [Line(f"{way}, {label}", one) for way, one in outcomes.items()]
        busy_s = {way: sum(box.busy_s for box in one.boxes.values()) for way, one in outcomes.items()}
        ratios |= {f"{way}, {label}": busy_s[way] / busy_s["random"] for way in OURS}
        in_order |= {f"{way}, {label}": busy_s[way] / busy_s[FIFO] for way in OURS}
    return Finding(
        name="prefix",
        about="20 batches of 20 tasks, two at a time in turn; those of a batch begin with the same 6,000 tokens",
        boxes=boxes,
        lines=lines,
        figures={"prefix_gpu_time_over_random": ratios, "prefix_gpu_time_over_fifo": in_order},
        targets=[Target("GPU time over first-in-first-out, all at once", in_order[f"{DEFAULT}, at once"], most=0.75)],
        notes=[
            f"GPU time, {label}: {ratio:.2f} x that at random, {in_order[label]:.2f} x that of first in, first out"
            for label, ratio in ratios.items()
        ],
    )


def sizes(rng: Random, count: int, *, output_median: float, sigma: float) -> list[Job]:
    """Lognormal sizes: prompts of some 1,100 tokens, spread by 1.0; answers as told."""
    return [
        Job(
            0.0,
            prompt_tokens=min(32_000, max(50, round(rng.lognormvariate(7.0, 1.0)))),
            output_tokens=max(10, round(output_median * rng.lognormvariate(0.0, sigma))),
        )
        for _ in range(count)
    ]


def _poisson(rng: Random, jobs: list[Job], rate: float) -> list[Job]:
    """The same jobs, coming one by one: `rate` a second on average."""
    at_s = 0.0
    coming: list[Job] = []
    for job in jobs:
        at_s += rng.expovariate(rate)
        coming.append(replace(job, arrives_s=at_s))
    return coming


def _mean_response_s(outcome: Outcome, skipped: int) -> float:
    return fmean(one.response_s for one in outcome.jobs[skipped:])


def _given_before_breaker(outcome: Outcome, box_id: str) -> int:
    opened_s = next((at_s for at_s, code, text in outcome.alerts if code == f"cooling:{box_id}" and text), _NEVER_S)
    return sum(
        at_s <= opened_s and where == box_id
        for one in outcome.jobs
        for at_s, where in zip(one.given_s, one.boxes, strict=True)
    )


Scenario = Callable[[int, int], Finding]
SCENARIOS: Mapping[str, Scenario] = {
    one.__name__: one
    for one in (
        equal_makespan,
        learned_response,
        swaps,
        trickle,
        high_priority,
        ageing,
        failing_worker,
        come_and_go,
        prefix,
    )
}
