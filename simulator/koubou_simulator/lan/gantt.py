"""A run as a picture: boxes as rows, time from left to right; one SVG file that needs nothing else."""

import math
from xml.sax.saxutils import escape, quoteattr

from koubou_simulator.lan.outcome import BANDS, BoxStory, Outcome, Span

_WIDTH, _LABELS, _RIGHT = 1_200, 190, 24  # pixels
_TOP, _LANE, _GAP, _AXIS = 92, 22, 12, 46
_TICKS_MOST = 11
_STEPS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1_800, 3_600, 7_200, 10_800, 21_600, 43_200, 86_400)
_LETTER_PX = 6.6  # about, of the legend
_NUMBERED_PX = 26  # a bar this wide has room for its task's number
# Told apart also by those who do not see red and green alike; strong enough on white and on black.
_COLOURS = ("#3b82c4", "#e0973a", "#3f9f7f", "#b565a7", "#8c8c3c", "#c4574e")
_BAND_COLOURS = ("#d9622b", "#3b82c4", "#6aa38f")  # of BANDS: the urgent ones stand out
_STYLE = """
  svg { font: 12px system-ui, sans-serif; background: #ffffff; }
  .ground { fill: #ffffff; } .text { fill: #1f2328; } .faint { fill: #59636e; } .grid { stroke: #d1d9e0; }
  .lane { fill: #f3f5f7; } .away { fill: #c9d1d9; opacity: 0.75; } .number {
    fill: #ffffff; font-size: 10px; paint-order: stroke; stroke: #1f2328; stroke-opacity: 0.55; stroke-width: 2px;
  }
  .load { fill: url(#hatch); stroke: #6e7781; stroke-width: 0.6; } .hatch { stroke: #6e7781; }
  .failed { stroke: #cf222e; stroke-width: 2; }
  .lost { fill-opacity: 0.45; stroke: #cf222e; stroke-width: 1.5; stroke-dasharray: 3 2; }
  .task { rx: 2px; }
  @media (prefers-color-scheme: dark) {
    svg { background: #0d1117; }
    .ground { fill: #0d1117; } .text { fill: #e6edf3; } .faint { fill: #9198a1; } .grid { stroke: #30363d; }
    .lane { fill: #161b22; } .away { fill: #3d444d; } .load, .hatch { stroke: #9198a1; }
    .failed, .lost { stroke: #ff7b72; }
  }
"""
_HATCH = """<defs>
<pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">
<line class="hatch" x1="0" y1="0" x2="0" y2="6" stroke-width="3"/></pattern>
</defs>"""


def draw(title: str, outcome: Outcome) -> str:
    """The chart as an XML document. Bars are coloured by model; where there is only one, by band of priority."""
    chart = _Chart(outcome)
    rows: list[str] = []
    top = float(_TOP)
    for box_id, story in outcome.boxes.items():
        rows += chart.row(box_id, story, top)
        top += _lanes(story) * _LANE + _GAP
    height = round(top + _AXIS)
    size = f'viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}"'
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label={quoteattr(title)}>',
        f"<style>{_STYLE}</style>",
        _HATCH,
        f'<rect class="ground" width="{_WIDTH}" height="{height}"/>',
        _text(16, 26, title, 'class="text" font-size="16" font-weight="600"'),
        *chart.legend(),
        *chart.axis(top),
        *rows,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


