"""Every worker of one side is gone without a word: the other side goes on with everything, and nobody is restarted."""

import json
import time
from collections.abc import Sequence

import pytest

from e2e.site import MODEL, ROOMY, Site
from e2e.test_life import seconds
from koubou_simulator.workshop import Process, Worker
from support.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e-lost-workers")]

LEASE_S = 4.0
SETTINGS = f"heartbeat_s: 0.5\nlease_s: {LEASE_S:g}\nretry: {{backoff_base_s: 0.1, backoff_cap_s: 0.2}}\n" + ROOMY
LOCAL, REMOTES = "local_001", ("lan_001", "lan_002")
URGENT = 9  # by the rules below for the local worker, everything else for the remote ones
RULES = [
    {"priority_range": [8, 10], "preferred_workers": ["local", "remote"]},
    {"priority_range": [1, 7], "preferred_workers": ["remote", "local"]},
]
LATE_S = 3.0  # beyond the lease, on a machine that has much else to do


@pytest.fixture(scope="module")
def agents(site: Site) -> dict[str, Process]:
    """One local worker and two boxes of their own, of which all should be there."""
    ollamas = {worker_id: site.ollama(worker_id) for worker_id in (LOCAL, *REMOTES)}
    workers = [Worker(LOCAL, MODEL, ollamas[LOCAL].url)]
    workers += [Worker(worker_id, MODEL, "", location="remote") for worker_id in REMOTES]
    site.workshop.configure(workers, rules=RULES, broker=SETTINGS)
    config = site.home / "config" / "workers.yaml"
    document = json.loads(config.read_text())
    document["manager"]["min_workers"] = len(workers)
    config.write_text(json.dumps(document))
    site.workshop.start_broker()
    agents = {LOCAL: site.start_agent(LOCAL, ollamas[LOCAL])}
    for worker_id in REMOTES:
        agents[worker_id] = site.start_agent(worker_id, ollamas[worker_id], site.workshop.join_box(worker_id))
    return agents


def submitted(site: Site, count: int, priority: int) -> str:
    """A batch under way."""
    lines = [{"prompt": f"[[sim: length=400]] Part {nth}", "priority": priority} for nth in range(count)]
    data = "".join(json.dumps(line) + "\n" for line in lines).encode()
    batch = site.ctl("submit", "--jsonl", "-", stdin=data).out.strip()
    eventually(lambda: len(ended(site, batch)) >= 3, 30.0, "the batch is under way")
    return batch


def ended(site: Site, batch: str) -> list[int]:
    return [task["id"] for task in site.ctl("show", batch, "--json").data if task["state"] == "succeeded"]


def workers_of(site: Site, task_ids: Sequence[int]) -> list[str]:
    """Where each of these succeeded."""
    return [str(site.task(task_id)["worker"]) for task_id in task_ids]


def alerts(site: Site) -> list[str]:
    return [alert["code"] for alert in site.ctl("status", "--json").data["alerts"]]


def kill(agents: Sequence[Process]) -> float:
    for agent in agents:
        agent.kill()
    return time.time()


def lost(site: Site, task_ids: Sequence[int]) -> list[float]:
    """When attempts were taken back from workers that fell silent."""
    stories = [site.story(task_id)["attempts"] for task_id in task_ids]
    gone = [one for attempts in stories for one in attempts if one["state"] == "lost"]
    assert all(one["error"]["class"] == "agent_lost" for one in gone)
    return [seconds(one["ended_at"]) for one in gone]


def test_without_its_remotes_the_workshop_goes_on_locally_and_takes_them_back(
    site: Site, agents: dict[str, Process], capsys: pytest.CaptureFixture[str]
) -> None:
    batch = submitted(site, 24, priority=5)
    assert set(REMOTES) <= set(workers_of(site, ended(site, batch)))
    before = set(ended(site, batch))
    killed_s = kill([agents[worker_id] for worker_id in REMOTES])
    eventually(lambda: "min_workers" in alerts(site), LEASE_S + 20, "somebody is told")
    assert site.ctl("wait", batch, "--wait-timeout", "90").code == 0
    tasks = site.ctl("show", batch, "--json").data
    assert [task["state"] for task in tasks] == ["succeeded"] * 24
    after = [task["id"] for task in tasks if task["id"] not in before and seconds(task["finished_at"]) > killed_s]
    assert set(workers_of(site, after)) <= {LOCAL, *REMOTES}
    assert workers_of(site, after).count(LOCAL) >= len(after) - 2, "two results may have been under way"
    back_s = [at_s - killed_s for at_s in lost(site, [task["id"] for task in tasks])]
    assert back_s, "no attempt was under way: this test has shown nothing"
    assert len(back_s) <= 2
    assert max(back_s) <= LEASE_S + LATE_S
    with capsys.disabled():
        print(f"\nremotes killed: {len(after)} tasks done after that, lost attempts back {max(back_s):.2f} s later")

    pid = site.workshop.broker.pid
    for worker_id in REMOTES:
        agents[worker_id].start()
        site.await_ready(worker_id, agents[worker_id])
    batch = submitted(site, 6, priority=5)
    assert site.ctl("wait", batch, "--wait-timeout", "60").code == 0
    assert set(workers_of(site, ended(site, batch))) >= set(REMOTES)
    assert "min_workers" not in alerts(site)
    assert site.workshop.broker.pid == pid


def test_without_its_local_worker_the_workshop_goes_on_remotely_and_takes_it_back(
    site: Site, agents: dict[str, Process]
) -> None:
    batch = submitted(site, 12, priority=URGENT)
    assert LOCAL in workers_of(site, ended(site, batch))
    killed_s = kill([agents[LOCAL]])
    assert site.ctl("wait", batch, "--wait-timeout", "90").code == 0
    tasks = site.ctl("show", batch, "--json").data
    assert [task["state"] for task in tasks] == ["succeeded"] * 12
    back_s = [at_s - killed_s for at_s in lost(site, [task["id"] for task in tasks])]
    assert back_s, "no attempt was under way: this test has shown nothing"
    assert max(back_s) <= LEASE_S + LATE_S
    agents[LOCAL].start()
    site.await_ready(LOCAL, agents[LOCAL])
    task_id = site.submit("-p", str(URGENT), "Explain")
    site.await_state(task_id, "succeeded")
    assert workers_of(site, [task_id]) == [LOCAL]
