"""`koubou-ctl config`: settings checked, shown with their origin, and described for editors."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from koubou_client.ctl.output import OK, Output
from koubou_client.ctl.tables import shorten, table
from koubou_common.errors import ConfigError

if TYPE_CHECKING:
    from koubou_common.settings.base import SettingsModel

_KINDS = ("broker", "workers", "agent", "client")
_CLIENT = "client"  # plain: a person's laptop has no pydantic
_VALUE_COLUMNS = 60


@dataclass(frozen=True, slots=True)
class _Setting:
    """One setting as it is in force."""

    path: str
    value: object
    origin: str  # "workers.yaml:12", or "default"


_kind_option = click.option(
    "--as", "kind", type=click.Choice(_KINDS), help="What FILE is, where its name does not begin with it."
)


@click.group()
def command() -> None:
    """Check and show settings; print their JSON schema."""


@command.command()
@click.argument("files", metavar="FILE...", nargs=-1, type=click.Path(path_type=Path))
@_kind_option
@click.pass_obj
def check(output: Output, files: Sequence[Path], kind: str | None) -> int:
    """Look for every fault in settings files (default: all of Koubou's folder); exit 8 if there is one."""
    asked = [(kind or _kind_of(path), path) for path in files] or _files_of_home(output)
    problems = [text for one, path in asked for text in _problems(one, path)]
    if problems:
        raise ConfigError("\n".join(problems))
    if output.as_json:
        output.data([{"file": str(path), "kind": one} for one, path in asked])
    elif not asked:
        output.say("there are no settings files: everything has its default")
    for one, path in [] if output.as_json else asked:
        output.say(f"{path}: good ({one} settings)")
    return OK


@command.command()
@click.argument("files", metavar="FILE...", nargs=-1, type=click.Path(path_type=Path))
@_kind_option
@click.pass_obj
def show(output: Output, files: Sequence[Path], kind: str | None) -> int:
    """Every setting in force, and the file and line that it comes from."""
    asked = [(kind or _kind_of(path), path) for path in files] or _files_of_home(output)
    documents = [(one, path, _shown(one, path)) for one, path in asked]
    if output.as_json:
        output.data(
            [
                {
                    "file": str(path),
                    "kind": one,
                    "settings": [{"setting": s.path, "value": s.value, "from": s.origin} for s in settings],
                }
                for one, path, settings in documents
            ]
        )
        return OK
    if not documents:
        output.say("there are no settings files: everything has its default")
    for number, (one, path, settings) in enumerate(documents):
        output.say(f"{chr(10) if number else ''}{one} settings, {path}")
        rows = [(s.path, shorten(_plain(s.value), _VALUE_COLUMNS), s.origin.rpartition("/")[2]) for s in settings]
        output.say(table(("SETTING", "VALUE", "FROM"), rows))
    return OK


@command.command()
@click.argument("kind", type=click.Choice([one for one in _KINDS if one != _CLIENT]))
@click.pass_obj
def schema(output: Output, kind: str) -> int:
    """Print the JSON schema of a settings file, for an editor that completes and checks."""
    from koubou_common.settings import schema as schema_of  # noqa: PLC0415 - pydantic, which --help must not pay for

    described = schema_of(_model(kind))
    if output.as_json:
        output.data(described)
    else:
        click.echo(json.dumps(described, indent=2, ensure_ascii=False))
    return OK


def _files_of_home(output: Output) -> list[tuple[str, Path]]:
    """The settings files that are there, agents' own included."""
    from koubou_client.where import home_of  # noqa: PLC0415 - pulls in ZeroMQ, which --help must not pay for

    folder = home_of(os.environ, output.home).config
    found = [(kind, folder / f"{kind}.yaml") for kind in _KINDS]
    found += [("agent", path) for path in sorted(folder.glob("agent-*.yaml"))]
    return [(kind, path) for kind, path in found if path.exists()]


def _kind_of(path: Path) -> str:
    for kind in _KINDS:
        if path.stem.startswith(kind):
            return kind
    raise ConfigError(
        f"{path}: whose settings are these? The name begins with none of {', '.join(_KINDS)}",
        "say it: --as broker, workers, agent or client",
    )


def _problems(kind: str, path: Path) -> list[str]:
    """Every fault, as a person reads it; a file that cannot be read at all is one."""
    try:
        if kind == _CLIENT:
            from koubou_common.client_settings import check_client_settings  # noqa: PLC0415 - YAML, only where used

            return [str(problem) for problem in check_client_settings(path)]
        model = _model(kind)
        from koubou_common.settings import check as check_file  # noqa: PLC0415 - pydantic, as above

        return [str(problem) for problem in check_file(path, model)]
    except ConfigError as error:
        return [f"{error.message}\n  hint: {error.hint}" if error.hint else error.message]


def _shown(kind: str, path: Path) -> list[_Setting]:
    if kind == _CLIENT:
        return _shown_client(path)
    model = _model(kind)
    from koubou_common.settings import show as show_file  # noqa: PLC0415 - pydantic, which --help must not pay for

    return [_Setting(one.path, one.value, one.origin) for one in show_file(path, model)]


def _shown_client(path: Path) -> list[_Setting]:
    from koubou_common.client_settings import load_client_settings  # noqa: PLC0415 - YAML, only where used
    from koubou_common.yaml_marks import read_document  # noqa: PLC0415 - the same

    settings = load_client_settings(path, missing_ok=False)
    places = read_document(path).values
    written = {
        "broker_addresses": list(settings.broker_addresses),
        "broker_public_key": settings.broker_public_key,
        "key_file": str(settings.key_file) if settings.key_file else None,
    }
    return [
        _Setting(name, value, f"{path}:{places[(name,)].line}" if (name,) in places else "default")
        for name, value in written.items()
    ]


def _model(kind: str) -> "type[SettingsModel]":
    try:
        from koubou_common import settings  # noqa: PLC0415 - pydantic, which --help must not pay for
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{kind}.yaml cannot be looked at here: {error.name} is not installed",
            "do it where the broker or the agent is installed: pip install 'koubou-system[broker]'",
        ) from error
    models: dict[str, type[SettingsModel]] = {
        "broker": settings.BrokerSettings,
        "workers": settings.WorkersFile,
        "agent": settings.AgentSettings,
    }
    return models[kind]


def _plain(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ", ".join(_plain(item) for item in value) or "-"
    return str(value)
