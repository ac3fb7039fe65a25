"""`python -m koubou_simulator.lan`: tables, JSON, charts; the exit code is 0 also where a target is missed."""

import json
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from koubou_simulator.lan import __main__ as lan
from koubou_simulator.lan.finding import Finding, Line, Target
from koubou_simulator.lan.scenarios import SETTINGS, Scenario
from koubou_simulator.lan.things import BoxSpec, Job
from koubou_simulator.lan.ways import play


def a_scenario(name: str, *, met: bool = True) -> Scenario:
    """A small one that notes its seeds."""

    def scenario(seed: int, seeds: int) -> Finding:
        outcome = play("fifo", SETTINGS, (BoxSpec("box"),), [Job(0.0, 500, 35)] * 3, seed)
        value = 0.5 if met else 2.0
        return Finding(
            name,
            "three tasks",
            lines=[Line("fifo", outcome)],
            figures={f"{name}_seed": float(seed), f"{name}_seeds": float(seeds)},
            targets=[Target("a figure", value, most=1.0)],
            chart=Line("fifo", outcome),
        )

    return scenario


@pytest.fixture
def _two(monkeypatch: pytest.MonkeyPatch) -> None:
    scenarios: Mapping[str, Scenario] = {
        "come_and_go": a_scenario("come_and_go"),
        "other": a_scenario("other", met=False),
    }
    monkeypatch.setattr(lan, "ALL", scenarios)


@pytest.mark.usefixtures("_two")
def test_all_scenarios_write_their_figures_and_charts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lan.main(["--folder", str(tmp_path / "build"), "--seed", "3", "--seeds", "7"]) == 0
    written = json.loads((tmp_path / "build" / "lan.json").read_text())
    assert written == {"come_and_go_seed": 3.0, "come_and_go_seeds": 7.0, "other_seed": 3.0, "other_seeds": 7.0}
    names = {path.name for path in (tmp_path / "build").iterdir()}
    assert names == {"lan.json", "lan.svg", "lan_come_and_go.svg", "lan_other.svg"}
    assert (tmp_path / "build" / "lan.svg").read_text() == (tmp_path / "build" / "lan_come_and_go.svg").read_text()
    printed = capsys.readouterr().out
    assert "met     a figure: 0.5 (at most 1)" in printed
    assert "missed  a figure: 2 (at most 1)" in printed
    assert printed.endswith("1 target missed; simulated, seed 3\n")


@pytest.mark.usefixtures("_two")
def test_one_scenario_leaves_the_figures_of_all_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chart = tmp_path / "one.svg"
    assert lan.main(["--scenario", "other", "--json", "--chart", str(chart), "--folder", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out) == {"other_seed": 1.0, "other_seeds": float(lan.SEEDS)}
    assert not (tmp_path / "lan.json").exists()
    assert ET.fromstring(chart.read_text()).tag.endswith("svg")


@pytest.mark.parametrize("arguments", [["--scenario", "nothing"], ["--seeds", "0"], ["--seed", "x"]])
def test_what_makes_no_sense_is_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        lan.main(arguments)
    assert ended.value.code == 2
