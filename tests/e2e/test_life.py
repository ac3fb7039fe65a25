"""Stops, restarts and time limits with real processes: nothing is lost, nothing runs twice without need."""

import json
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from typing import Any

import pytest

from e2e.site import MODEL, ROOMY, Ollama, Site, slug
from koubou_simulator.workshop import Process, Worker
from support.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e-life")]

LEASE_S = 20.0  # long enough that nothing below can be its doing
SETTINGS = f"heartbeat_s: 1\nlease_s: {LEASE_S:g}\nretry: {{backoff_base_s: 0.1, backoff_cap_s: 0.2}}\n" + ROOMY
FIRST, SECOND = "local_001", "local_002"
LONG = "[[sim: length=600]] A long one"
SLOW = 0.02  # speed at which a long one outlasts every test
SOON_S = 2.0  # "at once", on a machine that has much else to do


@pytest.fixture(scope="module")
def ollamas(site: Site) -> dict[str, Ollama]:
    return {worker_id: site.ollama(worker_id) for worker_id in (FIRST, SECOND)}


@pytest.fixture(scope="module", autouse=True)
def agents(site: Site, ollamas: dict[str, Ollama]) -> dict[str, Process]:
    site.open([Worker(worker_id, MODEL, ollama.url) for worker_id, ollama in ollamas.items()], SETTINGS)
    return {worker_id: site.start_agent(worker_id, ollama) for worker_id, ollama in ollamas.items()}


def seconds(at: str) -> float:
    """A time of a JSON document, in seconds since 1970."""
    return datetime.fromisoformat(at).timestamp()


def moves(site: Site, task_id: int) -> list[tuple[float, str, str]]:
    """When the task changed, to what, and why."""
    return [(seconds(one["at"]), one["after"], one["reason"]) for one in site.story(task_id)["events"]]


def ran_on(site: Site, task_id: int) -> list[str]:
    return [attempt["worker"] for attempt in site.story(task_id)["attempts"]]


@contextmanager
def slow_task(site: Site, ollamas: dict[str, Ollama]) -> Iterator[int]:
    """A task that runs on the first worker and would for minutes; the second one is idle."""
    assert site.ctl("workers", "pause", SECOND).code == 0
    ollamas[FIRST].speed(SLOW)
    try:
        task_id = site.submit(LONG)
        site.await_state(task_id, "running")
        assert site.ctl("workers", "resume", SECOND).code == 0
        yield task_id
    finally:
        ollamas[FIRST].speed(1.0)


def test_sigterm_to_the_broker_under_load_loses_nothing_and_repeats_nothing(
    site: Site, ollamas: dict[str, Ollama], capsys: pytest.CaptureFixture[str]
) -> None:
    lines = "".join(json.dumps({"prompt": f"[[sim: length=300]] Part {nth}"}) + "\n" for nth in range(30))
    batch = site.ctl("submit", "--jsonl", "-", stdin=lines.encode()).out.strip()

    def states() -> list[str]:
        return [task["state"] for task in site.ctl("show", batch, "--json").data]

    eventually(lambda: states().count("succeeded") >= 4, 30.0, "the batch is under way")
    broker = site.workshop.broker
    began_s = time.monotonic()
    assert broker.stop() == 0, broker.log()
    stopped_s = time.monotonic() - began_s
    assert stopped_s < 5
    with closing(sqlite3.connect(site.home / "state" / "koubou.db")) as database:
        (running,) = database.execute("SELECT count(*) FROM tasks WHERE state = 'running'").fetchone()
    assert running, "nothing was under way: this test has shown nothing"
    site.workshop.start_broker()
    assert site.ctl("wait", batch, "--wait-timeout", "60").code == 0
    tasks = site.ctl("show", batch, "--json").data
    executions = sum(task["attempts"] for task in tasks) / len(tasks)
    with capsys.disabled():
        print(f"\nbroker stopped in {stopped_s:.2f} s, {running} tasks ran on; {executions:.2f} executions a task")
    assert [task["state"] for task in tasks] == ["succeeded"] * 30
    assert executions == 1.0


def test_what_an_agent_hands_back_at_its_stop_is_with_another_at_once(
    site: Site, ollamas: dict[str, Ollama], agents: dict[str, Process], capsys: pytest.CaptureFixture[str]
) -> None:
    with slow_task(site, ollamas) as task_id:
        asked_s = time.time()
        assert agents[FIRST].stop() == 0
        site.await_state(task_id, "succeeded")
    agents[FIRST].start()
    assert ran_on(site, task_id) == [FIRST, SECOND]
    _, _, (back_s, after, why), (again_s, *_), _ = moves(site, task_id)
    assert (after, why.partition(":")[0]) == ("queued", "drain")
    with capsys.disabled():
        print(f"\nhanded back {back_s - asked_s:.2f} s after SIGTERM, with another {again_s - back_s:.3f} s later")
    assert again_s - back_s < SOON_S
    site.await_ready(FIRST, agents[FIRST])


