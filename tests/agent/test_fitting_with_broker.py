"""Windows by model, versions and foreign load, as the real broker and the real agent see a box's Ollama."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from koubou_agent import box as box_module
from koubou_client.client import Client
from koubou_client.connection import new_request_id
from koubou_client.where import Where
from koubou_common.keys import read_key_pair, read_public
from koubou_common.messages import GetWorkers, SetWorkerMode, Workers
from koubou_common.messages.values import Role, WorkerMode, WorkerView
from koubou_simulator.ollama import Fault, FaultKind, SimulatedOllama, model_named
from support.agent_house import AgentHouse
from support.broker_play import a_broker, a_configuration
from support.waiting import eventually

OURS, THEIRS = "Some-Coder:7B", "visitor:1b"
BROKER = """
bind: tcp://127.0.0.1:0
heartbeat_s: 0.2
disk: {reserve_bytes: 1048576, min_free_bytes: 0}
"""
# Written in another case than Ollama has it.
WORKERS = """
workers:
  local_workers:
    - worker_id: lan_001
      model: some-coder:7b
      options: {num_ctx: 2048, num_predict: 256}
      model_options: {"SOME-CODER:7b": {num_ctx: 8192}}
"""


@dataclass(slots=True)
class Site:
    """A broker, an agent at work, its Ollama, and a person."""

    sim: SimulatedOllama
    client: Client

    def digest(self) -> str:
        return next((one.digest for one in self.worker().windows if one.model == OURS.lower()), "")

    def set_mode(self, mode: WorkerMode) -> None:
        self.client.connection.call(SetWorkerMode(new_request_id(), "lan_001", mode), Workers)

    def worker(self) -> WorkerView:
        return self.client.connection.call(GetWorkers(new_request_id(), "lan_001"), Workers).workers[0]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, stand_in: Path) -> Iterator[Site]:
    """One for all tests: each leaves it as it was."""
    folder = tmp_path_factory.mktemp("site")
    with ExitStack() as stack:
        stack.enter_context(pytest.MonkeyPatch.context()).setattr(box_module, "PROBE_EVERY_S", 0.1)
        broker = stack.enter_context(a_broker(folder / "broker", a_configuration(BROKER, WORKERS)))
        models = [replace(model_named(name, "tiny"), name=name) for name in (OURS, THEIRS)]
        sim = stack.enter_context(SimulatedOllama(models=models))
        key = read_public(broker.home.public_key_file("broker"))
        box = AgentHouse(
            folder / "box", broker_address=broker.address, broker_key=key, ollama_url=sim.url, python=stand_in
        )
        pair = broker.enrol("lan_001", Role.WORKER)
        box.keep(pair)
        stack.enter_context(box.agent(pair))
        where = Where((broker.address,), key, read_key_pair(broker.home.key_file("operator")))
        made = Site(sim, stack.enter_context(Client(where=where)))
        eventually(lambda: made.digest() == models[0].digest, what="the agent tells its models")
        yield made


def test_a_model_runs_with_its_own_window_under_whatever_spelling(site: Site) -> None:
    future = site.client.submit("Say it [[sim: raw=yes]]", model="some-CODER:7b", min_context=8_000, same_digest=True)
    assert future.result(30).text == "yes"
    asked = [one for one in site.sim.requests if one.prompt]
    assert asked[-1].options["num_ctx"] == 8_192
    window = next(one for one in site.worker().windows if one.model == OURS.lower())
    assert (window.num_ctx, window.digest) == (8_192, site.sim.models[0].digest)


def test_a_model_that_is_pulled_again_keeps_a_task_of_the_old_version_waiting(site: Site) -> None:
    old = site.sim.models[0]
    site.set_mode(WorkerMode.PAUSED)
    future = site.client.submit("Say it [[sim: raw=yes]]", same_digest=True)
    site.sim.models[0] = replace(old, digest="f" * 64)
    eventually(lambda: site.digest() == "f" * 64, what="the new version is told")
    site.set_mode(WorkerMode.ACTIVE)
    assert "has version ffffffffffff of some-coder:7b" in site.client.tasks(task_ids=[future.id])[0].waiting_for
    assert site.client.submit("Say it [[sim: raw=no]]", same_digest=True).result(30).text == "no"
    assert not future.done()
    site.sim.models[0] = old
    assert future.result(30).text == "yes"


def test_a_model_that_somebody_else_loads_is_shown_while_it_is_there(site: Site) -> None:
    assert site.worker().foreign == ""
    site.sim.faults.add(Fault(FaultKind.FOREIGN_CLIENT, model=THEIRS, num_ctx=1_024))
    eventually(lambda: site.worker().foreign == f"{THEIRS} is loaded there, not for this broker", what="it is seen")
    site.sim.restart()  # what was loaded is gone with it
    eventually(lambda: site.worker().foreign == "", what="its end is seen")
