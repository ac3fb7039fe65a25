"""Every mechanism is missed when it is gone: the simulation notices each mutant, here as in `make sim_gate`."""

import pytest

from sim.bugs import Bugs
from sim.gate import MUTANTS, Mutant, notice


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mechanism_that_is_switched_off_is_missed(mutant: Mutant) -> None:
    noticed = notice(mutant)
    assert noticed is not None, f"nobody noticed that this was gone: {mutant.name}"


def test_a_mutant_that_changes_nothing_is_not_noticed() -> None:
    assert notice(Mutant("nothing", lambda patch: Bugs()), within=3) is None


def test_mutants_have_names_of_their_own() -> None:
    names = [mutant.name for mutant in MUTANTS]
    assert len(names) == len(set(names))