def test_a_second_sigterm_ends_an_agent_at_once(
    site: Site, ollamas: dict[str, Ollama], agents: dict[str, Process]
) -> None:
    assert agents[FIRST].stop() == 0
    patient = site.start_agent(FIRST, ollamas[FIRST], None, "--stop-timeout", "600")
    with slow_task(site, ollamas) as task_id:
        assert patient.popen is not None
        patient.popen.send_signal(signal.SIGTERM)
        eventually(lambda: "asked to stop" in patient.log(), 10.0, "the first one is heard")
        assert site.task(task_id)["state"] == "running", "it may finish"
        began_s = time.monotonic()
        assert patient.stop() == 0
        assert time.monotonic() - began_s < 5
        site.await_state(task_id, "succeeded")
    assert ran_on(site, task_id) == [FIRST, SECOND]
    agents[FIRST].start()
    site.await_ready(FIRST, agents[FIRST])


def test_an_agent_that_comes_back_with_nothing_gives_its_task_to_another_at_once(
    site: Site, ollamas: dict[str, Ollama], agents: dict[str, Process], capsys: pytest.CaptureFixture[str]
) -> None:
    with slow_task(site, ollamas) as task_id:
        agents[FIRST].kill()
        started_s = time.time()
        agents[FIRST].start()
        site.await_state(task_id, "succeeded")
    assert ran_on(site, task_id) == [FIRST, SECOND]
    _, _, (back_s, _, why), (again_s, *_), _ = moves(site, task_id)
    assert f"{FIRST} was restarted" in why
    with capsys.disabled():
        print(f"\ntaken back {back_s - started_s:.2f} s after its start, with another {again_s - back_s:.3f} s later")
    assert again_s - back_s < SOON_S
    assert again_s - started_s < LEASE_S / 2
    site.await_ready(FIRST, agents[FIRST])


def test_a_task_that_nobody_begins_in_time_fails_and_a_retry_is_patient(site: Site) -> None:
    assert site.ctl("workers", "pause", SECOND).code == 0
    try:
        ran = site.ctl("submit", "--worker", SECOND, "--queue-timeout", "0.5s", "--wait", "Say it", "--json")
        assert ran.code == 1
        task: dict[str, Any] = ran.data
        assert (task["error"]["class"], task["error"]["cause"], task["attempts"]) == ("queue_timeout", None, 0)
        assert task["error"]["message"] == f"no worker began it within 0.5 s; it waited for {SECOND} (paused)"
        again = site.ctl("submit", "--worker", SECOND, "--queue-timeout", "0.5s", "--wait", "Say it")
        assert slug(again) == "task-failed"
        assert "no worker began it in the time it was given" in again.err
        assert site.ctl("retry", str(task["id"])).code == 0
        assert site.ctl("wait", str(task["id"]), "--wait-timeout", "1").code == 3
    finally:
        assert site.ctl("workers", "resume", SECOND).code == 0
    site.await_state(task["id"], "succeeded")


def test_a_retry_shows_the_attempts_of_both_generations(site: Site, ollamas: dict[str, Ollama]) -> None:
    for ollama in ollamas.values():
        ollama.fault("error", status=500, text="twice")
    try:
        ran = site.ctl("submit", "--max-attempts", "2", "Explain", "--wait", "--json")
    finally:
        for ollama in ollamas.values():
            ollama.no_faults()
    assert ran.code == 1
    task_id, error = ran.data["id"], ran.data["error"]
    assert (error["class"], error["cause"]) == ("attempts_exhausted", "ollama_error")
    assert site.ctl("retry", str(task_id)).code == 0
    site.await_state(task_id, "succeeded")
    shown = site.ctl("show", str(task_id)).out
    for attempt in ("Attempt 1 on", "Attempt 2 on", "Attempt 3 on"):
        assert attempt in shown
    assert "failed -> queued" in shown
    assert len(set(ran_on(site, task_id)[:2])) == 2, "the second attempt went to the other worker"
    assert site.ctl("retry", str(task_id)).code == 0, "also what has succeeded, when it is named"
    assert site.await_state(task_id, "succeeded")["attempts"] == 4
