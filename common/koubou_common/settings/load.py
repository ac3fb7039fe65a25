"""From YAML files to settings models, with every fault at its place; and back, for people to look at."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from koubou_common.errors import ConfigError
from koubou_common.settings.base import SettingsModel
from koubou_common.settings.wording import problems_of
from koubou_common.yaml_marks import Document, Problem, Route, dotted, parse_document, read_document

Model = TypeVar("Model", bound=SettingsModel)

DEFAULT = "default"


def load(path: Path, model: type[Model], *, missing_ok: bool = False) -> Model:
    """Read settings; ConfigError lists every fault. A file that is missing may stand for all defaults."""
    if missing_ok and not path.exists():
        return _made(parse_document(b"", str(path)), model)
    return _made(read_document(path), model)


def loads(text: str, model: type[Model], file: str = "<text>") -> Model:
    """Settings out of text; `file` names it in errors."""
    return _made(parse_document(text.encode(), file), model)


def check(path: Path, model: type[SettingsModel]) -> list[Problem]:
    """Every fault of a file in the order of its lines; ConfigError if it cannot be read at all."""
    return _validate(read_document(path), model)[1]


def schema(model: type[SettingsModel]) -> dict[str, object]:
    """The JSON schema, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **model.model_json_schema()}


@dataclass(frozen=True, slots=True)
class Shown:
    """One setting as it is in force."""

    path: str
    value: object  # plain data: text, number, true or false, None, a list or an empty mapping
    origin: str  # "workers.yaml:12", or "default"


def show(path: Path, model: type[SettingsModel], *, missing_ok: bool = False) -> tuple[Shown, ...]:
    """Every setting with its value and where that comes from; ConfigError as in `load`."""
    missing = missing_ok and not path.exists()
    document = parse_document(b"", str(path)) if missing else read_document(path)
    made = _made(document, model)
    return tuple(Shown(dotted(route), _plain(value), _origin(document, route)) for route, value in _leaves(made, ()))


def _made(document: Document, model: type[Model]) -> Model:
    made, problems = _validate(document, model)
    if problems:
        raise ConfigError("\n".join(str(problem) for problem in problems))
    assert made is not None
    return made


def _validate(document: Document, model: type[Model]) -> tuple[Model | None, list[Problem]]:
    problems = list(document.problems)
    made = None
    # Where YAML itself is broken there is nothing to look at, and every setting would be called missing.
    if document.data is None and problems:
        return None, problems
    written = {} if document.data is None else document.data
    if not isinstance(written, dict):
        problems.append(document.problem((), "should hold settings", "an example: log_level: info"))
        return None, problems
    try:
        made = model.model_validate(written)
    except ValidationError as error:
        problems += problems_of(error, document, model)
    return made, sorted(problems, key=lambda problem: (problem.line, problem.column))


def _leaves(value: object, route: Route) -> Iterator[tuple[Route, object]]:
    if isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _leaves(getattr(value, name), (*route, name))
    elif isinstance(value, tuple) and any(isinstance(item, BaseModel) for item in value):
        for number, item in enumerate(value):
            yield from _leaves(item, (*route, number))
    elif isinstance(value, Mapping) and value:
        for name, item in value.items():
            yield from _leaves(item, (*route, name))
    else:
        yield route, value


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _origin(document: Document, route: Route) -> str:
    place = document.values.get(route)
    # A key with nothing after it is written down, yet its default holds.
    if place is None or (document.texts.get(route) == "" and _at(document.data, route) is None):
        return DEFAULT
    return f"{document.file}:{place.line}"


def _at(data: object, route: Route) -> object:
    for part in route:
        if isinstance(data, Mapping):
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int):
            data = data[part]
    return data
