"""koubou-ctl config: every fault at its place, every setting with its origin, schemas for editors."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from koubou_common.client_settings import ClientSettings
from support.ctl import Ctl

SHIPPED = Path(__file__).parents[2] / "config"
FAULTY = """workers:
  local_workers:
    - worker_id: here
      modell: tiny
      max_concurrent_tasks: 0
"""


@pytest.fixture
def ctl(tmp_path: Path) -> Ctl:
    """With the settings as they are shipped."""
    folder = tmp_path / "home" / "config"
    shutil.copytree(SHIPPED, folder)
    (folder / "client.yaml").write_text(ClientSettings(("tcp://main:5570",)).to_yaml())
    return Ctl(tmp_path / "home")


def test_what_is_shipped_is_good(ctl: Ctl) -> None:
    ran = ctl("config", "check")
    assert ran.code == 0
    assert [line.split(": ")[1] for line in ran.out.splitlines()] == [
        "good (broker settings)",
        "good (workers settings)",
        "good (agent settings)",
        "good (client settings)",
    ]
    assert {one["kind"] for one in ctl("config", "check", "--json").data} == {"broker", "workers", "agent", "client"}


def test_every_fault_of_every_file_is_told_at_once_with_exit_8(ctl: Ctl) -> None:
    folder = ctl.home / "config"
    (folder / "workers.yaml").write_text(FAULTY)
    (folder / "agent-lan_001.yaml").write_text("ollama_parallel: many\n")
    (folder / "client.yaml").write_text("broker_adresses: tcp://main:5570\n")
    ran = ctl("config", "check")
    assert ran.code == 8
    assert f"{folder}/workers.yaml:4:7: workers.local_workers.0.modell: unknown setting" in ran.err
    assert "did you mean 'model'?" in ran.err
    assert "workers.yaml:5:29: workers.local_workers.0.max_concurrent_tasks" in ran.err
    assert "agent-lan_001.yaml:1:18: ollama_parallel" in ran.err
    assert "did you mean 'broker_addresses'?" in ran.err
    assert ran.out == ""
    document = ctl("config", "check", "--json")
    assert (document.code, document.error["code"]) == (8, "bad_configuration")


def test_a_single_file_is_known_by_its_name_or_by_what_is_said(ctl: Ctl, tmp_path: Path) -> None:
    strange = tmp_path / "mine.yaml"
    strange.write_text("log_level: loud\n")
    assert "--as" in ctl("config", "check", str(strange), "--json").error["hint"]
    ran = ctl("config", "check", "--as", "broker", str(strange))
    assert ran.code == 8
    assert "mine.yaml:1:12: log_level" in ran.err
    assert ctl("config", "check", str(ctl.home / "config" / "broker.yaml")).code == 0


def test_a_file_that_cannot_be_read_is_a_fault_of_its_own(ctl: Ctl, tmp_path: Path) -> None:
    ran = ctl("config", "check", str(tmp_path / "broker.yaml"), str(SHIPPED / "agent.yaml"))
    assert ran.code == 8
    assert "no such file" in ran.err


def test_a_home_without_settings_has_defaults(tmp_path: Path) -> None:
    assert "default" in Ctl(tmp_path)("config", "check").out
    assert Ctl(tmp_path)("config", "show", "--json").data == []


def test_settings_are_shown_with_the_line_they_come_from(ctl: Ctl) -> None:
    path = ctl.home / "config" / "broker.yaml"
    path.write_text("lease_s: 60\n\nlimits:\n  files: 10\n")
    rows = {line.split()[0]: line.split()[1:] for line in ctl("config", "show", str(path)).out.splitlines() if line}
    assert rows["lease_s"] == ["60.0", "broker.yaml:1"]
    assert rows["limits.files"] == ["10", "broker.yaml:4"]
    assert rows["heartbeat_s"] == ["5.0", "default"]
    shown = ctl("config", "show", str(path), "--json").data[0]
    settings = {one["setting"]: (one["value"], one["from"]) for one in shown["settings"]}
    assert settings["limits.files"] == (10, f"{path}:4")
    assert settings["advertise"] == ([], "default")


def test_a_persons_settings_are_shown_too(ctl: Ctl) -> None:
    shown = ctl("config", "show", str(ctl.home / "config" / "client.yaml"), "--json").data[0]["settings"]
    assert shown[0]["value"] == ["tcp://main:5570"]
    assert shown[0]["from"].endswith("client.yaml:3")


@pytest.mark.parametrize("kind", ["broker", "workers", "agent"])
def test_a_schema_is_a_document_of_its_own(ctl: Ctl, kind: str) -> None:
    schema = json.loads(ctl("config", "schema", kind).out)
    assert schema["$schema"].startswith("https://json-schema.org/")
    assert schema["properties"]
    assert ctl("config", "schema", kind, "--json").data == schema


def test_a_laptop_without_pydantic_checks_its_own_settings(ctl: Ctl) -> None:
    program = "import sys; sys.modules['pydantic'] = None\nfrom koubou_client.ctl.__main__ import main; main()"
    client = ctl.home / "config" / "client.yaml"

    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-c", program, "--home", str(ctl.home), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert run("config", "check", str(client)).returncode == 0
    assert run("config", "show", str(client)).returncode == 0
    ran = run("config", "check", str(ctl.home / "config" / "broker.yaml"))
    assert ran.returncode == 8
    assert "koubou-system[broker]" in ran.stderr
