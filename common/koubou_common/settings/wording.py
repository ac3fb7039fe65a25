"""What pydantic found, in a person's words and at its place in the file."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from koubou_common.did_you_mean import did_you_mean
from koubou_common.settings.base import FAULT, SettingsModel, default_of
from koubou_common.yaml_marks import Document, Problem, Route, dotted

_SHOWN_CHARS_MAX = 60  # of a wrong value repeated in a message

_PLAIN: Mapping[str, str] = {
    "missing": "is required",
    "extra_forbidden": "unknown setting",
    "string_type": "should be text",
    "int_type": "should be a whole number",
    "int_from_float": "should be a whole number",
    "float_type": "should be a number",
    "finite_number": "should be a finite number",
    "bool_type": "should be true or false",
    "tuple_type": "should be a list",
    "list_type": "should be a list",
    "dict_type": "should be settings of its own, indented below it",
    "model_type": "should be settings of its own, indented below it",
    "model_attributes_type": "should be settings of its own, indented below it",
    "is_instance_of": "should be a path",
    "path_type": "should be a path",
    "greater_than": "should be greater than {gt}",
    "greater_than_equal": "should be at least {ge}",
    "less_than": "should be less than {lt}",
    "less_than_equal": "should be at most {le}",
    "literal_error": "should be {expected}",
    "too_short": "should have at least {min_length} entries",
    "too_long": "should have at most {max_length} entries",
    "string_too_long": "should have at most {max_length} characters",
}
# These say where the fault is by themselves; the value is the whole block, or nothing.
_WITHOUT_VALUE = {"missing", "extra_forbidden", "too_short", "too_long", "string_too_long"}


def problems_of(error: ValidationError, document: Document, model: type[SettingsModel]) -> Iterator[Problem]:
    """Every fault pydantic found, once each."""
    seen: set[Problem] = set()
    for detail in error.errors(include_url=False):
        # A default made from another field is not made when that one is at fault: no fault of its own.
        if detail["type"] == "default_factory_not_called":
            continue
        problem = _problem(detail, document, model)
        if problem not in seen:
            seen.add(problem)
            yield problem


def _problem(detail: ErrorDetails, document: Document, model: type[SettingsModel]) -> Problem:
    kind, context = detail["type"], detail.get("ctx", {})
    route = _written_route(detail["loc"], document, missing=kind == "missing")
    if kind == FAULT:
        message, hint = str(context["message"]), str(context["hint"])
        return document.problem(route, message, hint)
    message = _message(kind, context, detail["msg"])
    if kind == "extra_forbidden":
        return document.problem(route, message, _where_it_belongs(model, route), at_key=True)
    if kind not in _WITHOUT_VALUE:
        message += _got(detail["input"])
    return document.problem(route, message, _hint(kind, detail, document, route), at_key=kind == "missing")


def _message(kind: str, context: Mapping[str, Any], otherwise: str) -> str:
    if kind == "too_short" and context["min_length"] == 1:
        return "should not be empty"
    shown = {name: f"{value:g}" if isinstance(value, float) else value for name, value in context.items()}
    return _PLAIN[kind].format(**shown) if kind in _PLAIN else otherwise


def _written_route(loc: tuple[int | str, ...], document: Document, *, missing: bool) -> Route:
    """The route without steps that only the model has: `bind: X` is `bind.0` to it."""
    route: Route = tuple(loc)
    while len(route) > 1 and route not in document.values and isinstance(route[-1], int) and not missing:
        route = route[:-1]
    return route


def _got(value: object) -> str:
    if isinstance(value, Mapping | list | tuple):
        return ""
    shown = "nothing" if value is None else "true" if value is True else "false" if value is False else repr(value)
    return f" (got {shown if len(shown) <= _SHOWN_CHARS_MAX else shown[:_SHOWN_CHARS_MAX] + '...'})"


def _hint(kind: str, detail: ErrorDetails, document: Document, route: Route) -> str:
    value, text = detail["input"], document.texts.get(route, "")
    if kind == "string_type" and text and not isinstance(value, Mapping | list):
        return f'put it in quotes: "{text}"'
    if kind in {"int_type", "float_type"} and isinstance(value, str) and re.fullmatch(r"[0-9.]+", value):
        return f"write it without quotes: {value}"
    if kind == "bool_type" and isinstance(value, str) and value.lower() in {"true", "false"}:
        return f"write it without quotes: {value.lower()}"
    if kind == "tuple_type" and isinstance(value, str):
        return f'an example: ["{value}"]'
    if kind == "literal_error" and isinstance(value, str):
        return did_you_mean(value, re.findall(r"'([^']*)'", str(detail.get("ctx", {}).get("expected", ""))))
    return ""


def _where_it_belongs(model: type[SettingsModel], route: Route) -> str:
    word = str(route[-1])
    here = _model_at(model, route[:-1])
    for start in (here, model):
        homes = {dotted(home) for home in _homes(start, word, ())} if start else set()
        if len(homes) == 1:
            home = homes.pop()
            return f"it belongs under `{home}`" if home else "it belongs at the left margin, not indented"
    names = here.model_fields if here else {}
    return did_you_mean(word, names) or f"known here: {', '.join(names)}"


def _model_at(model: type[BaseModel], route: Route) -> type[BaseModel] | None:
    current: type[BaseModel] | None = model
    for part in route:
        if isinstance(part, int):
            continue
        found = current.model_fields.get(part) if current else None
        current = next(_models_in(found.annotation), None) if found else None
    return current


def _homes(model: type[BaseModel], word: str, route: Route) -> Iterator[Route]:
    """Where in the tree of models a setting of this name has its place."""
    if word in model.model_fields:
        yield route
    for name, found in model.model_fields.items():
        default = default_of(found)
        if isinstance(default, Mapping) and word in default:
            yield (*route, name)
        for inner in _models_in(found.annotation):
            yield from _homes(inner, word, (*route, name))


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    # Any: an annotation is whatever typing makes of it.
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    else:
        for part in get_args(annotation):
            yield from _models_in(part)
