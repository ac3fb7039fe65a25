"""The restore drill: a backup under load, a loss of all that came after it, and every promise kept nevertheless."""

import itertools
import os
import sqlite3
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from e2e.site import MODEL, Site
from koubou_client.client import Client
from koubou_common.errors import Code, KoubouError
from koubou_common.messages.limits import CHUNK_BYTES
from koubou_simulator.workshop import Process, Worker
from support.broker_process import BrokerProcess
from support.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.xdist_group("e2e-restore")]

BALLAST_BYTES = 32 * 1024 * 1024  # what the database holds besides, so that a copy takes its time
QUIET_S = 2.0  # of submissions before the backup, to compare with
DONE_S = 60.0
BROKER = "heartbeat_s: 0.5\nlease_s: 3\ndisk: {reserve_bytes: 1048576, min_free_bytes: 0}\n"


@dataclass(slots=True)
class Load:
    """One person after another submits; when each was accepted, and how long that took."""

    client: Client
    took_s: list[tuple[float, float]] = field(default_factory=list)  # when it began, how long
    task_ids: list[int] = field(default_factory=list)

    @contextmanager
    def running(self) -> Iterator[None]:
        stop = threading.Event()
        thread = threading.Thread(target=self._submit, args=(stop,))
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(30)

    def _submit(self, stop: threading.Event) -> None:
        for number in itertools.count():
            if stop.is_set():
                return
            began_s = time.monotonic()
            future = self.client.submit(f"[[sim: length=20]] load {number}")
            self.took_s.append((began_s, time.monotonic() - began_s))
            self.task_ids.append(future.id)
            stop.wait(0.1)

    def between(self, first_s: float, last_s: float) -> list[float]:
        """Milliseconds of those that overlap that time."""
        return [took * 1_000 for began, took in self.took_s if began + took >= first_s and began <= last_s]


def figures(name: str, took_ms: list[float]) -> str:
    ordered = sorted(took_ms)
    p99 = ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]
    return f"{name}: {len(ordered)} submits, p50 {statistics.median(ordered):.1f} ms, p99 {p99:.1f} ms"


def spooled(agent_home: Path) -> int:
    return len(list(agent_home.rglob("*.outcome")))


def test_a_workshop_restored_from_a_backup_made_under_load_keeps_its_word(site: Site, tmp_path: Path) -> None:
    ollama = site.ollama("drill", "--speed", "1")
    workers = [Worker("local_001", MODEL, ollama.url)]
    broker_of(site, "init")
    add_ballast(site.home / "state" / "koubou.db")
    site.open(workers, broker=BROKER)
    agent = site.start_agent("local_001", ollama)

    # A backup while submissions and results go on.
    out = tmp_path / "backup.db"
    with Client(home=str(site.home)) as client:
        load = Load(client)
        with load.running():
            began_s = time.monotonic()
            time.sleep(QUIET_S)
            backup_s = time.monotonic()
            ran = site.ctl("backup", str(out), "--json")
            ended_s = time.monotonic()
        assert ran.code == 0, ran.err
        assert ran.data["bytes"] > BALLAST_BYTES
        quiet, busy = load.between(began_s, backup_s), load.between(backup_s, ended_s)
        print()
        print(f"backup of {ran.data['bytes'] / 2**20:.0f} MiB in {ended_s - backup_s:.2f} s")
        print(figures("before it", quiet))
        print(figures("during it", busy))
        assert len(busy) >= 3, "submissions went on during the backup"
        in_backup = tasks_of(out)
        before = [task_id for task_id in load.task_ids if task_id in in_backup]
        assert set(load.task_ids[: len(quiet)]) <= in_backup, "what was accepted before the backup is in it"

        # More is accepted after it, some of it in the midst of an attempt when the broker dies.
        slow = [client.submit(f"[[sim: length=1500]] slow one {number}", priority=10).id for number in range(2)]
        lost = [client.submit("[[sim: length=20]] lost one", idempotency_key="lost").id]
    eventually(lambda: site.task(slow[0])["state"] == "running", DONE_S, "an attempt is under way")
    site.workshop.broker.kill()
    eventually(lambda: spooled(site.home) > 0, DONE_S, "an outcome is on the agent's disk")

    print(broker_of(site, "restore", str(out)))
    await_all_done_after_restart(site, agent, before, slow, lost)


def await_all_done_after_restart(
    site: Site, agent: Process, before: list[int], slow: list[int], lost: list[int]
) -> None:
    site.workshop.broker.start()
    site.workshop.until(lambda: site.ctl("status").code == 0, site.workshop.broker, DONE_S)
    site.await_ready("local_001", agent)
    assert any(alert["code"] == "restored" for alert in site.ctl("status", "--json").data["alerts"])

    # Every task of the backup ends with exactly one outcome.
    for task_id in before:
        site.await_state(task_id, "succeeded", DONE_S)
    for task_id in before:
        states = [attempt["state"] for attempt in site.story(task_id)["attempts"]]
        assert states.count("succeeded") == 1, (task_id, states)

    # What was delivered for attempts that are gone is parked, and only then gone from the agent.
    eventually(lambda: spooled(site.home) == 0, DONE_S, "the spool is empty")
    parked = site.ctl("parked", "--json").data
    assert parked, "the outcome that was spooled"
    texts = [site.ctl("parked", one["uid"]).raw for one in parked if one["bytes"]]
    assert any(text.startswith(b"[SIMULATED]") for text in texts), parked

    # No id of the lost time means something else now; who holds one is told why it is not found.
    with Client(home=str(site.home)) as client:
        for task_id in (*slow, *lost):
            with pytest.raises(KoubouError, match="no task") as refused:
                client.tasks(task_ids=[task_id])
            assert refused.value.code is Code.NOT_FOUND
            assert "restored from a backup" in refused.value.hint
        again = client.submit("[[sim: length=20]] lost one", idempotency_key="lost")
        assert again.id > 1_000_000
        assert again.result(DONE_S).text.startswith("[SIMULATED]")
        assert client.submit("[[sim: length=20]] lost one", idempotency_key="lost").id == again.id


def broker_of(site: Site, *arguments: str) -> str:
    """Another command of koubou-broker on that home; what it printed."""
    broker = BrokerProcess(site.home)
    code, said, err = broker.run(*arguments)
    broker.context.destroy(linger=0)
    assert code == 0, err
    return said


def tasks_of(path: Path) -> set[int]:
    with closing(sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)) as copy:
        return {row[0] for row in copy.execute("SELECT task_id FROM tasks")}


def add_ballast(path: Path) -> None:
    """Texts that nobody refers to, as uploads of the last day are."""
    with closing(sqlite3.connect(path)) as database:
        for _ in range(BALLAST_BYTES // CHUNK_BYTES):
            sha256 = os.urandom(32)
            row = (sha256, CHUNK_BYTES, time.time_ns() // 1_000_000)
            database.execute("INSERT INTO blob (sha256, size_bytes, stored_ms) VALUES (?, ?, ?)", row)
            chunk = (sha256, 0, os.urandom(CHUNK_BYTES))
            database.execute("INSERT INTO blob_chunk (sha256, n, bytes) VALUES (?, ?, ?)", chunk)
        database.commit()
