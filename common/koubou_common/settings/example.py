"""Settings files as text: every setting with its sentence and its value, from the models themselves."""

import json
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TypeGuard

from pydantic import BaseModel

from koubou_common.settings.base import SettingsModel, default_of
from koubou_common.settings.workers import WorkersFile

_COMMENT_COLUMNS = 100
_NOTES = "Every setting is here with its default or an example; what you leave out keeps its default."
_KIB, _MIB, _GIB = 1 << 10, 1 << 20, 1 << 30

# The workers and rules of the requirement: one box with everything, two on the network at half its speed.
EXAMPLE_WORKERS: Mapping[str, object] = MappingProxyType(
    {
        "workers": {
            "local_workers": [
                {
                    "worker_id": "local_001",
                    "worker_type": "local",
                    "model": "gpt-oss:20b",
                    "server_host": "http://localhost:11434",
                    "performance_factor": 1.0,
                    "max_concurrent_tasks": 2,
                }
            ],
            "remote_workers": [
                {
                    "worker_id": f"remote_lan_00{number}",
                    "worker_type": "remote",
                    "model": "gpt-oss:20b",
                    "remote_host": host,
                    "remote_port": 11434,
                    "performance_factor": 0.5,
                    "max_concurrent_tasks": 1,
                    "network_timeout": 300,
                }
                for number, host in ((1, "192.168.1.100"), (2, "192.168.1.101"))
            ],
        },
        "routing_policy": {
            "strategy": "priority_based",
            "rules": [
                {
                    "priority_range": [8, 10],
                    "preferred_workers": ["local"],
                    "reason": "高優先度タスクは高速なローカル処理",
                },
                {
                    "priority_range": [5, 7],
                    "preferred_workers": ["local", "remote"],
                    "reason": "中優先度は負荷分散",
                },
                {
                    "priority_range": [1, 4],
                    "preferred_workers": ["remote"],
                    "reason": "低優先度はリモート優先でローカルリソース温存",
                },
            ],
        },
    }
)


def example(model: type[SettingsModel], values: Mapping[str, object] | None = None) -> str:
    """A file that loads: `values` where given (for workers.yaml the requirement's), defaults elsewhere."""
    if values is None:
        values = EXAMPLE_WORKERS if model is WorkersFile else {}
    made = model.model_validate(dict(values))
    head = f"# {model.__doc__ or ''}".replace("The whole of ", "Settings of Koubou: ")
    return "\n".join([head, *_comment(_NOTES, ""), *_block(made, values, "", every=True)]) + "\n"


def _block(made: BaseModel, given: Mapping[str, object], indent: str, *, every: bool) -> Iterator[str]:
    """The lines of one model, what was given first; not `every` setting: only that, without sentences."""
    known = type(made).model_fields
    for name in [*given, *(name for name in known if every and name not in given)]:
        value, written = getattr(made, name), given.get(name)
        if every:
            if not indent:
                yield ""
            yield from _comment(_sentence(made, name), indent)
        if isinstance(value, BaseModel):
            yield f"{indent}{name}:"
            inner = written if isinstance(written, Mapping) else {}
            yield from _block(value, inner, f"{indent}  ", every=every)
        elif _is_list_of_models(value):
            yield f"{indent}{name}:"
            yield from _entries(value, written if isinstance(written, list) else [], f"{indent}  ")
        elif isinstance(value, Mapping) and value:
            yield f"{indent}{name}:"
            yield from (f"{indent}  {key}: {_scalar(part)}" for key, part in value.items())
        else:
            yield f"{indent}{name}: {_scalar(value)}{_size(name, value)}"


def _entries(items: tuple[BaseModel, ...], given: list[Mapping[str, object]], indent: str) -> Iterator[str]:
    """A list's entries: the first with every setting explained, the others as short as they were given."""
    for number, (item, written) in enumerate(zip(items, given, strict=True)):
        if number:
            yield ""
        lines = list(_block(item, written, f"{indent}  ", every=not number))
        first = next(n for n, line in enumerate(lines) if not line.lstrip().startswith("#"))
        # The sentence of the first setting stands above the dash.
        yield from (line.removeprefix("  ") for line in lines[:first])
        yield f"{indent}- {lines[first].lstrip()}"
        yield from lines[first + 1 :]


def _is_list_of_models(value: object) -> TypeGuard[tuple[BaseModel, ...]]:
    return isinstance(value, tuple) and bool(value) and isinstance(value[0], BaseModel)


def _sentence(made: BaseModel, name: str) -> str:
    """The description, and the default where the value differs from it."""
    found, value = type(made).model_fields[name], getattr(made, name)
    description = found.description or ""
    if found.is_required() or found.default_factory_takes_validated_data:
        return description
    if isinstance(value, BaseModel) or _is_list_of_models(value) or value == default_of(found):
        return description
    return f"{description} Default: {_scalar(default_of(found))}."


def _comment(text: str, indent: str) -> list[str]:
    width = _COMMENT_COLUMNS - len(indent)
    return [f"{indent}# {line}" for line in textwrap.wrap(text, width, break_on_hyphens=False)]


def _scalar(value: object) -> str:
    if isinstance(value, float) and value.is_integer() and value >= 2:
        return str(int(value))  # 300 seconds, as people write it
    if isinstance(value, tuple):
        return "[" + ", ".join(_scalar(item) for item in value) + "]"
    if isinstance(value, Path):
        return json.dumps(value.as_posix(), ensure_ascii=False)
    return json.dumps(value, ensure_ascii=False)


def _size(name: str, value: object) -> str:
    if not name.endswith("_bytes") or not isinstance(value, int):
        return ""
    for unit, size in (("GiB", _GIB), ("MiB", _MIB), ("KiB", _KIB)):
        if value >= size and value % size == 0:
            return f"  # {value // size} {unit}"
    return ""
