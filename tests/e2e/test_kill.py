"""kill -9 in the midst of the main command: it still ends with exactly one result (e2e.kill does it by hundreds)."""

import pytest

from e2e.kill import AGENT, BROKER, Range, instants
from e2e.site import Site

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.xdist_group("e2e-kill")]

COUNT, SEED = 5, 20_260


@pytest.fixture(scope="module")
def field(site: Site) -> Range:
    return Range(site)


@pytest.fixture(scope="module")
def span_s(field: Range) -> float:
    return field.undisturbed_s()


@pytest.mark.parametrize("part", range(COUNT))
@pytest.mark.parametrize("victim", [BROKER, AGENT])
def test_a_command_survives_the_kill_of(field: Range, span_s: float, victim: str, part: int) -> None:
    instant_s = instants(victim, COUNT, span_s, SEED)[part]
    run = field.run(victim, instant_s)
    assert run.fault == "", run


def test_an_agent_killed_while_the_model_answers_costs_a_second_attempt(field: Range, span_s: float) -> None:
    """Otherwise the kills above might all have missed."""
    runs = [field.run(AGENT, span_s * share) for share in (0.5, 0.65, 0.8)]
    assert [run.fault for run in runs] == [""] * 3, runs
    assert any(len(run.attempts) > 1 and run.attempts[0] == "lost" for run in runs), runs
