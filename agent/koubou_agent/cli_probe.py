"""Run by the interpreter of gemini-repo-cli's own environment: says what is installed there, as JSON.

Standard library alone; the CLI is read, not imported, unless `--import` asks for that (0.7 s, not 0.1 s).
"""

from __future__ import annotations

import ast
import importlib
import json
import sys
from contextlib import redirect_stdout
from importlib import metadata, util
from io import StringIO
from pathlib import Path

_DISTRIBUTION = "gemini-repo-cli"
_LIBRARIES = ("ollama", "google.genai")


def main(arguments: list[str]) -> None:
    """Print one JSON object; `cli_env.check` judges it."""
    folder = _package_folder()
    found: dict[str, object] = {
        "python": list(sys.version_info[:3]),
        "folder": str(folder) if folder else None,
        "missing": [name for name in _LIBRARIES if not _is_there(name)],
        "version": None,
        "commit": None,
        "simulated": False,
        "main": False,
        "generate": None,
        "import_error": None,
    }
    if folder:
        constants = _constants(folder / "__init__.py")
        found["simulated"] = constants.get("__simulated__") is True
        found["version"] = constants.get("__version__")
        found["main"] = _arguments(folder / "cli.py", None, "main") is not None
        found["generate"] = _arguments(folder / "ollama_api.py", "OllamaRepoAPI", "generate_content")
        if not found["simulated"]:
            found.update(_installed())
        if "--import" in arguments:
            found["import_error"] = _import_error()
    print(json.dumps(found))


def _package_folder() -> Path | None:
    spec = util.find_spec("gemini_repo")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def _is_there(name: str) -> bool:
    try:
        return util.find_spec(name) is not None
    except ImportError:  # the parent package is missing
        return False


def _installed() -> dict[str, object]:
    try:
        distribution = metadata.distribution(_DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return {}
    origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    return {"version": distribution.version, "commit": origin.get("vcs_info", {}).get("commit_id")}


def _constants(path: Path) -> dict[str, object]:
    return {
        target.id: statement.value.value
        for statement in _statements(path)
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant)
        for target in statement.targets
        if isinstance(target, ast.Name)
    }


def _arguments(path: Path, class_name: str | None, function: str) -> list[str] | None:
    """The argument names of a function, or None where there is no such function."""
    statements = _statements(path)
    if class_name is not None:
        statements = [
            inner
            for outer in statements
            if isinstance(outer, ast.ClassDef) and outer.name == class_name
            for inner in outer.body
        ]
    for statement in statements:
        if isinstance(statement, ast.FunctionDef) and statement.name == function:
            return [argument.arg for argument in statement.args.args]
    return None


def _statements(path: Path) -> list[ast.stmt]:
    try:
        return ast.parse(path.read_text(encoding="utf-8")).body
    except (OSError, SyntaxError, ValueError):
        return []


def _import_error() -> str | None:
    said = StringIO()
    try:
        with redirect_stdout(said):
            importlib.import_module("gemini_repo.cli")
    except BaseException as error:  # a missing library makes the CLI call exit(): SystemExit
        return said.getvalue().strip() or f"{type(error).__name__}: {error}"
    return None
