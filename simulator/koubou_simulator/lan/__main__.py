"""`python -m koubou_simulator.lan`: play the scenarios, print their tables, write build/lan.json and the charts."""

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from koubou_simulator.lan.finding import Finding
from koubou_simulator.lan.gantt import draw
from koubou_simulator.lan.scenarios import SCENARIOS, Scenario
from koubou_simulator.lan.unequal import unequal_makespan

ALL: Mapping[str, Scenario] = {**SCENARIOS, unequal_makespan.__name__: unequal_makespan}
SEEDS = 100
_OVERVIEW = "come_and_go"  # its chart is the one of the whole run


def main(arguments: list[str] | None = None) -> int:
    """Missed targets are printed; the exit code is 0 all the same, as no run went wrong."""
    parser = argparse.ArgumentParser(prog="python -m koubou_simulator.lan", description=__doc__)
    parser.add_argument("--scenario", choices=(*ALL, "all"), default="all", help="one of them (default: all)")
    parser.add_argument("--seed", type=int, default=1, help="the first seed (default 1)")
    parser.add_argument(
        "--seeds", type=int, default=SEEDS, help=f"of unequal_makespan, from --seed on (default {SEEDS})"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON instead of tables")
    parser.add_argument("--chart", type=Path, help=f"draw the scenario's chart into this file (all: {_OVERVIEW}'s)")
    parser.add_argument("--folder", type=Path, help="write all charts there, and lan.json after all scenarios")
    given = parser.parse_args(arguments)
    if given.seeds < 1:
        parser.error("--seeds must be at least 1")
    names = list(ALL) if given.scenario == "all" else [given.scenario]
    figures: dict[str, float | Mapping[str, float]] = {}
    missed = 0
    for name in names:
        began = time.monotonic()
        finding = ALL[name](given.seed, given.seeds)
        figures |= finding.figures
        missed += sum(not target.is_met for target in finding.targets)
        if not given.json:
            sys.stdout.write(f"{finding.text()}\n({time.monotonic() - began:.1f} s)\n\n")
            sys.stdout.flush()
        chart = given.chart if len(names) == 1 or name == _OVERVIEW else None
        _draw(finding, chart, given.folder)
    text = json.dumps({key: _rounded(value) for key, value in figures.items()}, indent=2, sort_keys=True)
    if given.folder is not None and given.scenario == "all":
        given.folder.mkdir(parents=True, exist_ok=True)
        (given.folder / "lan.json").write_text(f"{text}\n")
    if given.json:
        sys.stdout.write(f"{text}\n")
    else:
        sys.stdout.write(
            f"{missed or 'no'} {'target' if missed == 1 else 'targets'} missed; simulated, seed {given.seed}\n"
        )
    return 0


def _rounded(value: float | Mapping[str, float]) -> object:
    """No more digits than mean something."""
    return {key: round(one, 4) for key, one in value.items()} if isinstance(value, Mapping) else round(value, 4)


def _draw(finding: Finding, chart: Path | None, folder: Path | None) -> None:
    if finding.chart is None:
        return
    picture = draw(finding.title(), finding.chart.outcome)
    if chart is not None:
        chart.write_text(picture)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"lan_{finding.name}.svg").write_text(picture)
        if finding.name == _OVERVIEW:
            (folder / "lan.svg").write_text(picture)


if __name__ == "__main__":
    sys.exit(main())
