"""A short chaos run: real broker, agents and clients, everything killed, stopped, cut and healed again."""

import pytest

from chaos.run import Outcome, Plan, run
from chaos.timetable import Rates
from chaos.weather import Climate
from support.cli import CLI_KINDS, cli_python

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.xdist_group("chaos"), pytest.mark.timeout(400)]

SEED = 4
RATES = Rates(freeze_s=9.0, freeze_most_s=6.0, restart_broker_s=12.0, restart_agent_s=12.0, link_down_most_s=6.0)
CLIMATE = Climate(mean_pause_s=6.0, half_open_most_s=6.0, stall_most_s=3.0)
PLAN = Plan(minutes=0.4, seed=SEED, agents=3, clients=2, rates=RATES, climate=CLIMATE)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    root = tmp_path_factory.mktemp("chaos")
    said: list[str] = []
    return run(PLAN, root / "home", cli_python(CLI_KINDS[-1], root / "cli"), said.append)


def test_every_promise_is_kept(outcome: Outcome) -> None:
    assert outcome.broken == (), f"seed {SEED}"


def test_there_was_something_to_survive(outcome: Outcome) -> None:
    found = outcome.figures
    assert found.tasks >= 20, found
    assert found.succeeded == found.tasks
    assert (found.lost, found.duplicated) == (0, 0)
    assert found.kills >= 8, found
    assert min(found.stops, found.restarts, found.proxy_faults) >= 1, found
    assert found.recoveries >= 3
    assert 0 < found.recovery_p50_s <= found.recovery_p99_s


def test_one_task_survived_at_least_three_kinds_of_fault_and_show_tells_it(outcome: Outcome) -> None:
    survivor = outcome.survivor
    assert survivor is not None
    assert len(survivor.kinds) >= 3, survivor
    assert f"Task {survivor.task_id}" in outcome.shown
    assert "succeeded" in outcome.shown
