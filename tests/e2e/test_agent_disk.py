"""An agent whose disk takes nothing: its result leaves from memory, it says why it takes no work, and comes back."""

from pathlib import Path

import pytest

from e2e.site import MODEL, QUICK, ROOMY, Site
from koubou_simulator.workshop import Worker
from support.disks import files_at_most
from support.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e-disk")]

LOOK_S = 20.0  # of the agent at its box, every 5 s, and a busy machine


def test_a_result_is_delivered_from_memory_and_no_work_is_taken_until_the_disk_is_back(
    tmp_path: Path, cli_python: Path
) -> None:
    with Site(tmp_path / "home", cli_python) as site:
        ollama = site.ollama("local")
        site.open([Worker("local_001", MODEL, ollama.url)], broker=QUICK + ROOMY)
        agent = site.start_agent("local_001", ollama)
        ollama.speed(0.05)
        first = site.submit("[[sim: length=100]] Go on")
        site.await_state(first, "running")
        with files_at_most(0, agent.pid):
            eventually(lambda: "cannot keep results" in (site.issue("local_001") or ""), LOOK_S, "the agent says so")
            ollama.speed(100.0)
            site.await_state(first, "succeeded")
            second = site.submit("Explain")
            assert "cannot keep results" in (site.issue("local_001") or "")
            assert site.task(second)["state"] == "queued"
            assert agent.is_alive()
        site.await_state(second, "succeeded", LOOK_S)
        assert not site.issue("local_001")
        spool = tmp_path / "home" / "state" / "agents" / "local_001" / "spool"
        eventually(lambda: not list(spool.rglob("*.outcome*")), what="nothing is left to deliver")
