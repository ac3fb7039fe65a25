"""koubou-ctl doctor: what it finds on this host and over the wire, each with the way to mend it."""

import dataclasses
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from koubou_client.ctl import doctor_broker, doctor_host
from koubou_client.ctl.findings import Check, Finding
from koubou_common import __version__
from koubou_common.home import Home
from koubou_common.messages import Status
from koubou_common.messages.values import AlertView, Role, WorkerMode, WorkerView
from koubou_common.settings import BrokerSettings, WorkersFile, loads
from support.broker_play import BROKER, WORKERS, BrokerPlay, a_broker
from support.ctl import Ctl

NOW_MS = 1_800_000_000_000
WORKER = WorkerView(
    worker_id="lan_001",
    location="remote",
    connected=True,
    mode=WorkerMode.ACTIVE,
    slots=2,
    running=0,
    default_model="tiny",
    models=("tiny",),
    loaded=(),
    performance_factor=0.5,
    success_rate=1.0,
    succeeded=0,
    failed=0,
    last_seen_ms=NOW_MS - 60_000,
    latency_ms=1,
    cooling_down=False,
    ollama_version="0.24.0",
    issue="",
    address="",
    agent="",
)
STATUS = Status("r", __version__, "mika", Role.CLIENT, NOW_MS - 5_000, NOW_MS, (), 0, (WORKER,), ())


def found(checks: Iterable[Check], name: str) -> Check:
    named = [check for check in checks if check.name == name]
    assert len(named) == 1, named
    return named[0]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[BrokerPlay]:
    home = Home(tmp_path / "main")
    home.create()
    home.config_file("broker").write_text(BROKER)
    home.config_file("workers").write_text(WORKERS.replace("local_workers", "remote_workers"))
    with a_broker(home.root) as broker:
        yield broker


def test_a_sound_workshop_has_no_fault(broker: BrokerPlay) -> None:
    ctl = Ctl(broker.home.root)
    with broker.agent("lan_001"):
        ran = ctl("doctor", "--json")
    checks = {check["check"]: check["finding"] for check in ran.data["checks"]}
    assert ran.code == 0
    assert ran.data["ok"] is True
    sound = ("home", "key files", "settings", "disk", "database", "key", "broker", "version", "clock", "workers")
    assert [checks[name] for name in sound] == ["ok"] * len(sound)
    assert checks["network"] == "warn"  # remote workers, but on the loopback alone
    assert checks["worker lan_002"] == "warn"


def test_every_line_says_how_it_stands_and_faults_how_to_mend_them(broker: BrokerPlay) -> None:
    broker.home.root.chmod(0o755)
    ran = Ctl(broker.home.root)("doctor")
    assert ran.code == 1  # nobody is there who could work
    lines = ran.out.splitlines()
    assert f"warn  home: {broker.home.root} is open to other accounts (mode 0755)" in lines
    assert f"      fix: chmod 700 {broker.home.root}" in lines
    assert "fail  workers: 0 of 2 can work" in lines
    assert lines[-1].startswith("1 fault, ")


def test_a_host_without_anything_is_told_both_ways_in(tmp_path: Path) -> None:
    ran = Ctl(tmp_path / "none")("doctor", "--json")
    assert ran.code == 1
    fixes = " ".join(check["fix"] or "" for check in ran.data["checks"])
    assert "koubou-ctl join TOKEN" in fixes
    assert "koubou-ctl up" in fixes


def test_a_broker_that_is_down_is_one_fault(broker: BrokerPlay, tmp_path: Path) -> None:
    token = Ctl(broker.home.root)("keys", "invite", "mika", "-q").raw
    mika = Ctl(tmp_path / "mika")
    assert mika("join", "-", stdin=token).code == 0
    broker.server.stop()
    ran = mika("--connect-timeout", "1", "doctor", "--json")
    assert ran.code == 1
    faults = [check for check in ran.data["checks"] if check["finding"] == "fail"]
    assert [check["check"] for check in faults] == ["broker"]
    assert faults[0]["fix"]


def test_settings_at_fault_are_quoted_from_the_broker_itself(broker: BrokerPlay) -> None:
    broker.home.config_file("broker").write_text("lease: 3\n")
    check = found(doctor_host.look_at_host(broker.home), "settings")
    assert check.finding is Finding.FAIL
    assert "broker.yaml:1:1: lease: unknown setting" in check.detail


def test_a_key_that_others_may_read_is_a_fault_with_its_command(broker: BrokerPlay) -> None:
    key = broker.home.key_file("operator")
    key.chmod(0o644)
    check = found(doctor_host.look_at_host(broker.home), "key files")
    assert check.finding is Finding.FAIL
    assert f"chmod 600 {key}" in check.fix


def test_a_damaged_database_is_a_fault(tmp_path: Path) -> None:
    home = Home(tmp_path / "main")
    with a_broker(home.root):
        pass
    path = home.state / "koubou.db"
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4_096)
        file.write(os.urandom(size - 4_096))
    check = found(doctor_host.look_at_host(home), "database")
    assert check.finding is Finding.FAIL
    assert "docs/operating.md" in check.fix


