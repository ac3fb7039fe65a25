"""`koubou-ctl --help` answers at once: held by what it imports, not by a clock."""

import json
import subprocess
import sys

import pytest

from koubou_client.ctl.root import COMMANDS

pytestmark = pytest.mark.e2e

HEAVY = ("sqlalchemy", "alembic", "requests", "urllib3", "pydantic", "pydantic_core", "rich", "zmq", "msgpack", "yaml")
_PROBE = """
import contextlib, io, json, sys
from koubou_client.ctl.root import run
with contextlib.redirect_stdout(io.StringIO()) as said:
    try:
        run(sys.argv[1:])
    except SystemExit as end:
        code = end.code
print(json.dumps({"code": code, "said": said.getvalue(), "modules": sorted(sys.modules)}))
"""


def ran_with_modules(*arguments: str) -> tuple[int, str, set[str]]:
    ran = subprocess.run(
        [sys.executable, "-c", _PROBE, *arguments], capture_output=True, text=True, timeout=30, check=True
    )
    told = json.loads(ran.stdout)
    return told["code"], told["said"], {name.partition(".")[0] for name in told["modules"]}


def test_the_help_imports_nothing_heavy() -> None:
    code, said, modules = ran_with_modules("--help")
    assert code == 0
    assert all(command in said for command in COMMANDS)
    assert modules.isdisjoint(HEAVY), modules.intersection(HEAVY)
    assert {"koubou_broker", "koubou_agent", "koubou_simulator"}.isdisjoint(modules)


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "demo"])
def test_the_help_of_a_command_imports_no_server_library(command: str) -> None:
    code, said, modules = ran_with_modules(command, "--help")
    assert code == 0
    assert "Usage: koubou-ctl" in said
    assert modules.isdisjoint({"sqlalchemy", "alembic", "requests", "pydantic", "rich"})


def test_the_help_of_the_demo_is_the_demos_own() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "koubou_client.ctl", "demo", "--help"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert "--ollama URL" in ran.stdout
