"""JSON, times and durations with the bytes and the error texts of a Go server."""

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]

MAX_DURATION_NS = 2**63 - 1  # what Go makes of "for ever": 292 years
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UNIT_NS = {"ns": 1, "us": 10**3, "µs": 10**3, "μs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_DURATION = re.compile(r"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:ns|us|µs|μs|ms|s|m|h))+")
_DURATION_PART = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_HTML = str.maketrans({"<": r"\u003c", ">": r"\u003e", "&": r"\u0026", "\u2028": r"\u2028", "\u2029": r"\u2029"})
_KEY = "invalid character %s looking for beginning of object key string"
# What Go says where Python's parser says the left; %s is the character found.
_SYNTAX = {
    "Expecting property name enclosed in double quotes": _KEY,
    "Expecting value": "invalid character %s looking for beginning of value",
    "Expecting ':' delimiter": "invalid character %s after object key",
    "Expecting ',' delimiter": "invalid character %s after object key:value pair",
    "Illegal trailing comma before end of object": _KEY,
    "Illegal trailing comma before end of array": "invalid character %s looking for beginning of value",
}


class BadJson(ValueError):  # noqa: N818 - a peer's mistake with its text, not an error of ours
    """What cannot be decoded; the text is Go's."""


def encode(value: Mapping[str, object]) -> bytes:
    """Compact, in the order of insertion, HTML characters escaped as Go does by default."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).translate(_HTML).encode("utf-8", "replace")


def decode_object(body: bytes, go_type: str) -> dict[str, Json]:
    """The first JSON value of the body, which must be an object. Raises BadJson; `missing request body` if empty."""
    text = body.decode("utf-8", "replace").lstrip(" \t\r\n")
    if not text:
        raise BadJson("missing request body")
    try:
        value, _ = json.JSONDecoder().raw_decode(text)
    except json.JSONDecodeError as error:
        raise BadJson(_syntax_text(text, error)) from None
    except RecursionError:
        raise BadJson("exceeded max depth") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadJson(f"json: cannot unmarshal {json_kind(value)} into Go value of type api.{go_type}")
    return value


def json_kind(value: Json) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, str):
        return "string"
    if isinstance(value, list):
        return "array"
    return "object" if isinstance(value, dict) else "null"


def timestamp(unix_ns: int) -> str:
    """RFC 3339 with up to nine digits, trailing zeros dropped, in UTC."""
    seconds, nanos = divmod(unix_ns, 10**9)
    moment = _EPOCH + timedelta(seconds=seconds)
    fraction = f".{nanos:09d}".rstrip("0") if nanos else ""
    return moment.strftime("%Y-%m-%dT%H:%M:%S") + fraction + "Z"


def parse_duration_ns(text: str) -> int:
    """Go's time.ParseDuration. Raises BadJson with its text."""
    quoted = json.dumps(text, ensure_ascii=False)
    if text in ("0", "+0", "-0"):
        return 0
    if not _DURATION.fullmatch(text):
        number = re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([^\d.]*)", text)
        if number and not number[2]:
            raise BadJson(f"time: missing unit in duration {quoted}")
        if number:
            raise BadJson(f'time: unknown unit "{number[2]}" in duration {quoted}')
        raise BadJson(f"time: invalid duration {quoted}")
    total_ns = sum(round(float(amount) * _UNIT_NS[unit]) for amount, unit in _DURATION_PART.findall(text))
    return min(total_ns, MAX_DURATION_NS) * (-1 if text.startswith("-") else 1)


def _syntax_text(text: str, error: json.JSONDecodeError) -> str:
    if error.pos >= len(text) or error.msg.startswith("Unterminated string"):
        return "unexpected EOF"
    found = text[error.pos]
    if error.msg == "Expecting ',' delimiter" and text[: error.pos].count("[") > text[: error.pos].count("]"):
        return f"invalid character {_go_char(found)} after array element"
    template = _SYNTAX.get(error.msg, "invalid character %s in string literal")
    return template % _go_char(found)


def _go_char(character: str) -> str:
    return {"'": r"'\''", '"': "'\"'", "\n": r"'\n'", "\t": r"'\t'", "\r": r"'\r'"}.get(character, f"'{character}'")
