"""What the service manager is told, over a real datagram socket."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from koubou_common.notify import sd_notify, watchdog_interval_s

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="systemd needs AF_UNIX")


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as door:
        door.bind(str(tmp_path / "notify"))
        door.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield door


def test_the_manager_gets_the_text(manager: socket.socket) -> None:
    assert sd_notify("READY=1")
    assert manager.recv(100) == b"READY=1"


def test_without_a_manager_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not sd_notify("READY=1")


def test_a_manager_that_is_gone_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    assert not sd_notify("READY=1")


@pytest.mark.parametrize(
    ("allowed", "pid", "interval_s"),
    [("30000000", "", 15.0), ("30000000", str(os.getpid()), 15.0), ("30000000", "1", None), ("", "", None)],
    ids=["no pid", "our pid", "another's pid", "no watchdog"],  # the same in every process that runs tests
)
def test_pings_come_twice_as_often_as_the_watchdog_wants(
    monkeypatch: pytest.MonkeyPatch, allowed: str, pid: str, interval_s: float | None
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", allowed)
    monkeypatch.setenv("WATCHDOG_PID", pid)
    assert watchdog_interval_s() == interval_s
