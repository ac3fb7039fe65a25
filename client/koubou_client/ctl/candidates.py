"""Workers weighed for a task, as lines of text: who takes it, with which points, or why not."""

import textwrap
from collections.abc import Iterator, Sequence

from koubou_client.ctl.tables import display_width, shorten
from koubou_client.ctl.times import about
from koubou_common.messages.values import Candidate, ReasonCount

COLUMNS = 80  # what is printed here is read in narrow terminals too
_WORKER_COLUMNS = 24
_WHY_COLUMNS_LEAST = 30
_GAP = "  "
# What the policy names; other parts of a decision are shown beside the score.
_SCORE_PARTS = frozenset({"factor", "idle", "busy", "success", "capability"})


def candidate_lines(candidates: Sequence[Candidate]) -> Iterator[str]:
    """A table: worker, when it takes the task, its score, the parts of it or the reason."""
    grouped = has_groups([one for one in candidates if one.available])
    rows = [
        (shorten(one.worker_id, _WORKER_COLUMNS), _takes_it(one), _score(one), why(one, with_group=grouped))
        for one in candidates
    ]
    headers = ("WORKER", "TAKES IT", "SCORE", "WHY")
    widths = [max(display_width(row[column]) for row in (headers, *rows)) for column in range(3)]
    indent = sum(widths) + 3 * len(_GAP)
    for worker, takes, score, text in (headers, *rows):
        head = _GAP.join((_left(worker, widths[0]), _left(takes, widths[1]), score.rjust(widths[2])))
        lines = _wrapped(text, max(_WHY_COLUMNS_LEAST, COLUMNS - indent))
        yield f"{head}{_GAP}{lines[0]}".rstrip()
        for line in lines[1:]:
            yield " " * indent + line


def fact_lines(facts: Sequence[tuple[str, str]]) -> Iterator[str]:
    """`Name  value` lines, long values under themselves; what is empty is left out."""
    width = max((len(name) for name, _ in facts), default=0)
    for name, value in facts:
        if value:
            first, *more = _wrapped(value, COLUMNS - width - 2 * len(_GAP))
            yield f"{_GAP}{name:<{width}}{_GAP}{first}"
            for line in more:
                yield " " * (width + 2 * len(_GAP)) + line


def has_groups(candidates: Sequence[Candidate]) -> bool:
    """Whether the rule prefers some of these to others: then points decide only within a group."""
    return any(one.group for one in candidates)


def why(candidate: Candidate, *, with_group: bool = False) -> str:
    """What speaks for it, point by point; or why it does not get the task."""
    if not candidate.available:
        return candidate.reason or (candidate.code.text if candidate.code is not None else "")
    named = [f"{part.name} {part.points:+g}" for part in candidate.parts if part.name in _SCORE_PARTS]
    beside = [f"{part.name} {part.points:+g}" for part in candidate.parts if part.name not in _SCORE_PARTS]
    texts = [", ".join(named), f"beside it {', '.join(beside)}" if beside else ""]
    if with_group:
        texts.append(f"choice {candidate.group + 1} of the rule")
    if candidate.finish_s:
        texts.append(f"about {about(candidate.finish_s)} expected")
    return "; ".join(text for text in texts if text)


def counts_text(reasons: Sequence[ReasonCount]) -> str:
    """`busy (3), paused (1)`."""
    return ", ".join(f"{one.reason.text} ({one.count})" for one in reasons)


def start_text(starts_in_s: float | None, basis: str) -> str:
    """When a task would begin, never more exactly than it is known; empty: an older broker told nothing."""
    if starts_in_s is None and not basis:
        return ""
    when = "nobody can tell" if starts_in_s is None else f"in about {about(starts_in_s)}" if starts_in_s else "at once"
    return f"{when}: {basis}" if basis else when


def _takes_it(candidate: Candidate) -> str:
    if candidate.available:
        return "now"
    if candidate.eligible:
        return "later" if candidate.code is not None and candidate.code.is_plan else "when free"
    return "never" if candidate.code is not None and candidate.code.is_lasting else "not now"


def _score(candidate: Candidate) -> str:
    return f"{candidate.score:.1f}" if candidate.eligible else "-"


def _left(text: str, width: int) -> str:
    return text + " " * (width - display_width(text))


def _wrapped(text: str, columns: int) -> list[str]:
    return textwrap.wrap(" ".join(text.split()), columns) or [""]