def test_what_an_agents_own_doctor_finds_is_passed_on(broker: BrokerPlay) -> None:
    broker.home.config_file("workers").write_text(WORKERS)
    checks = list(doctor_host.look_at_host(broker.home))
    cli = found(checks, "agent lan_001, gemini-repo-cli")
    assert cli.finding is Finding.FAIL
    assert "koubou-agent setup-cli" in cli.fix
    assert found(checks, "agent lan_002, settings").finding is Finding.OK


def test_a_box_with_an_agent_alone_is_not_asked_for_a_persons_key(tmp_path: Path) -> None:
    home = Home(tmp_path / "box")
    home.create()
    home.config_file("agent").write_text("worker_id: lan_001\n")
    [check] = doctor_broker.look_at_broker(home, 1.0)
    assert (check.name, check.finding) == ("client", Finding.OK)
    checks = list(doctor_host.look_at_host(home))
    assert any(check.name.startswith("agent") and check.finding is Finding.FAIL for check in checks)


@pytest.mark.parametrize(
    ("skew_ms", "finding", "said"),
    [(0, Finding.OK, "agrees"), (-60_000, Finding.WARN, "1 m behind"), (7_000, Finding.WARN, "7 s ahead of")],
)
def test_clocks_that_differ_are_told(skew_ms: int, finding: Finding, said: str) -> None:
    check = doctor_broker._clock(dataclasses.replace(STATUS, now_ms=NOW_MS + skew_ms), NOW_MS, 10.0)
    assert check.finding is finding
    assert said in check.detail


def test_another_version_is_a_warning() -> None:
    assert doctor_broker._version(dataclasses.replace(STATUS, version="0.0.9")).finding is Finding.WARN
    assert doctor_broker._version(STATUS).finding is Finding.OK


@pytest.mark.parametrize(
    ("changed", "said", "fix"),
    [
        ({"connected": False}, "away for 1 m", "koubou-agent doctor"),
        ({"connected": False, "last_seen_ms": 0}, "never been seen", "workers invite lan_001"),
        ({"issue": "model missing"}, "model missing", "koubou-agent doctor --worker-id lan_001"),
        ({"mode": WorkerMode.PAUSED}, "is paused", "workers resume lan_001"),
        ({"cooling_down": True}, "several failures", "workers show lan_001"),
    ],
)
def test_what_keeps_a_worker_from_work_is_a_warning(changed: dict[str, object], said: str, fix: str) -> None:
    worker = dataclasses.replace(WORKER, **changed)  # type: ignore[arg-type]  # fields of different types
    status = dataclasses.replace(STATUS, workers=(worker,))
    check = found(doctor_broker._workers(status), "worker lan_001")
    assert check.finding is Finding.WARN
    assert said in check.detail
    assert fix in check.fix


def test_a_workshop_without_workers_is_a_fault() -> None:
    [check] = doctor_broker._workers(dataclasses.replace(STATUS, workers=()))
    assert (check.finding, "koubou-ctl up" in check.fix) == (Finding.FAIL, True)


def test_alerts_of_the_broker_are_passed_on() -> None:
    alert = AlertView("disk", "the disk is nearly full", NOW_MS - 120_000)
    [check] = doctor_broker._alerts(dataclasses.replace(STATUS, alerts=(alert,)))
    assert (check.finding, check.detail) == (Finding.WARN, "the disk is nearly full (for 2 m)")


@pytest.mark.parametrize(
    ("bind", "expected"),
    [
        ("tcp://127.0.0.1:5570", Finding.WARN),
        ("tcp://192.168.1.10:5570", Finding.OK),
    ],
)
def test_the_network_is_looked_at_where_boxes_are_awaited(bind: str, expected: Finding) -> None:
    broker = loads(f"bind: '{bind}'\n", BrokerSettings)
    workers = loads("workers: {remote_workers: [{worker_id: lan_001, model: tiny}]}", WorkersFile)
    [check] = doctor_host._network(broker, workers)
    assert check.finding is expected
    assert ("5570" in check.detail) is (expected is Finding.OK)


def test_an_ollama_driven_from_here_is_called_open() -> None:
    workers = loads("workers: {remote_workers: [{worker_id: lan_001, model: tiny, agent: here}]}", WorkersFile)
    [check] = doctor_host._network(loads("allow_remote_ollama: true", BrokerSettings), workers)
    assert (check.name, check.finding) == ("exposure", Finding.WARN)


def test_a_disk_below_the_brokers_reserve_is_a_fault(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.create()
    assert doctor_host._disk(home, 1).finding is Finding.OK
    assert doctor_host._disk(home, 1 << 60).finding is Finding.FAIL


def test_the_file_system_of_a_path_is_known_where_the_kernel_tells(tmp_path: Path) -> None:
    assert doctor_host._file_system(tmp_path) or not Path("/proc/mounts").exists()
    if Path("/proc/self").exists():
        assert doctor_host._file_system(Path("/proc/self/status")) == "proc"


def test_a_long_look_at_the_database_is_given_up_without_an_alarm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(tmp_path / "main")
    with a_broker(home.root):
        pass
    monkeypatch.setattr(doctor_host, "QUICK_CHECK_S", -1.0)
    monkeypatch.setattr(doctor_host, "_PROGRESS_STEPS", 1)
    began_s = time.monotonic()
    check = doctor_host._quick_check(home.state / "koubou.db")
    assert check.finding is Finding.OK
    assert "no damage in the first" in check.detail
    assert time.monotonic() - began_s < 5
