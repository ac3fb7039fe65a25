"""What Koubou is compared with: chosen among free workers, or at submit as people do without a queue."""

from random import Random

import pytest

from koubou_broker.routing.strategies import STRATEGIES
from koubou_simulator.lan.baselines import (
    LeastConnectionsAtSubmit,
    OriginalAtSubmit,
    RandomAtSubmit,
    RoundRobinAtSubmit,
    Seen,
)
from koubou_simulator.lan.scenarios import SETTINGS
from koubou_simulator.lan.things import MODEL, OTHER_MODEL, BoxSpec, Job
from koubou_simulator.lan.ways import OURS, WAYS, play

JOB = Job(0.0, 500, 315)  # 10 s at speed 1.0


def seen(*boxes: tuple[str, str, float, int]) -> dict[str, Seen]:
    """Boxes by name, location, factor and open jobs."""
    return {name: Seen(BoxSpec(name, factor, location), open_jobs) for name, location, factor, open_jobs in boxes}


@pytest.mark.parametrize(
    ("priority", "boxes", "chosen"),
    [
        # 5-7: the first kind that exists wins, however busy it is.
        (6, [("here", "local", 0.5, 9), ("there", "remote", 2.0, 0)], "here"),
        (3, [("here", "local", 2.0, 0), ("there", "remote", 0.5, 9)], "there"),
        # A busy box of 2.0 has 200 - 30, an idle one of 0.5 has 50 + 50: slots do not exist.
        (3, [("fast", "remote", 2.0, 9), ("slow", "remote", 0.5, 0)], "fast"),
        (3, [("one", "remote", 1.0, 1), ("other", "remote", 0.5, 0)], "other"),
        # 1-4 with local boxes alone: the first of the list, unscored.
        (3, [("slow", "local", 0.2, 5), ("fast", "local", 2.0, 0)], "slow"),
    ],
)
def test_the_original_formula_is_taken_to_the_letter(
    priority: int, boxes: list[tuple[str, str, float, int]], chosen: str
) -> None:
    assert OriginalAtSubmit().choose(Job(0.0, 1, 1, priority=priority), seen(*boxes)) == chosen


def test_least_connections_at_submit_takes_whoever_has_fewest_open_jobs() -> None:
    boxes = seen(("a", "local", 1.0, 3), ("b", "remote", 0.1, 2), ("c", "local", 1.0, 2))
    assert LeastConnectionsAtSubmit().choose(JOB, boxes) == "b"


def test_round_robin_at_submit_goes_round_those_that_are_here() -> None:
    boxes = seen(("a", "local", 1.0, 0), ("b", "local", 1.0, 0), ("c", "local", 1.0, 0))
    boxes["b"].is_here = False
    chooser = RoundRobinAtSubmit()
    assert [chooser.choose(JOB, boxes) for _ in range(4)] == ["a", "c", "a", "c"]


def test_where_nobody_is_here_the_job_waits_with_one_of_those_that_have_its_model() -> None:
    boxes = {
        "a": Seen(BoxSpec("a", models=(OTHER_MODEL,)), is_here=True),
        "b": Seen(BoxSpec("b", models=(MODEL,)), is_here=False),
    }
    assert RandomAtSubmit(Random(1)).choose(JOB, boxes) == "b"


def test_open_jobs_are_counted_down_when_they_end() -> None:
    boxes = (BoxSpec("a_slow", 0.25, starts_loaded=True), BoxSpec("b_fast", 1.0, starts_loaded=True))
    jobs = [Job(nth * 12.0, 500, 315) for nth in range(40)]
    outcome = play("least_connections_at_submit", SETTINGS, boxes, jobs, seed=1)
    # Each job finds the fast box idle again; the slow one is still at its own three times out of four.
    assert outcome.given["b_fast"] >= 25


def test_chosen_at_submit_a_job_stays_with_its_box() -> None:
    boxes = (BoxSpec("a", 0.1, starts_loaded=True), BoxSpec("b", 2.0, starts_loaded=True))
    outcome = play("round_robin_at_submit", SETTINGS, boxes, [JOB] * 10, seed=1)
    assert outcome.given == {"a": 5, "b": 5}
    assert all(one.boxes == [one.asked_for] for one in outcome.jobs)


def test_our_own_ways_are_the_strategies_of_the_broker() -> None:
    assert set(OURS) == set(STRATEGIES)
    assert set(OURS) < set(WAYS)
