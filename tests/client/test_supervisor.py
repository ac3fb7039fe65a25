"""Children kept running: restarted, left down where a start would not help, stopped within a bound."""

import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from koubou_client.ctl import supervisor
from koubou_client.ctl.supervisor import Child, Supervisor
from support.waiting import eventually

OBEDIENT = "import time; print('up', flush=True); time.sleep(60)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + OBEDIENT


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(supervisor, "KILL_AFTER_S", 0.2)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def tended(said: list[str]) -> Iterator[Supervisor]:
    made = Supervisor(said.append)
    yield made
    for child in made.children:
        if child.process is not None:
            child.process.kill()
            child.process.wait()


def a_child(folder: Path, program: str, *, final_codes: tuple[int, ...] = (), stop_s: float = 5.0) -> Child:
    return Child("child", [sys.executable, "-c", program], folder / "child.log", stop_s, final_codes)


def holds(tended: Supervisor, probe: Callable[[], object]) -> Callable[[], object]:
    """The probe, with the children tended meanwhile."""

    def tend_and_look() -> object:
        tended.tend()
        return probe()

    return tend_and_look


def test_a_child_that_died_is_started_again_and_its_log_goes_on(
    tended: Supervisor, said: list[str], tmp_path: Path
) -> None:
    child = a_child(tmp_path / "log", OBEDIENT)
    tended.start(child)
    eventually(lambda: child.log_file.read_text() == "up\n")
    assert child.process is not None
    child.process.kill()
    eventually(holds(tended, lambda: child.starts == 2))
    eventually(lambda: child.log_file.read_text() == "up\nup\n")
    assert "signal 9" in said[0]
    assert child.log_file.stat().st_mode & 0o777 == 0o600
    assert child.last_words() == "up"  # of this start, not of the one before


def test_pauses_grow_while_it_keeps_dying(tended: Supervisor, said: list[str], tmp_path: Path) -> None:
    child = a_child(tmp_path, "raise SystemExit(3)")
    tended.start(child)
    eventually(holds(tended, lambda: child.failures >= 3))
    assert child.restart_at_s is not None
    assert child.restart_at_s - time.monotonic() <= 0.02 * 4
    assert all("exit code 3" in line for line in said)


def test_one_that_ran_well_for_long_begins_with_the_first_pause(
    tended: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "STEADY_S", 0.0)
    child = a_child(tmp_path, "raise SystemExit(3)")
    tended.start(child)
    eventually(holds(tended, lambda: child.starts >= 3))
    assert child.failures == 1


def test_an_end_that_no_start_would_mend_is_told_with_its_last_words(
    tended: Supervisor, said: list[str], tmp_path: Path
) -> None:
    child = a_child(tmp_path, "print('no key'); raise SystemExit(8)", final_codes=(0, 8))
    tended.start(child)
    eventually(holds(tended, lambda: said))
    tended.tend()
    assert child.starts == 1
    assert child.restart_at_s is None
    assert said == ["child ended (exit code 8) and stays down:\nno key"]


def test_groups_end_in_order(tended: Supervisor, tmp_path: Path) -> None:
    order = tmp_path / "order"
    program = (
        "import signal, sys, time\n"
        "def end(*_):\n"
        f"    open({str(order)!r}, 'a').write(sys.argv[1]); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end); print('up', flush=True); time.sleep(60)"
    )
    children = [a_child(tmp_path / name, program) for name in ("agent", "broker")]
    for child, name in zip(children, ("a", "b"), strict=True):
        child.arguments = [*child.arguments, name]
        tended.start(child)
    for child in children:
        eventually(lambda child=child: child.log_file.read_text())  # type: ignore[misc]  # bound per turn on purpose
    tended.stop([[children[0]], [children[1]]], lambda: False)
    assert order.read_text() == "ab"
    assert [child.process for child in children] == [None, None]


def test_who_overstays_is_killed_and_that_is_told(tended: Supervisor, said: list[str], tmp_path: Path) -> None:
    child = a_child(tmp_path, STUBBORN, stop_s=0.0)
    tended.start(child)
    eventually(child.log_file.read_text)
    process = child.process
    assert process is not None
    tended.stop([[child]], lambda: False)
    assert process.returncode == -signal.SIGKILL
    assert "was killed" in said[0]


def test_a_second_request_shortens_the_wait(tended: Supervisor, tmp_path: Path) -> None:
    child = a_child(tmp_path, STUBBORN, stop_s=60.0)
    tended.start(child)
    eventually(child.log_file.read_text)
    began_s = time.monotonic()
    tended.stop([[child]], lambda: True)
    assert time.monotonic() - began_s < 5


def test_a_child_that_waits_for_its_restart_is_not_started_by_the_end(tended: Supervisor, tmp_path: Path) -> None:
    child = a_child(tmp_path, "raise SystemExit(1)")
    tended.start(child)
    eventually(holds(tended, lambda: child.failures))
    tended.stop([[child]], lambda: False)
    assert not child.is_running
