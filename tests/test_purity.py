"""What decides is pure: held module by module against the short list of what a pure module may import."""

import ast
from pathlib import Path

import pytest

from support.house import Import, contracts, imports_of, module_files

ALL = frozenset({"*"})
# Of the standard library, all that has no state, no clock and no outside; else the names that have none.
ALLOWED: dict[str, frozenset[str]] = {
    "bisect": ALL,
    "collections": ALL,
    "collections.abc": ALL,
    "dataclasses": ALL,
    "difflib": ALL,
    "enum": ALL,
    "functools": frozenset({"lru_cache"}),  # what it keeps changes no answer
    "hashlib": ALL,
    "heapq": ALL,
    "itertools": ALL,
    "logging": frozenset({"", "DEBUG", "INFO", "WARNING", "ERROR"}),
    "math": ALL,
    "pathlib": frozenset({"PurePosixPath"}),
    "re": ALL,
    "typing": ALL,
    "unicodedata": ALL,
}
LOG_LEVELS = ALLOWED["logging"]
# hash() and id() differ from run to run: decisions made by them could not be repeated.
FORBIDDEN_CALLS = frozenset(
    {"__import__", "breakpoint", "compile", "eval", "exec", "hash", "id", "input", "open", "print"}
)


def pure_modules() -> dict[str, Path]:
    """What the contract in pyproject.toml names, with everything below it."""
    [contract] = [contract for contract in contracts() if contract.get("id") == "pure"]
    found: dict[str, Path] = {}
    for name in contract["source_modules"]:
        files = module_files(name)
        assert files, f"pyproject.toml names {name}, and there is no such module"
        found |= files
    return found


PURE = pure_modules()


def test_both_cores_and_the_messages_are_among_the_pure() -> None:
    assert {"koubou_broker.core.core", "koubou_agent.core.core", "koubou_common.messages.values"} <= PURE.keys()


@pytest.mark.parametrize("module", sorted(PURE))
def test_a_pure_module_imports_only_what_is_pure(module: str) -> None:
    faults = [fault for one in imports_of(module, PURE[module]) if (fault := _fault(one))]
    assert not faults, f"{PURE[module].name}: " + "; ".join(faults)


@pytest.mark.parametrize("module", sorted(PURE))
def test_a_pure_module_calls_nothing_that_reaches_outside(module: str) -> None:
    tree = ast.parse(PURE[module].read_text(encoding="utf-8"))
    assert not [f"line {line}: {what}" for line, what in _reaches_outside(tree)]


@pytest.mark.parametrize(
    ("source", "is_pure"),
    [
        ("import time", False),
        ("from pathlib import Path", False),
        ("from pathlib import PurePosixPath", True),
        ("def late():\n    import socket", False),
        ("import koubou_broker.store", False),
        ("from koubou_broker import task", True),
        ("from koubou_broker import store", False),
        ("from .state import Base", True),
        ("from ..server import Server", False),
    ],
)
def test_the_check_sees_an_impure_import(source: str, is_pure: bool, tmp_path: Path) -> None:
    file = tmp_path / "planted.py"
    file.write_text(source)
    found = [fault for one in imports_of("koubou_broker.core.planted", file) if (fault := _fault(one))]
    assert (found == []) == is_pure, found


@pytest.mark.parametrize("source", ["open('x')", "x = hash(y)", "import logging\nlogging.getLogger('x')"])
def test_the_check_sees_an_impure_call(source: str) -> None:
    assert list(_reaches_outside(ast.parse(source)))


def _fault(one: Import) -> str:
    if one.module.startswith("koubou_"):
        is_pure = one.module in PURE or f"{one.module}.{one.name}" in PURE
        return "" if is_pure else f"line {one.line}: {one.module} is not pure"
    names = ALLOWED.get(one.module, frozenset())
    if names == ALL or one.name in names:
        return ""
    return f"line {one.line}: {one.module} {one.name}".rstrip()


def _reaches_outside(tree: ast.Module) -> list[tuple[int, str]]:
    found = []
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="logging"), attr=name) if name not in LOG_LEVELS:
                found.append((node.lineno, f"logging.{name}"))
            case ast.Call(func=ast.Name(id=name)) if name in FORBIDDEN_CALLS:
                found.append((node.lineno, f"{name}()"))
    return found
