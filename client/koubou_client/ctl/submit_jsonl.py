"""Tasks as lines of JSON: every line is checked before any is submitted, all faults are told at once."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from koubou_client.inputs import InputLimits
from koubou_client.layout import lay_out
from koubou_client.outputs import check_out_path, digest_of
from koubou_client.tasks import TaskDraft, draft_task
from koubou_common.did_you_mean import closest
from koubou_common.errors import Code, KoubouError
from koubou_common.messages.limits import BATCH_TASKS

_FAULTS_SHOWN = 20  # enough to see what is wrong; a wrong generator makes thousands


@dataclass(frozen=True, slots=True)
class Line:
    """A task and the line it stands on."""

    number: int
    draft: TaskDraft


class _FaultError(Exception):
    """What is wrong with a line, in a person's words."""


def read_drafts(
    data: bytes,
    *,
    name: str,
    root: Path,
    limits: InputLimits,
    defaults: Mapping[str, Any],
    allow_secrets: bool = False,
    force: bool = False,
) -> list[Line]:
    """The tasks of a JSONL file; KoubouError (bad_input) lists the first faults with their lines."""
    reader = _Reader(root, limits, defaults, allow_secrets=allow_secrets, force=force)
    lines: list[Line] = []
    faults: list[str] = []
    keep_order: set[int] = set()
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            draft, keeps_order = reader.draft(number, line)
            if keeps_order:
                keep_order.add(len(lines))
            lines.append(Line(number, draft))
        except _FaultError as fault:
            faults.append(f"{name}:{number}: {fault}")
        except KoubouError as error:
            faults.append(f"{name}:{number}: {error.message}" + (f" ({error.hint})" if error.hint else ""))
    refuse_faults(faults, f"{len(faults)} of {len(faults) + len(lines)} lines have faults", "mend these lines")
    if not lines:
        raise KoubouError(Code.BAD_INPUT, f"{name}: holds no task", 'a line looks like {"prompt": "…"}')
    if len(lines) > BATCH_TASKS:
        raise KoubouError(
            Code.TOO_LARGE,
            f"{name}: {len(lines)} tasks, at most {BATCH_TASKS} are allowed in one submission",
            "split the file",
        )
    laid_out = lay_out([line.draft for line in lines], keep_order)
    return [replace(line, draft=draft) for line, draft in zip(lines, laid_out, strict=True)]


def refuse_faults(faults: Sequence[str], summary: str, remedy: str) -> None:
    """Raise KoubouError (bad_input) with the first of the faults, if there are any."""
    if not faults:
        return
    more = len(faults) - _FAULTS_SHOWN
    shown = [*faults[:_FAULTS_SHOWN], *([f"… and {more} more"] if more > 0 else [])]
    raise KoubouError(Code.BAD_INPUT, "\n".join([summary, *shown]), f"nothing was submitted; {remedy} and submit again")


