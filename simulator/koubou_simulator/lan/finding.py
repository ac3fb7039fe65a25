"""What a scenario found: a table, figures for the machine, targets for people, a run to draw."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from koubou_simulator.lan.outcome import BANDS, Outcome, percentile
from koubou_simulator.lan.things import BoxSpec


@dataclass(frozen=True, slots=True)
class Target:
    """What a figure should be."""

    what: str
    value: float
    most: float | None = None
    least: float | None = None

    @property
    def is_met(self) -> bool:
        """Whether it is so."""
        return (self.most is None or self.value <= self.most) and (self.least is None or self.value >= self.least)

    def text(self) -> str:
        """One line for people."""
        bounds = [f"at most {self.most:g}"] if self.most is not None else []
        bounds += [f"at least {self.least:g}"] if self.least is not None else []
        word = "met   " if self.is_met else "missed"
        return f"{word}  {self.what}: {self.value:.3g} ({', '.join(bounds)})"


@dataclass(frozen=True, slots=True)
class Line:
    """A row of the table: one run."""

    label: str
    outcome: Outcome


@dataclass(slots=True)
class Finding:
    """A scenario's result."""

    name: str
    about: str
    boxes: tuple[BoxSpec, ...] = ()
    lines: list[Line] = field(default_factory=list)
    figures: dict[str, float | Mapping[str, float]] = field(default_factory=dict)  # for build/lan.json
    targets: list[Target] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    chart: Line | None = None

    def text(self) -> str:
        """The scenario's part of the report."""
        parts = [f"{self.name}: {self.about}", *self._box_lines(), ""]
        if self.lines:
            parts += [*table(self.lines), ""]
        parts += self.notes
        parts += [target.text() for target in self.targets]
        return "\n".join(parts)

    def title(self) -> str:
        """Of the chart."""
        return f"{self.name}, {self.chart.label}: {self.about}" if self.chart is not None else self.name

    def _box_lines(self) -> list[str]:
        if not self.boxes:
            return []
        names = ", ".join(f"{box.box_id} ({box.location}, speed {box.speed:g})" for box in self.boxes)
        return [f"boxes: {names}"]


def table(lines: list[Line]) -> list[str]:
    """Makespan, response, wait by band (mean / p99), swaps, use of each box; all times in seconds."""
    head = [
        "",
        "makespan s",
        "response s",
        *(f"wait {low}-{high} s" for low, high in BANDS),
        "swaps",
        "use of each box %",
    ]
    rows = [head]
    for line in lines:
        outcome = line.outcome
        rows.append(
            [
                line.label,
                f"{outcome.makespan_s:,.0f}",
                f"{outcome.mean_response_s:,.0f}",
                *(_waits(outcome, low, high) for low, high in BANDS),
                f"{outcome.swaps}",
                " ".join(f"{outcome.utilisation(box_id):.0%}".rstrip("%") for box_id in outcome.boxes),
            ]
        )
    shown = [nth for nth in range(len(head)) if nth == 0 or any(row[nth] != "-" for row in rows[1:])]
    widths = [max(len(row[nth]) for row in rows) for nth in range(len(head))]
    return [
        "  ".join(
            row[nth].ljust(widths[nth]) if nth in (0, len(head) - 1) else row[nth].rjust(widths[nth]) for nth in shown
        ).rstrip()
        for row in rows
    ]


def _waits(outcome: Outcome, lowest: int, highest: int) -> str:
    waits = outcome.waits_s(lowest, highest)
    return f"{sum(waits) / len(waits):,.0f} / {percentile(waits, 0.99):,.0f}" if waits else "-"