class _Chart:
    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome
        self._until_s = max(one.ended_s for one in outcome.jobs)
        self._scale = (_WIDTH - _LABELS - _RIGHT) / max(self._until_s, 1e-9)  # pixels a second
        models = sorted({one.job.model for one in outcome.jobs})
        self._colours = {name: _COLOURS[nth % len(_COLOURS)] for nth, name in enumerate(models)}
        if len(models) == 1:
            self._colours = {_band(low): colour for (low, _), colour in zip(BANDS, _BAND_COLOURS, strict=True)}

    def legend(self) -> list[str]:
        """What the colours mean, and the run in one line."""
        stories = self._outcome.boxes.values()
        spans = [span for story in stories for span in story.spans]
        used = {self._name(span) for span in spans}
        entries = [(f'fill="{colour}"', name) for name, colour in self._colours.items() if name in used]
        if any(story.loads for story in stories):
            entries.append(('class="load"', "loads a model"))
        if any(span.how == "failed" for span in spans):
            entries.append((f'class="failed" fill="{_COLOURS[0]}"', "failed"))
        if any(span.how == "lost" for span in spans):
            entries.append((f'class="lost" fill="{_COLOURS[0]}"', "lost with its box"))
        if any(story.away for story in stories):
            entries.append(('class="away"', "away"))
        lines: list[str] = []
        x = 16.0
        for look, name in entries:
            lines += [f'<rect {look} x="{x:.0f}" y="42" width="22" height="14"/>', _text(x + 28, 53, name)]
            x += 28 + _LETTER_PX * len(name) + 22
        outcome = self._outcome
        swaps = f"; {outcome.swaps} times a model was loaded in another one's place" if outcome.swaps else ""
        facts = f"{len(outcome.jobs):,} tasks in {_time(outcome.makespan_s)}{swaps}; %: how long the GPU worked"
        return [*lines, _text(16, 78, facts, 'class="faint"')]

    def axis(self, bottom: float) -> list[str]:
        """Time, at round numbers."""
        step_s = next((one for one in _STEPS_S if self._until_s / one <= _TICKS_MOST), self._until_s / _TICKS_MOST)
        lines: list[str] = []
        for nth in range(math.floor(self._until_s / step_s) + 1):
            x = self._x(nth * step_s)
            lines.append(f'<line class="grid" x1="{x:.1f}" y1="{_TOP - 4}" x2="{x:.1f}" y2="{bottom:.0f}"/>')
            lines.append(_text(x, bottom + 16, _time(nth * step_s), 'class="faint" text-anchor="middle"'))
        end = 'class="faint" text-anchor="end"'
        return [*lines, _text(_WIDTH - _RIGHT, bottom + 34, "time since the start", end)]

    def row(self, box_id: str, story: BoxStory, top: float) -> list[str]:
        """A box: one line a slot."""
        height = _lanes(story) * _LANE
        middle = top + height / 2 + 3
        facts = f"speed {story.spec.speed:g}, {self._outcome.utilisation(box_id):.0%}"
        lines = [_text(16, middle, box_id), _text(_LABELS - 10, middle, facts, 'class="faint" text-anchor="end"')]
        width = self._until_s * self._scale
        lines += [
            f'<rect class="lane" x="{_LABELS}" y="{top + lane * _LANE:.0f}" width="{width:.1f}" height="{_LANE - 3}"/>'
            for lane in range(_lanes(story))
        ]
        for from_s, until_s in story.away:
            lines += self._bar('class="away"', top, height, (from_s, until_s), "away")
        for load in story.loads:
            tip = f"loads {load.model}{f' in place of {load.displaced}' if load.displaced else ''}"
            lines += self._bar('class="load"', top, height, (load.from_s, load.until_s), tip)
        for span in story.spans:
            lines += self._attempt(span, top + span.lane * _LANE)
        return lines

    def _attempt(self, span: Span, top: float) -> list[str]:
        took_s = span.until_s - span.from_s
        tip = f"task {span.task_id}, {span.job.model}, priority {span.job.priority}: {span.how} after {_time(took_s)}"
        look = f'class="task {span.how}" fill="{self._colours[self._name(span)]}"'
        lines = self._bar(look, top, _LANE, (span.from_s, span.until_s), tip)
        if took_s * self._scale >= _NUMBERED_PX:
            middle = self._x(span.from_s + took_s / 2)
            lines.append(_text(middle, top + 13, str(span.task_id), 'class="number" text-anchor="middle"'))
        return lines

    def _bar(self, look: str, top: float, height: float, span_s: tuple[float, float], tip: str) -> list[str]:
        from_s, until_s = span_s[0], min(span_s[1], self._until_s)
        if until_s < from_s:
            return []  # it would begin when all is over
        # Half a pixel less than it took, so that what follows at once can be told from it.
        width = max(0.8, (until_s - from_s) * self._scale - 0.5)
        where = f'x="{self._x(from_s):.1f}" y="{top:.0f}" width="{width:.1f}" height="{height - 3:.0f}"'
        return [f"<rect {look} {where}><title>{escape(tip)}</title></rect>"]

    def _x(self, at_s: float) -> float:
        return _LABELS + at_s * self._scale

    def _name(self, span: Span) -> str:
        return span.job.model if span.job.model in self._colours else _band(span.job.priority)


def _band(priority: int) -> str:
    low, high = next(band for band in BANDS if band[0] <= priority <= band[1])
    return f"priority {low}-{high}"


def _text(x: float, y: float, text: str, look: str = 'class="text"') -> str:
    return f'<text x="{x:.1f}" y="{y:.0f}" {look}>{escape(text)}</text>'


def _lanes(story: BoxStory) -> int:
    return max(story.spec.slots, 1 + max((span.lane for span in story.spans), default=0))


def _time(seconds: float) -> str:
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"
