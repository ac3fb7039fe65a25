"""The units of systemd/: known to systemd without a word, hardened, and fit for what the programs do."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from koubou_agent.agent import STOP_GRACE_S
from koubou_client.where import SERVICE_HOME

SYSTEMD = Path(__file__).parents[2] / "systemd"
UNITS = sorted(SYSTEMD.glob("*.service"))
EXPOSURE_TENTHS_MOST = 20
TIMEOUT_S = 60

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed (Debian: apt-get install systemd)"
)


def analyze(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["systemd-analyze", *arguments],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        env={"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "LC_ALL": "C.UTF-8", "SYSTEMD_COLORS": "0"},
    )


def with_a_program_that_is_there(unit: Path, folder: Path) -> Path:
    """A copy whose program exists on any machine: verify looks for it."""
    copy = folder / unit.name
    copy.write_text(re.sub(r"(?m)^ExecStart=.*$", "ExecStart=/bin/true", unit.read_text()))
    return copy


def values(unit: Path, name: str) -> list[str]:
    return re.findall(rf"(?m)^{name}=(.*)$", unit.read_text())


def seconds(unit: Path, name: str) -> int:
    [value] = values(unit, name)
    return int(value)


def test_both_services_are_there() -> None:
    assert [unit.name for unit in UNITS] == ["koubou-agent.service", "koubou-agent@.service", "koubou-broker.service"]


@needs_systemd
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_has_nothing_to_say_about_a_unit(unit: Path, tmp_path: Path) -> None:
    ran = analyze("verify", "--man=no", str(with_a_program_that_is_there(unit, tmp_path)))
    # An unknown setting is only a warning: any word is a failure.
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


@needs_systemd
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_is_exposed_as_little_as_promised(unit: Path, tmp_path: Path) -> None:
    copy = with_a_program_that_is_there(unit, tmp_path)
    ran = analyze("security", "--offline=true", f"--threshold={EXPOSURE_TENTHS_MOST}", "--no-pager", str(copy))
    assert ran.returncode == 0, ran.stdout + ran.stderr


@needs_systemd
def test_a_bare_unit_would_fail_that_check(tmp_path: Path) -> None:
    bare = tmp_path / "bare.service"
    bare.write_text("[Service]\nExecStart=/bin/true\nSystemCalFilter=x\n")
    assert analyze("security", "--offline=true", f"--threshold={EXPOSURE_TENTHS_MOST}", str(bare)).returncode != 0
    assert "SystemCalFilter" in analyze("verify", "--man=no", str(bare)).stderr


@pytest.mark.skipif(shutil.which("systemd-sysusers") is None, reason="systemd-sysusers is not installed")
def test_the_accounts_can_be_made() -> None:
    command = ["systemd-sysusers", "--dry-run", str(SYSTEMD / "sysusers.d" / "koubou.conf")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert ran.returncode == 0, ran.stderr
    for unit in UNITS:
        [user] = values(unit, "User")
        assert re.search(rf"(?m)^u +{user} ", (SYSTEMD / "sysusers.d" / "koubou.conf").read_text())


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_what_libzmq_aborts_without_is_allowed(unit: Path) -> None:
    [families] = values(unit, "RestrictAddressFamilies")
    assert {"AF_INET", "AF_INET6", "AF_UNIX", "AF_NETLINK"} == set(families.split())
    filters = values(unit, "SystemCallFilter")
    taken = max(number for number, text in enumerate(filters) if text.startswith("~") and "@resources" in text)
    assert any("sched_setscheduler" in text.split() for text in filters[taken + 1 :])


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_service_keeps_its_state_to_itself_and_comes_back(unit: Path) -> None:
    [folder] = values(unit, "StateDirectory")
    assert values(unit, "Environment") == [f"KOUBOU_HOME=/var/lib/{folder}"]
    assert values(unit, "StateDirectoryMode") == ["0700"]
    assert values(unit, "Type") == ["notify"]
    assert values(unit, "Restart") == ["always"]
    assert seconds(unit, "LimitNOFILE") == 65_536
    assert values(unit, "IPAddressDeny") == ["any"]
    [program] = values(unit, "ExecStart")
    assert program.startswith("/opt/koubou/bin/")  # a program below /home or /root could not be started


def test_the_broker_lives_where_root_looks_for_it() -> None:
    assert values(SYSTEMD / "koubou-broker.service", "Environment") == [f"KOUBOU_HOME={SERVICE_HOME}"]


@pytest.mark.parametrize("name", ["koubou-agent.service", "koubou-agent@.service"])
def test_an_agent_gets_the_time_it_needs_to_hand_back_its_tasks(name: str) -> None:
    [program] = values(SYSTEMD / name, "ExecStart")
    grace_s = float(program.partition("--stop-timeout ")[2])
    assert grace_s == STOP_GRACE_S
    assert seconds(SYSTEMD / name, "TimeoutStopSec") >= grace_s + 15


@pytest.mark.parametrize("name", ["koubou-agent.service", "koubou-agent@.service"])
def test_stopping_an_agent_signals_the_agent_alone(name: str) -> None:
    # By default the whole group gets SIGTERM: the runs that are to finish would be ended.
    assert values(SYSTEMD / name, "KillMode") == ["mixed"]
