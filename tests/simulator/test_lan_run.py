"""A run on the real core: everything ends, nothing is above the slots, the same seed gives the same run."""

from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest

from koubou_broker.core import CoreSettings
from koubou_common.messages.values import TaskState
from koubou_simulator.lan.outcome import Outcome, lower_bound_s, percentile
from koubou_simulator.lan.run import LanRun
from koubou_simulator.lan.scenarios import SETTINGS
from koubou_simulator.lan.things import MODEL, OTHER_MODEL, Absence, BoxSpec, Job
from koubou_simulator.lan.ways import WAYS, play

JOB = Job(0.0, 500, 315)  # 10 s at speed 1.0
AWAY = Absence(5.0, 1e6, is_crash=True)
TWO = (BoxSpec("fast", 1.0, starts_loaded=True), BoxSpec("slow", 0.5, slots=2, starts_loaded=True))


def spans_of(outcome: Outcome) -> list[tuple[str, int, float, float, int, str]]:
    """Everything that ran, in order."""
    return sorted(
        (box_id, span.lane, span.from_s, span.until_s, span.task_id, span.how)
        for box_id, story in outcome.boxes.items()
        for span in story.spans
    )


def some_jobs(count: int, seed: int = 1) -> list[Job]:
    """Jobs of different sizes, models, priorities and times."""
    rng = Random(seed)
    return sorted(
        (
            Job(
                rng.uniform(0, 100),
                rng.randint(50, 5_000),
                rng.randint(20, 900),
                rng.choice((MODEL, OTHER_MODEL)),
                rng.randint(1, 10),
            )
            for _ in range(count)
        ),
        key=lambda job: job.arrives_s,
    )


@pytest.mark.parametrize("way", WAYS)
def test_every_way_finishes_every_job_and_no_box_runs_more_than_its_slots(way: str) -> None:
    outcome = play(way, SETTINGS, TWO, [JOB] * 30, seed=3)
    assert [one.state for one in outcome.jobs] == [TaskState.SUCCEEDED] * 30
    assert sum(outcome.given.values()) == 30
    assert outcome.makespan_s >= lower_bound_s([JOB] * 30, TWO)
    for box_id, story in outcome.boxes.items():
        lanes = {span.lane for span in story.spans}
        assert len(lanes) <= story.spec.slots, (way, box_id)
        for lane in lanes:
            spans = sorted((span.from_s, span.until_s) for span in story.spans if span.lane == lane)
            assert all(before[1] <= after[0] for before, after in pairwise(spans)), (way, box_id)


@pytest.mark.parametrize("way", WAYS)
def test_the_same_seed_gives_the_same_run(way: str) -> None:
    boxes = [replace(box, models=(MODEL, OTHER_MODEL)) for box in TWO]
    runs = [spans_of(play(way, SETTINGS, boxes, some_jobs(40), seed=5)) for _ in range(2)]
    assert runs[0] == runs[1]


def test_another_seed_gives_another_random_run() -> None:
    runs = [spans_of(play("random", SETTINGS, TWO, [JOB] * 30, seed=seed)) for seed in (1, 2)]
    assert runs[0] != runs[1]


def test_what_a_crashed_box_had_is_done_elsewhere_and_the_box_gets_work_when_it_is_back() -> None:
    boxes = (BoxSpec("there", 1.0), BoxSpec("flaky", 1.0, absences=(Absence(25.0, 60.0, is_crash=True),)))
    outcome = play("priority_based", CoreSettings(), boxes, [JOB] * 40, seed=1)
    assert outcome.not_succeeded == 0
    story = outcome.boxes["flaky"]
    assert [span.how for span in story.spans].count("lost") == 1
    assert any(span.from_s >= 60.0 for span in story.spans)
    lost = next(span for span in story.spans if span.how == "lost")
    again = next(one for one in outcome.jobs if one.task_id == lost.task_id)
    assert len(again.given_s) == 2
    # The broker hears nothing and gives it a whole lease.
    assert again.given_s[1] - 25.0 >= CoreSettings().lease_s - CoreSettings().heartbeat_s


def test_what_is_sent_to_a_box_that_has_just_crashed_is_lost_until_its_lease_ends() -> None:
    boxes = (BoxSpec("there", 1.0, starts_loaded=True), BoxSpec("gone", 2.0, starts_loaded=True, absences=(AWAY,)))
    outcome = play("priority_based", CoreSettings(), boxes, [replace(JOB, arrives_s=7.0)], seed=1)
    (job,) = outcome.jobs
    assert job.boxes == ["gone", "there"]
    assert job.given_s[1] == pytest.approx(7.0 + CoreSettings().lease_s)
    assert outcome.not_succeeded == 0


def test_a_box_that_says_goodbye_gives_its_work_back_at_once() -> None:
    boxes = (BoxSpec("there", 1.0), BoxSpec("leaving", 1.0, absences=(Absence(25.0, 1e6),)))
    outcome = play("priority_based", CoreSettings(), boxes, [JOB] * 6, seed=1)
    again = next(one for one in outcome.jobs if len(one.given_s) == 2)
    assert again.boxes[0] == "leaving"
    assert again.boxes[1] == "there"
    assert again.given_s[1] - 25.0 <= 10.0  # as soon as the other one is free, long before the lease ends


def test_a_box_that_comes_late_is_used_from_then_on() -> None:
    boxes = (BoxSpec("there", 1.0), BoxSpec("late", 1.0, absences=(Absence(0.0, 50.0),)))
    outcome = play("priority_based", SETTINGS, boxes, [JOB] * 30, seed=1)
    assert min(span.from_s for span in outcome.boxes["late"].spans) >= 50.0


def test_jobs_that_can_never_run_are_told_instead_of_waited_for() -> None:
    boxes = (BoxSpec("gone", 1.0, absences=(Absence(0.0, float("inf")),)),)
    with pytest.raises(AssertionError, match="1 jobs never end"):
        LanRun(SETTINGS, boxes, [JOB], 1).play()


def test_the_core_measures_what_the_boxes_truly_are() -> None:
    wrong = (BoxSpec("fast", 1.0, factor=1.0), BoxSpec("slow", 0.25, location="remote", factor=1.0))
    jobs = [replace(JOB, arrives_s=nth * 20.0) for nth in range(200)]
    outcome = play("priority_based", SETTINGS, wrong, jobs, seed=1)
    assert outcome.factors == pytest.approx({"slow": 0.25}, rel=0.05)  # the other's was right


def test_waits_overtakings_and_percentiles_are_counted_right() -> None:
    outcome = play("fifo", SETTINGS, (TWO[0],), [JOB] * 4, seed=1)
    assert [round(wait) for wait in outcome.waits_s(5, 7)] == [0, 10, 20, 30]
    assert outcome.waits_s(8, 10) == []
    assert outcome.overtaken_s() == 0.0
    first, last = outcome.jobs[0], outcome.jobs[-1]
    first.given_s, last.given_s = last.given_s, first.given_s
    # The last one went first, at 0; two more went before the first one, until 20.2.
    assert outcome.overtaken_s() == pytest.approx(20.2)
    assert percentile([1.0, 2.0, 3.0, 4.0], 0.5) == 2.0
    assert percentile([1.0, 2.0, 3.0, 4.0], 0.99) == 4.0
    assert percentile([], 0.99) == 0.0
