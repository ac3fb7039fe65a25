"""Every promise of the two cores, over many seeds; and that the checks would notice if one were broken."""

import pytest

from sim.planted import PLANTED, Plant
from sim.simulation import seeds, simulate

SEEDS = 200
GROUPS = 8  # so that two cores share the work
CATCH_WITHIN = 60  # seeds in which a planted bug must be noticed


@pytest.mark.parametrize("group", range(GROUPS))
def test_no_promise_is_broken_whatever_the_seed(group: int) -> None:
    for seed in seeds(SEEDS)[group::GROUPS]:
        simulate(seed)


def test_the_same_seed_is_the_same_run() -> None:
    seed = seeds(3)[2]
    assert simulate(seed) == simulate(seed)


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_a_planted_bug_is_noticed(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    bugs = plant(monkeypatch)
    for seed in seeds(CATCH_WITHIN):
        try:
            simulate(seed, bugs)
        except AssertionError:
            return
    pytest.fail(f"{CATCH_WITHIN} seeds, and nobody noticed: {plant.__doc__}")
