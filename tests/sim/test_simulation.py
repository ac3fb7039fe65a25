"""Every promise over many seeds; a failing seed tells its story and replays; the figures do not depend on the jobs."""

import json
from pathlib import Path

import pytest

from sim import run as runner
from sim.bugs import Bugs
from sim.simulation import seeds, simulate
from sim.story import SeedError

SEEDS = 200
GROUPS = 8  # so that two cores share the work


@pytest.mark.parametrize("group", range(GROUPS))
def test_no_promise_is_broken_whatever_the_seed(group: int) -> None:
    for seed in seeds(SEEDS)[group::GROUPS]:
        simulate(seed)


@pytest.mark.parametrize("index", [2, 3])
def test_the_same_seed_is_the_same_run(index: int) -> None:
    seed = seeds(index + 1)[index]
    assert simulate(seed) == simulate(seed)


def _first_failure(bugs: Bugs, saying: str = "") -> tuple[int, SeedError]:
    for seed in seeds(60):
        try:
            simulate(seed, bugs)
        except SeedError as error:
            if saying in str(error):
                return seed, error
    pytest.fail("60 seeds, and nothing of that kind was broken")


def test_a_failing_seed_names_the_promise_and_tells_the_story_of_the_task() -> None:
    # Of a task that ran: one that waited when its promise was broken has no attempts to tell of.
    seed, error = _first_failure(Bugs(no_jump=True), "attempt 1 ")
    said = str(error)
    assert said.startswith(f"seed {seed} at ")
    assert error.reason in said
    assert "story of task " in said
    assert "-> queued submitted" in said, "its events"
    assert "attempt 1 " in said.partition("story of task ")[2], "its attempts"
    assert "broker -> client" in said, "the lines of the trace that name it"


def test_a_failing_seed_fails_again_in_the_same_way() -> None:
    seed, error = _first_failure(Bugs(forgets_saves=0.05))
    with pytest.raises(SeedError) as again:
        simulate(seed, Bugs(forgets_saves=0.05))
    assert str(again.value) == str(error)


def test_the_figures_do_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    few = seeds(2 * runner.CHUNK_SEEDS)
    alone, _ = runner.run(few, jobs=1)
    shared, _ = runner.run(few, jobs=2)
    assert runner.summed(alone) == runner.summed(shared)


def test_answers_are_given_again_and_questions_answered_in_what_the_tests_run() -> None:
    total = runner.summed(map(simulate, seeds(30)))
    assert total["cached"] > 0
    assert total["explained"] > 0


def test_a_run_writes_down_its_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = tmp_path / "build" / "sim.json"
    assert runner.main(["--seeds", "3", "--jobs", "1", "--record", str(record)]) == 0
    written = json.loads(record.read_text("utf-8"))
    assert written["seeds"] == 3
    assert written["violations"] == 0
    assert set(written) >= {"virtual_hours", "faults", "messages", "tasks", "executions_per_task", "seeds_per_s"}
    assert "3 seeds" in capsys.readouterr().out


def test_a_run_stops_at_the_first_violation_and_says_how_to_run_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, "simulate", lambda seed: simulate(seed, Bugs(no_jump=True)))
    record = tmp_path / "sim.json"
    assert runner.main(["--seeds", "60", "--jobs", "1", "--record", str(record)]) == 1
    written = json.loads(record.read_text("utf-8"))
    assert written["violations"] == 1
    assert written["seeds"] < 60
    failing = seeds(60)[written["seeds"] - 1]
    said = capsys.readouterr().err
    assert f"again: make sim ONE={failing}" in said
    assert "replayed: the same, to the last line" in said
