"""Who may import whom, which files have a place, and what each installation brings along."""

import os
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from support.house import ROOT, contracts, package_folders, pyproject

LINT = "from importlinter.cli import lint_imports_command; lint_imports_command()"
WEB_SERVERS = frozenset(
    {"aiohttp", "bottle", "cherrypy", "django", "fastapi", "flask", "granian", "gunicorn", "hypercorn", "sanic"}
    | {"starlette", "tornado", "twisted", "uvicorn", "waitress", "werkzeug"}
)
DATABASES = frozenset({"alembic", "sqlalchemy", "psycopg", "aiosqlite"})


def test_every_package_has_a_contract_that_places_all_its_files() -> None:
    placed = {
        container
        for contract in contracts()
        if contract["type"] == "layers" and contract.get("exhaustive")
        for container in contract["containers"]
    }
    root_packages = pyproject()["tool"]["importlinter"]["root_packages"]
    # A folder within a package may have a contract of its own beside it.
    assert {one for one in placed if "." not in one} == set(root_packages) == set(package_folders())


def test_every_package_is_built_linted_and_typed() -> None:
    tools = pyproject()["tool"]
    folders = {folder.parent.name for folder in package_folders().values()}
    assert folders == set(tools["hatch"]["build"]["dev-mode-dirs"])
    assert folders <= set(tools["ruff"]["src"])
    assert folders <= set(tools["mypy"]["files"])


def test_no_contract_is_broken() -> None:
    ran = _lint(ROOT, {})
    assert ran.returncode == 0, ran.stdout


def test_a_file_nobody_placed_and_an_impure_core_fail(tmp_path: Path) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for folder in package_folders().values():
        copy = tmp_path / folder.relative_to(ROOT)
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "broker/koubou_broker/stray.py").write_text("")
    with (tmp_path / "agent/koubou_agent/core/core.py").open("a") as core:
        core.write("\nimport time\n")
    copies = os.pathsep.join(str(tmp_path / folder.parent.name) for folder in package_folders().values())
    ran = _lint(tmp_path, {"PYTHONPATH": copies})
    assert ran.returncode == 1
    assert "stray" in ran.stdout
    assert "koubou_agent.core.core -> time" in ran.stdout


@pytest.mark.parametrize(
    ("extra", "forbidden"),
    [
        ("", DATABASES | WEB_SERVERS | {"pydantic", "requests"}),
        ("agent", DATABASES | WEB_SERVERS),
        ("broker", WEB_SERVERS),
    ],
)
def test_an_installation_brings_nothing_it_does_not_need(extra: str, forbidden: frozenset[str]) -> None:
    brought = _brought_by("koubou-system", frozenset({extra}))
    assert {"pyzmq", "msgpack", "pyyaml", "click"} <= brought
    assert not brought & forbidden


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("koubou_agent.__main__", {"sqlalchemy", "alembic", "sqlite3", *WEB_SERVERS}),
        ("koubou_broker.__main__", {"requests", *WEB_SERVERS}),
        ("koubou_client.client", {"sqlalchemy", "alembic", "requests", "pydantic", *WEB_SERVERS}),
        ("koubou_client.ctl.root", {"sqlalchemy", "alembic", "requests", "pydantic", "rich", "zmq", *WEB_SERVERS}),
    ],
)
def test_a_program_imports_nothing_it_does_not_need(module: str, forbidden: set[str]) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", f"import sys, {module}; print(*sys.modules)"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert not {name.partition(".")[0] for name in ran.stdout.split()} & forbidden


def _lint(folder: Path, environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", LINT, "--no-cache", "--config", str(folder / "pyproject.toml")],
        cwd=folder,
        env={**os.environ, "COLUMNS": "200", **environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def _brought_by(name: str, extras: frozenset[str]) -> set[str]:
    """Everything an installation draws in, by what the distributions here say of themselves."""
    brought: set[str] = set()
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [(name, extras)]
    while waiting:
        one = waiting.pop()
        if one in seen:
            continue
        seen.add(one)
        try:
            lines = requires(one[0]) or []
        except PackageNotFoundError:
            continue  # for another platform: its name is enough
        for requirement in map(Requirement, lines):
            wanted = [extra for extra in one[1] | {""} if _applies(requirement, extra)]
            if wanted:
                brought.add(canonicalize_name(requirement.name))
                waiting.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    return brought


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})
