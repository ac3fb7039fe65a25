"""The settings as tables for docs/configuration.md, from the models themselves.

`python -m koubou_common.settings.reference docs/configuration.md` brings the page up to date.
"""

import json
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

from pydantic import BaseModel

from koubou_common.settings.agent import AgentSettings
from koubou_common.settings.base import default_of
from koubou_common.settings.broker import BrokerSettings
from koubou_common.settings.routing import Rule
from koubou_common.settings.workers import LocalWorker, RemoteWorker, WorkersFile

BEGIN = "<!-- tables made by: python -m koubou_common.settings.reference docs/configuration.md -->"
END = "<!-- end of tables -->"

_Row = tuple[str, str, str]  # setting, default, meaning

# Heading, model, and the model whose settings it shares: those are told there.
_TABLES: tuple[tuple[str, type[BaseModel], type[BaseModel] | None], ...] = (
    ("## broker.yaml", BrokerSettings, None),
    ("## workers.yaml", WorkersFile, None),
    ("### An entry of `workers.local_workers`", LocalWorker, None),
    ("### An entry of `workers.remote_workers`: as a local one without `server_host`, and", RemoteWorker, LocalWorker),
    ("### An entry of `routing_policy.rules`", Rule, None),
    ("## agent.yaml", AgentSettings, None),
)


def tables() -> str:
    """Every setting of every file: name, default, meaning."""
    parts = []
    for heading, model, shared in _TABLES:
        told = set(_rows(shared)) if shared else set()
        rows = [f"| `{path}` | {default} | {meaning} |" for path, default, meaning in _rows(model, told)]
        parts.append("\n".join([heading, "", "| setting | default | meaning |", "|---|---|---|", *rows, ""]))
    return "\n".join(parts)


def updated(page: str) -> str:
    """The page with its tables as they should be; ValueError where it has no place for them."""
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page lacks the lines {BEGIN!r} and {END!r}")
    return f"{head}{BEGIN}\n\n{tables()}\n{END}{tail}"


def _rows(model: type[BaseModel], without: Collection[_Row] = (), prefix: str = "") -> Iterator[_Row]:
    for name, field in model.model_fields.items():
        path = f"{prefix}{name}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _rows(field.annotation, without, f"{path}.")
            continue
        if field.is_required():
            default = "required"
        elif field.default_factory_takes_validated_data:
            default = "see meaning"
        else:
            default = f"`{_shown(default_of(field))}`"
        row = (path, default, (field.description or "").replace("|", "\\|"))
        if row not in without:
            yield row


def _shown(value: object) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, Path):
        return value.as_posix()
    if isinstance(value, tuple):
        return json.dumps(list(value))
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def _main() -> None:
    path = Path(sys.argv[1])
    path.write_text(updated(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    _main()
