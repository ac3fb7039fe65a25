"""Values on the command line that click has no type for: durations, K=V pairs, options of a model."""

import json
import math
import re
from collections.abc import Sequence

import click

from koubou_common.errors import Code, KoubouError
from koubou_common.messages.values import Scalar

_UNIT_S = {"": 1, "s": 1, "m": 60, "h": 3_600, "d": 86_400}
_DURATION = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?)\s*(?P<unit>[smhd]?)")
_LONGEST_S = 10 * 365 * 86_400  # what a message may say


class Duration(click.ParamType[float]):
    """Seconds, or 90s, 10m, 1h, 2d."""

    name = "duration"

    def __init__(self, *, may_be_zero: bool = False) -> None:
        self._may_be_zero = may_be_zero

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The duration in seconds."""
        if isinstance(value, int | float):
            return float(value)
        found = _DURATION.fullmatch(str(value).strip().lower())
        seconds = float(found["number"]) * _UNIT_S[found["unit"]] if found else math.nan
        if not 0 <= seconds <= _LONGEST_S or (seconds == 0 and not self._may_be_zero):
            self.fail(f"{value!r} is no duration; write seconds, or 90s, 10m, 1h, 2d.", param, ctx)
        return seconds


def pairs_of(given: Sequence[str], what: str) -> dict[str, str]:
    """`K=V` arguments as a mapping; KoubouError (bad_input) for another form or a name given twice."""
    pairs: dict[str, str] = {}
    for text in given:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not key:
            raise KoubouError(Code.BAD_INPUT, f"{what} {text!r}: NAME=VALUE is expected", f"{what} NAME=VALUE")
        if key in pairs:
            raise KoubouError(Code.BAD_INPUT, f"{what} {key}: given twice", "give each name once")
        pairs[key] = value
    return pairs


def model_options_of(given: Sequence[str]) -> dict[str, Scalar | Sequence[str]]:
    """`--option K=V` arguments with the types that JSON gives the values; what is no JSON is text."""
    return {name: _typed(name, value) for name, value in pairs_of(given, "--option").items()}


def _typed(name: str, text: str) -> Scalar | Sequence[str]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = text
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return value
    if name == "stop":  # the one option that is a list: a single text is one stop
        return [text if not isinstance(value, str) else value]
    return value if isinstance(value, bool | int | float | str) else text