class _Reader:
    """Reads lines one by one; knows what earlier lines have taken."""

    def __init__(
        self, root: Path, limits: InputLimits, defaults: Mapping[str, Any], *, allow_secrets: bool, force: bool
    ) -> None:
        self._root = root
        self._limits = limits
        self._defaults = defaults
        self._allow_secrets = allow_secrets
        self._force = force
        self._custom_ids: dict[str, int] = {}
        self._outs: dict[str, int] = {}
        self._bodies: dict[bytes, bytes] = {}  # a file that a thousand lines name is held once

    def draft(self, number: int, line: bytes) -> tuple[TaskDraft, bool]:
        """The task on a line, and whether its files must stay in the order given."""
        given = _checked(_parsed(line))
        keeps_order = given.pop("keep_order", False)
        out_path, out_digest = self._out(number, given.pop("out", ""))
        self._take(self._custom_ids, number, given.get("custom_id", ""), "custom_id")
        wanted = {**self._defaults, **given}
        for part in ("options", "labels"):  # a line adds to the defaults of the command line
            if part in self._defaults and part in given:
                wanted[part] = {**self._defaults[part], **given[part]}
        draft = draft_task(
            wanted.pop("prompt"),
            root=self._root,
            limits=self._limits,
            allow_secrets=self._allow_secrets,
            out_path=out_path,
            out_digest=out_digest,
            **wanted,
        )
        held = {sha256: self._bodies.setdefault(sha256, data) for sha256, data in draft.bodies.items()}
        return replace(draft, bodies=held), keeps_order

    def _out(self, number: int, out: str) -> tuple[str, str]:
        if not out:
            return "", ""
        name = check_out_path(out, self._root)
        self._take(self._outs, number, name, "out")
        digest = digest_of(self._root, name)
        if digest and not self._force:
            raise _FaultError(f"{name}: exists already (replace it with --force, or choose another path)")
        return name, digest

    @staticmethod
    def _take(taken: dict[str, int], number: int, value: str, what: str) -> None:
        if value and (first := taken.setdefault(value, number)) != number:
            raise _FaultError(f'{what} "{value}": line {first} has the same')


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _FaultError(f"not UTF-8 (byte {error.start + 1} of the line)") from error
    try:
        value = json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise _FaultError(f"not JSON: {error.msg} (column {error.colno})") from error
    except (RecursionError, ValueError) as error:  # nested too deep; a number of thousands of digits
        raise _FaultError(f"not JSON that can be read: {error}") from error
    if not isinstance(value, dict):
        raise _FaultError('one object a line is expected: {"prompt": "…"}')
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        raise _FaultError(f'field "{double}" given twice')
    return fields


def _no_constant(word: str) -> Any:
    raise _FaultError(f"{word} is no JSON number")


def _checked(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields under the names that `draft_task` knows, each of the right type."""
    given: dict[str, Any] = {}
    for name, value in fields.items():
        field = _FIELDS.get(name)
        if field is None:
            near = closest(name, _FIELDS)
            hint = f'did you mean "{near}"?' if near else f"known are: {', '.join(_FIELDS)}"
            raise _FaultError(f'field "{name}" unknown; {hint}')
        if value is None:
            continue
        if not field.fits(value):
            raise _FaultError(f'field "{name}": {field.expected} is expected, not {json.dumps(value)[:60]}')
        given[field.argument] = value
    if "prompt" not in given:
        raise _FaultError('field "prompt" is missing')
    return given


@dataclass(frozen=True, slots=True)
class _Field:
    """A field of a line: what it must be, and which argument of `draft_task` it becomes."""

    argument: str
    fits: Callable[[Any], bool]
    expected: str


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_map(value: Any) -> bool:
    return isinstance(value, dict)


def _is_text_map(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())


_FIELDS: Mapping[str, _Field] = {
    "custom_id": _Field("custom_id", _is_text, "text"),
    "prompt": _Field("prompt", _is_text, "text"),
    "files": _Field("files", _is_texts, "a list of paths"),
    "target": _Field("target", _is_text, "a path"),
    "out": _Field("out", _is_text, "a path"),
    "model": _Field("model", _is_text, "text"),
    "priority": _Field("priority", lambda value: _is_whole(value) or _is_text(value), "1 to 10"),
    "type": _Field("task_type", _is_text, "text"),
    "repo": _Field("repo", _is_text, "text"),
    "worker": _Field("worker", _is_text, "text"),
    "labels": _Field("labels", _is_text_map, "an object of texts"),
    "capabilities": _Field("capabilities", _is_texts, "a list of words"),
    "same_digest": _Field("same_digest", _is_bool, "true or false"),
    "options": _Field("options", _is_map, "an object"),
    "min_context": _Field("min_context", lambda value: _is_whole(value) and value >= 0, "a whole number"),
    "timeout": _Field("timeout_s", _is_positive, "a number of seconds"),
    "deadline": _Field("deadline_s", _is_positive, "a number of seconds"),
    "queue_timeout": _Field("queue_timeout_s", _is_positive, "a number of seconds"),
    "max_attempts": _Field("max_attempts", lambda value: _is_whole(value) and 1 <= value <= 20, "1 to 20"),
    "strict_output": _Field("strict_output", _is_bool, "true or false"),
    "use_cache": _Field("use_cache", _is_bool, "true or false"),
    "keep_order": _Field("keep_order", _is_bool, "true or false"),
}
