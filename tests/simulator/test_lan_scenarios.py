"""What routing promises, on the real core in virtual time: the targets of `make lan`, on few seeds."""

import pytest

from koubou_simulator.lan.finding import Finding, Line, Target
from koubou_simulator.lan.scenarios import SCENARIOS, SETTINGS
from koubou_simulator.lan.things import BoxSpec, Job
from koubou_simulator.lan.unequal import BOXES, jobs_of, unequal_makespan
from koubou_simulator.lan.ways import DEFAULT, OURS, WAYS, play

# build/lan.json is read by others: these keys stay.
BY_STRATEGY = {"equal_makespan", "learned_response", "unlearned_response"}
KEYS = {
    "equal_makespan": {"equal_makespan"},
    "learned_response": {"learned_response", "unlearned_response"},
    "swaps": {"swaps_fifo_over_default"},
    "high_priority": {"high_priority_p99_wait_tasks"},
    "failing_worker": {"failing_worker_tasks"},
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_meets_its_targets_and_has_its_figures(name: str) -> None:
    finding = SCENARIOS[name](1, 1)
    assert [target.text() for target in finding.targets if not target.is_met] == []
    figures = {key: value for key, value in finding.figures.items() if key in KEYS.get(name, ())}
    assert set(figures) == KEYS.get(name, set())
    for key, value in figures.items():
        of_ways = {"": value} if isinstance(value, float) else value
        assert (set(of_ways) >= set(OURS)) == (key in BY_STRATEGY), key
        assert all(one > 0 for one in of_ways.values()), key


def test_of_unequal_boxes_the_better_of_our_two_is_near_the_bound_and_the_best_of_all() -> None:
    finding = unequal_makespan(1, 1)
    medians, worst = finding.figures["unequal_makespan"], finding.figures["unequal_makespan_worst"]
    assert not isinstance(medians, float)
    assert medians == worst  # one seed
    assert set(medians) == set(WAYS)
    best = min(medians[way] for way in OURS)
    assert best <= 1.10
    # Chosen at submit without a queue, the slow boxes hold up everything.
    assert medians[DEFAULT] < 0.5 * min(value for way, value in medians.items() if way.endswith("_at_submit"))


def test_the_unequal_jobs_are_the_same_for_every_way_and_others_for_another_seed() -> None:
    assert jobs_of(1) == jobs_of(1)
    assert jobs_of(1) != jobs_of(2)
    assert (BOXES[0].speed, BOXES[-1].speed) == (2.0, 0.12)


def test_a_target_says_whether_it_was_met() -> None:
    assert Target("swaps", 12.0, least=10.0).text() == "met     swaps: 12 (at least 10)"
    assert Target("wait", 1.25, most=1.0).text() == "missed  wait: 1.25 (at most 1)"
    assert not Target("both", 3.0, most=4.0, least=3.5).is_met


def test_the_report_names_every_row_and_the_bands_that_are_there() -> None:
    boxes = (BoxSpec("box", 0.5, starts_loaded=True),)
    outcome = play(DEFAULT, SETTINGS, boxes, [Job(0.0, 500, 315, priority=one) for one in (1, 9, 9)], seed=1)
    text = Finding("small", "three tasks", boxes, [Line(DEFAULT, outcome)]).text()
    assert text.splitlines() == [
        "small: three tasks",
        "boxes: box (local, speed 0.5)",
        "",
        "                makespan s  response s  wait 8-10 s  wait 1-4 s  swaps  use of each box %",
        "priority_based          60          40      30 / 40       0 / 0      0  100",
    ]
