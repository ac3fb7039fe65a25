"""The demo is the smoke test of a fresh machine: it ends well, says so in its last line, and leaves nothing behind."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.site import MODEL
from koubou_simulator.demo import cli_choice
from koubou_simulator.demo.jobs import TASKS, drafts, jobs, source
from koubou_simulator.ollama import SimulatedOllama, model_named
from support.cli import is_alive
from support.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.xdist_group("e2e-demo"), pytest.mark.timeout(240)]

DEMO_S = 200.0
LAST_LINE = "demo: 30/30 succeeded, 0 lost, 0 duplicated"


@pytest.fixture
def surroundings(cli_python: Path, tmp_path: Path) -> dict[str, str]:
    """A machine of its own: no home, a temporary folder that can be looked into, a gemini-repo-cli that is named."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path / "nobody"),
        "TMPDIR": str(tmp_path),
        "KOUBOU_CLI_PYTHON": str(cli_python),
        "PYTHONUTF8": "1",
    }


@contextlib.contextmanager
def demo(surroundings: dict[str, str], *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-m", "koubou_simulator.demo", *arguments]
    with subprocess.Popen(
        command,
        env=surroundings,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    ) as child:
        try:
            yield child
        finally:
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)


def leftovers(folder: Path) -> list[int]:
    """Processes that were started with something in this folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if os.fsencode(folder / "koubou-demo-") in entry.read_bytes() and is_alive(int(entry.parent.name)):
                found.append(int(entry.parent.name))
    return found


def test_the_demo_ends_with_every_task_done_once(surroundings: dict[str, str], tmp_path: Path) -> None:
    with demo(surroundings) as child:
        out, err = child.communicate(timeout=DEMO_S)
    assert child.returncode == 0, out + err
    lines = out.splitlines()
    assert lines[-1] == LAST_LINE
    assert "SIMULATED" in out
    assert "remote_lan_002 joined with a one-time token" in out
    assert "remote_lan_001 was killed (kill -9) while it worked on task" in out
    assert "moved to" in out
    assert sum("succeeded on" in line for line in lines) == TASKS, "a line for every event where nobody watches"
    assert "koubou-ctl up" in out, "it ends with what to type next"
    assert list(tmp_path.glob("koubou-demo-*")) == []
    assert leftovers(tmp_path) == []


def test_the_demo_on_an_ollama_that_is_given_tells_its_result_as_json(
    surroundings: dict[str, str], tmp_path: Path
) -> None:
    with SimulatedOllama(models=[model_named(MODEL, "fast")]) as ollama:
        ollama.set_speed(0.4)  # answers of half a second: time enough to join and to be killed
        with demo(surroundings, "--ollama", ollama.url, "--model", MODEL, "--json", "--keep") as child:
            out, err = child.communicate(timeout=DEMO_S)
    assert child.returncode == 0, out + err
    data = json.loads(out)["data"]
    assert data["summary"] == LAST_LINE
    assert data["simulated"]["ollama"] is False, "it cannot know that this one is"
    assert len(data["tasks"]) == TASKS
    assert data["killed"]["tasks_moved"] != []
    assert Path(data["logs"], "broker.log").exists(), "--keep keeps the logs"
    assert leftovers(tmp_path) == []


def test_a_demo_that_does_not_end_in_time_says_why_and_keeps_its_logs(
    surroundings: dict[str, str], tmp_path: Path
) -> None:
    with demo(surroundings, "--time-limit", "6") as child:
        out, err = child.communicate(timeout=DEMO_S)
    assert child.returncode == 1, out
    assert "within 6 s" in err
    kept = next(tmp_path.glob("koubou-demo-*"))
    assert str(kept / "log") in err
    assert (kept / "log" / "broker.log").read_text() != ""
    assert LAST_LINE not in out
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_ends_everything_it_started(
    surroundings: dict[str, str], tmp_path: Path, number: signal.Signals
) -> None:
    with demo(surroundings) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if "tasks accepted" in line:
                break
        assert leftovers(tmp_path) != []
        child.send_signal(number)
        out, _ = child.communicate(timeout=DEMO_S)
    assert child.returncode == 130
    assert "Interrupted" in out
    eventually(lambda: leftovers(tmp_path) == [], 10.0, "nothing runs on")
    assert list(tmp_path.glob("koubou-demo-*")) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--ollama", "http://127.0.0.1:1", "--model", "m"), "no Ollama answers"),
        (("--ollama", "nonsense://x", "--model", "m"), "--ollama"),
        (("--model", "m"), "--ollama URL"),
        (("--time-limit", "0"), "above 0"),
    ],
)
def test_a_demo_that_cannot_begin_says_what_is_wrong(
    surroundings: dict[str, str], tmp_path: Path, arguments: tuple[str, ...], says: str
) -> None:
    with demo(surroundings, *arguments) as child:
        _, err = child.communicate(timeout=DEMO_S)
    assert child.returncode == 2
    assert says in err
    assert list(tmp_path.glob("koubou-demo-*")) == []


def test_without_git_the_stand_in_is_there_quickly_and_says_that_it_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    monkeypatch.delenv("KOUBOU_HOME", raising=False)
    monkeypatch.delenv("KOUBOU_CLI_PYTHON", raising=False)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    said: list[str] = []
    began_s = time.monotonic()
    choice = cli_choice.choose(tmp_path / "home", said.append)
    assert choice.is_simulated
    assert "STAND-IN" in choice.label
    assert "git is not installed" in choice.label
    assert time.monotonic() - began_s < 30
    assert Path(choice.python).exists()


def test_a_git_that_hangs_costs_few_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    git = tmp_path / "bin" / "git"
    git.write_text("#!/bin/sh\nsleep 600 &\nwait\n")
    git.chmod(0o700)
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    monkeypatch.delenv("KOUBOU_HOME", raising=False)
    monkeypatch.delenv("KOUBOU_CLI_PYTHON", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(cli_choice, "_REACH_S", 0.5)
    assert "cannot be reached" in cli_choice.choose(tmp_path / "home", lambda text: None).label
    assert 0 < cli_choice._REACH_S < 5


def test_the_tasks_are_the_same_for_a_seed_and_need_a_checkout_for_nothing() -> None:
    where = source()
    assert jobs(where.files, 3) == jobs(where.files, 3)
    assert jobs(where.files, 3) != jobs(where.files, 4)
    made = jobs(where.files, 3)
    assert len({job.target for job in made}) == len(made) == TASKS
    assert len({job.priority for job in made}) >= 8
    few = jobs(where.files[:2], 3)
    assert len(few) == TASKS, "a small installation has as many tasks"
    assert all(draft.spec.files for draft in drafts(made, where))
