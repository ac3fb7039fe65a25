"""Plain tables that line up, Japanese names too."""

import unicodedata
from collections.abc import Sequence

from koubou_client.ctl.output import clean

_GAP = "  "
_DIGEST_CHARS = 12  # of a model's version, as `ollama list` shows it


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A borderless table; columns whose values are all numbers are aligned to the right."""
    cells = [[_one_line(value) for value in row] for row in rows]
    widths = [
        max(display_width(text) for text in (header, *(row[column] for row in cells)))
        for column, header in enumerate(headers)
    ]
    numeric = [
        bool(rows) and all(isinstance(row[column], int | float) for row in rows) for column in range(len(headers))
    ]
    lines = [_line(headers, widths, numeric), *(_line(row, widths, numeric) for row in cells)]
    return "\n".join(lines)


def display_width(text: str) -> int:
    """Columns that a terminal gives the text: East Asian wide characters take two."""
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )


def shorten(text: str, columns: int) -> str:
    """`text` in at most so many columns, an ellipsis at its end where something was left out."""
    if display_width(text) <= columns:
        return text
    kept = ""
    width = 1  # the ellipsis
    for character in text:
        width += display_width(character)
        if width > columns:
            break
        kept += character
    return kept + "…"


def short_digest(digest: str) -> str:
    """A model's version, as long as people compare it."""
    return digest.removeprefix("sha256:")[:_DIGEST_CHARS]


def _one_line(value: object) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return clean(text).replace("\n", " ").replace("\t", " ")


def _line(values: Sequence[str], widths: Sequence[int], numeric: Sequence[bool]) -> str:
    padded = []
    for value, width, right in zip(values, widths, numeric, strict=True):
        space = " " * (width - display_width(value))
        padded.append(space + value if right else value + space)
    return _GAP.join(padded).rstrip()
