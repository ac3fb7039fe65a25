"""A soak of a few seconds, and its verdict on made-up ones."""

from pathlib import Path

import pytest

from chaos.samples import MIB, Sample
from chaos.soak import Soak, judge, run
from support.cli import CLI_KINDS, cli_python


def a_soak(*, fds_end: int = 20, database_end_mib: int = 5) -> Soak:
    steady = [Sample(10.0 * number, 60 * MIB, 20, 7) for number in range(40)]
    leaking = [*steady[:-1], Sample(400.0, 60 * MIB, fds_end, 7)]
    sizes = [5 * MIB] * 30 + [database_end_mib * MIB] * 10
    return Soak(steady, leaking, sizes, submitted=9, succeeded=9)


def test_a_steady_workshop_has_no_fault() -> None:
    found, faults = judge(a_soak())
    assert faults == []
    assert found["tasks"] == found["succeeded"] == 9


def test_open_files_a_growing_database_and_wrong_answers_are_faults() -> None:
    assert judge(a_soak(fds_end=40))[1] == ["the agent keeps files open"]
    assert judge(a_soak(database_end_mib=9))[1] == ["the database goes on growing"]
    wrong = a_soak()
    wrong.wrong.append("task 3 brought another text")
    assert judge(wrong)[1] == ["task 3 brought another text"]


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.xdist_group("chaos")
def test_a_short_soak_measures_broker_agent_and_database(tmp_path: Path) -> None:
    python = cli_python(CLI_KINDS[-1], tmp_path / "cli")
    soak = run(0.1, 1, tmp_path / "home", python, sample_s=0.5)
    assert soak.wrong == []
    assert soak.succeeded == soak.submitted >= 3
    assert min(len(soak.broker), len(soak.agent), len(soak.database_bytes)) >= 5
    assert min(soak.broker[-1].rss_bytes, soak.agent[-1].rss_bytes) > 10 * MIB
