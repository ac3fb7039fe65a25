"""The repository as tests of its form see it: its root, its pyproject.toml, its modules."""

import ast
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Import:
    """One import statement's name: the module, and what is taken from it ("" for the module itself)."""

    module: str
    name: str
    line: int


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def contracts() -> list[dict[str, Any]]:
    """Of import-linter."""
    found: list[dict[str, Any]] = pyproject()["tool"]["importlinter"]["contracts"]
    return found


def package_folders() -> dict[str, Path]:
    """Every import package of the distribution with its folder."""
    folders = [ROOT / folder for folder in pyproject()["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]]
    return {folder.name: folder for folder in folders}


def module_files(name: str) -> dict[str, Path]:
    """A module's file, or those of a package with all below it; nothing where there is no such module."""
    top, _, rest = name.partition(".")
    place = package_folders()[top].joinpath(*rest.split(".")) if rest else package_folders()[top]
    if not place.is_dir():
        return {name: place.with_suffix(".py")} if place.with_suffix(".py").is_file() else {}
    found = {}
    for file in sorted(place.rglob("*.py")):
        parts = [name, *file.relative_to(place).with_suffix("").parts]
        found[".".join(parts).removesuffix(".__init__")] = file
    return found


def imports_of(module: str, file: Path) -> Iterator[Import]:
    """Every import in a file, wherever it stands."""
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, "", node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] + "." if node.level else ""
            source = (base + (node.module or "")).rstrip(".")
            yield from (Import(source, alias.name, node.lineno) for alias in node.names)
