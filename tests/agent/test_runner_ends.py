"""How runs end before their time, and what is left of them: nothing."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from koubou_agent import runner as runner_module
from koubou_agent.runner import Runner
from support.cli import (
    Reply,
    TinyOllama,
    children_of,
    is_alive,
    says,
)
from support.cli_runs import (
    a_request,
    child_of,
    folders,
    held,
    linux,
    running,
    template_pid,
)
from support.waiting import eventually


def test_a_cancel_ends_the_run_and_its_connection(runner: Runner, ollama: TinyOllama) -> None:
    with held(runner, ollama, a_request(ollama)) as run:
        cancelled_s = time.monotonic()
        run.cancel.set()
        report = run.report()
        assert time.monotonic() - cancelled_s < 5
    assert (report.cancelled, report.timed_out, report.killed, report.exit_code) == (True, False, False, None)
    assert folders(runner) == []


def test_a_cancel_before_the_start_starts_nothing(runner: Runner, ollama: TinyOllama) -> None:
    cancel = threading.Event()
    cancel.set()
    report = runner.run(a_request(ollama), cancel)
    assert report.cancelled
    assert ollama.received == []


def test_a_run_that_takes_too_long_is_ended(runner: Runner, ollama: TinyOllama) -> None:
    with held(runner, ollama, a_request(ollama, timeout_s=0.6)) as run:
        report = run.report()
    assert (report.timed_out, report.cancelled, report.killed) == (True, False, False)
    assert 0.6 <= report.wall_s < 10
    assert folders(runner) == []


@linux
def test_a_run_killed_by_somebody_is_told_as_killed(runner: Runner, ollama: TinyOllama) -> None:
    with held(runner, ollama, a_request(ollama)) as run:
        os.kill(child_of(runner), signal.SIGKILL)
        report = run.report()
    assert (report.killed, report.signal, report.exit_code) == (True, signal.SIGKILL, None)


def test_stopping_ends_the_runs(python: Path, ollama: TinyOllama, tmp_path: Path) -> None:
    for warm in (True, False):
        with running(python, tmp_path, warm=warm) as runner:
            with held(runner, ollama, a_request(ollama)) as run:
                runner.stop()
                report = run.report()
            assert (report.killed, report.cancelled, report.timed_out) == (True, False, False)
            assert folders(runner) == []


@linux
def test_a_dead_template_takes_its_runs_along_and_is_replaced(
    python: Path, ollama: TinyOllama, never: threading.Event, tmp_path: Path
) -> None:
    with running(python, tmp_path) as runner:
        with held(runner, ollama, a_request(ollama)) as run:
            template, child = template_pid(runner), child_of(runner)
            os.kill(template, signal.SIGKILL)
            report = run.report()
            assert report.killed
            assert "was killed by SIGKILL" in report.log_tail
            eventually(lambda: not is_alive(child))
        ollama.answer = lambda _request: says("again")
        assert runner.run(a_request(ollama), never).stdout == b"again\n"
        assert template_pid(runner) != template
        assert folders(runner) == []


@linux
def test_a_template_that_is_stuck_does_not_hold_up_a_cancel(
    python: Path, ollama: TinyOllama, never: threading.Event, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_module, "_KILL_GRACE_S", 0.2)
    with running(python, tmp_path) as runner:
        with held(runner, ollama, a_request(ollama)) as run:
            child = child_of(runner)
            os.kill(template_pid(runner), signal.SIGSTOP)
            run.cancel.set()
            assert run.report().cancelled
            eventually(lambda: not is_alive(child))
        ollama.answer = lambda _request: says("again")
        assert runner.run(a_request(ollama), never).stdout == b"again\n"


@linux
def test_the_template_outlives_the_thread_that_started_the_runner(
    python: Path, ollama: TinyOllama, never: threading.Event, tmp_path: Path
) -> None:
    runner = Runner(python, tmp_path)
    starter = threading.Thread(target=runner.start)
    starter.start()
    starter.join()
    try:
        template = template_pid(runner)
        assert runner.run(a_request(ollama), never).exit_code == 0
        assert template_pid(runner) == template
    finally:
        runner.stop()
    assert not is_alive(template)


@linux
@pytest.mark.parametrize("warm", [True, False], ids=["warm", "plain"])
def test_nothing_survives_an_agent_that_is_killed(python: Path, ollama: TinyOllama, tmp_path: Path, warm: bool) -> None:
    hold = threading.Event()
    ollama.answer = lambda _request: Reply(b"{}", hold=hold)
    script = (
        "import sys, threading\n"
        "from pathlib import Path\n"
        "from koubou_agent.runner import Runner, RunRequest\n"
        "python, work_dir, url, warm = sys.argv[1:]\n"
        "runner = Runner(Path(python), Path(work_dir), warm=warm == 'True')\n"
        "runner.start()\n"
        "runner.run(RunRequest('u', 'r', 't', 'p', (), 'm', url, 60.0), threading.Event())\n"
    )
    agent = subprocess.Popen([sys.executable, "-c", script, python, tmp_path / "work", ollama.url, str(warm)])
    try:
        eventually(lambda: ollama.received)
        below = children_of(agent.pid)
        below += [pid for child in below for pid in children_of(child)]
        assert len(below) == (2 if warm else 1)
    finally:
        agent.kill()
        agent.wait()
    try:
        eventually(lambda: not any(is_alive(pid) for pid in below), what="nobody waits for the answer")
    finally:
        hold.set()
