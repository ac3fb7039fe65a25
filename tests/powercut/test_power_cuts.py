"""Power cuts of a real broker and a real agent: what was promised before the cut is there after it.

A few of them; `make powercut CUTS=200` makes more, and prints the figures.
"""

import contextlib
from pathlib import Path

import pytest

from koubou_client.client import Client
from koubou_common.messages.values import TaskState
from powercut.activity import draft_of
from powercut.disk import build
from powercut.process import Forge
from powercut.recording import Stage
from powercut.run import FULL, NORMAL, Bench, Figures
from powercut.work import answer_to
from support.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.xdist_group("powercut"), pytest.mark.timeout(240)]

CUTS, CONTROL_CUTS = 12, 4
SEED = 20_264
SPAN_S = 2.5
PATIENCE_S = 30.0
SPOOL = "box/state/agents/box_001/spool"


@pytest.fixture
def bench(tmp_path: Path, shim: Path, forge: Forge) -> Bench:
    return Bench(tmp_path, shim, forge, SPAN_S)


def test_nothing_that_was_promised_is_lost_by_a_power_cut_or_a_kill(bench: Bench) -> None:
    cut, killed = Figures(), Figures()
    bench.cuts(SEED, CUTS, cut, killed, module=FULL)
    assert (cut.cuts, cut.stories, killed.stories) == (CUTS, [], []), f"seed {SEED}"
    assert cut.promises > 100, "a run in which little happens proves little"


def test_a_broker_that_does_not_wait_for_the_disk_loses_what_it_promised_but_not_by_a_kill(bench: Bench) -> None:
    """The control: were nothing lost here, the test above could not fail either."""
    cut, killed = Figures(), Figures()
    bench.cuts(SEED, CONTROL_CUTS, cut, killed, module=NORMAL)
    assert cut.lost > 0, f"seed {SEED}"
    assert killed.stories == [], f"seed {SEED}"


def test_an_outcome_that_only_the_spool_has_survives_and_is_delivered(tmp_path: Path, shim: Path, forge: Forge) -> None:
    prompt = "pause 300 ms, answer 300 bytes, while the broker is away"
    with Stage(tmp_path, shim) as stage:
        broker = stage.start_broker()
        stage.join_box()
        agent = stage.start_agent()
        with contextlib.closing(Client(where=stage.where())) as client:
            task_id = client.submit_drafts([draft_of(prompt)]).tasks[0].task_id
        eventually(lambda: f"task={task_id} " in agent.log(), PATIENCE_S, "the agent has the task")
        broker.kill()
        eventually(lambda: "ended: ok" in agent.log(), PATIENCE_S, "the agent has done it")
        eventually(lambda: list((stage.watch.root / SPOOL).glob("*.outcome")), PATIENCE_S, "and kept it")
        agent.kill()
        for call in stage.watch.calls():
            stage.disk.do(call)
        (stage.folder / "disk").rename(stage.folder / "before")
        build(stage.disk.synced(), stage.folder / "disk")

        broker = stage.start_broker()
        stage.start_agent()
        with contextlib.closing(Client(where=stage.where())) as client:
            client.wait([task_id], timeout_s=PATIENCE_S)
            reply, output = client.result(task_id)
    assert (reply.task.state, output) == (TaskState.SUCCEEDED, answer_to(prompt))
    assert reply.task.attempts == 1, "it was done once"
