"""The real agent for the real broker: the model that cannot stop thinking, the largest task, what breaks and heals."""

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from koubou_agent import agent as agent_module
from koubou_agent import box as box_module
from koubou_agent.agent import Agent
from koubou_agent.doctor import Check, examine
from koubou_client.client import Client
from koubou_client.futures import TaskFailedError
from koubou_client.where import Where
from koubou_common.errors import ErrorClass
from koubou_common.keys import read_key_pair, read_public
from koubou_common.messages.values import Role, TaskState
from koubou_simulator.ollama import Fault, FaultKind, SimSettings, SimulatedOllama, model_named
from koubou_simulator.ollama.log import LoggedRequest
from koubou_simulator.ollama.models import SimModel
from support.agent_house import AgentHouse
from support.broker_play import BrokerPlay, a_broker, a_configuration
from support.cli import children_of
from support.cli_runs import linux
from support.waiting import eventually

THINKER = "gpt-oss:20b"
BROKER = """
bind: tcp://127.0.0.1:0
heartbeat_s: 0.2
retry: {backoff_base_s: 0.05, backoff_cap_s: 0.1}
disk: {reserve_bytes: 1048576, min_free_bytes: 0}
"""
PROMPT_TOKENS_LEAST = 200  # the CLI's own words around a prompt


@dataclass(slots=True)
class Site:
    """A broker, an agent at work, its Ollama, and a person."""

    broker: BrokerPlay
    house: AgentHouse
    agent: Agent
    sim: SimulatedOllama
    client: Client
    before: int = 0  # requests of earlier tests

    def asked(self) -> list[LoggedRequest]:
        """The requests for text."""
        return [one for one in self.sim.requests[self.before :] if one.prompt]

    def doctor(self) -> dict[str, Check]:
        found = examine(self.house.home, worker_id=None, given=None, ollama_url=None)
        return {check.name: check for check in found}


@contextmanager
def a_site(
    folder: Path,
    stand_in: Path,
    *,
    model: SimModel | None = None,
    options: str = "{num_ctx: 4096, num_predict: 512}",
) -> Iterator[Site]:
    offered = model or model_named(THINKER, "tiny")
    workers = f"workers: {{local_workers: [{{worker_id: lan_001, model: '{offered.name}', options: {options}}}]}}"
    with ExitStack() as stack:
        broker = stack.enter_context(a_broker(folder / "broker", a_configuration(BROKER, workers)))
        sim = stack.enter_context(SimulatedOllama(models=[offered]))
        key = read_public(broker.home.public_key_file("broker"))
        house = AgentHouse(
            folder / "box", broker_address=broker.address, broker_key=key, ollama_url=sim.url, python=stand_in
        )
        pair = broker.enrol("lan_001", Role.WORKER)
        house.keep(pair)
        agent, _ = stack.enter_context(house.agent(pair))
        where = Where((broker.address,), key, read_key_pair(broker.home.key_file("operator")))
        client = stack.enter_context(Client(where=where))
        yield Site(broker, house, agent, sim, client)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, stand_in: Path) -> Iterator[Site]:
    with a_site(tmp_path_factory.mktemp("site"), stand_in) as made:
        yield made


@pytest.fixture
def site(shared: Site) -> Iterator[Site]:
    """One for all tests that leave it as it was."""
    shared.before = len(shared.sim.requests)
    yield shared
    shared.sim.faults.clear()


def thinking(site: Site) -> list[tuple[object, object]]:
    return [(one.think, one.options["num_predict"]) for one in site.asked()]


def test_gpt_oss_thinks_low_with_its_allowance_on_top_and_its_thinking_is_counted_apart(site: Site) -> None:
    done = site.client.submit("Write it [[sim: think=300, raw=print(1)]]", target="out.py").result(30)
    assert done.text == "print(1)"
    assert thinking(site) == [("low", 512 + 2048)]
    assert done.task.thinking_tokens == 300
    assert 0 < done.task.output_tokens < 50
    assert done.task.prompt_tokens > PROMPT_TOKENS_LEAST


def test_all_thought_away_is_asked_once_more_with_twice_the_allowance(site: Site) -> None:
    done = site.client.submit("Write it [[sim: think=2700, raw=print(1)]]").result(30)
    assert done.text == "print(1)"
    first, second = thinking(site)
    assert first == ("low", 512 + 2048)
    # 512 + 2 x 2048 does not fit beside the prompt: what the window has, by Ollama's own count.
    assert second == ("low", 4096 - done.task.prompt_tokens)
    assert done.task.thinking_tokens == 2700
    assert done.task.attempts == 1


def test_all_thought_away_twice_is_an_empty_output_with_the_numbers_and_final(site: Site) -> None:
    with pytest.raises(TaskFailedError) as failed:
        site.client.submit("Write it [[sim: think=100000]]").result(30)
    task = failed.value.task
    assert task.error_class is ErrorClass.EMPTY_OUTPUT
    (attempt,) = site.client.story(task.task_id).attempts
    room = 4096 - attempt.metrics.prompt_tokens
    assert f"{room} tokens on thinking" in task.error_message
    assert (attempt.metrics.thinking_tokens, attempt.metrics.output_tokens) == (room, 0)
    assert len(site.asked()) == 2


def test_a_window_beyond_what_the_model_was_trained_for_is_its_trained_length(tmp_path: Path, stand_in: Path) -> None:
    small = replace(model_named(THINKER, "tiny"), train_ctx=2048)
    with a_site(tmp_path, stand_in, model=small, options="{num_ctx: 65536, num_predict: 256}") as site:
        site.client.submit("Write it [[sim: raw=1]]").result(30)
        site.client.submit("Write it again [[sim: raw=2]]").result(30)
        assert {one.options["num_ctx"] for one in site.sim.requests} == {2048}
        assert sum(not one.prompt for one in site.sim.requests) == 1, "loaded once, and known to be"
        story = site.client.story(1)
        assert story.attempts[-1].metrics.num_ctx == 2048
        assert "2048" in site.doctor()["window"].detail


def test_the_default_model_is_loaded_before_the_first_task(site: Site) -> None:
    eventually(lambda: [one for one in site.sim.requests if not one.prompt], what="an empty request loads it")


def test_the_largest_task_arrives_whole(tmp_path: Path, stand_in: Path) -> None:
    roomy = replace(model_named("qwen2.5-coder:1.5b", "tiny"), train_ctx=20_000_000)
    root = tmp_path / "repository"
    names = [f"part {n % 7}/file_{n:03}.txt" for n in range(200)]
    prompt = "Count them [[sim: raw=200]]"
    size = (16 * 2**20 - len(prompt)) // 200
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(f"{number:09} of two hundred\n".encode() * (size // 25))
    large = root / names[7]
    large.write_bytes(large.read_bytes() * 12)  # one of nearly a MiB: two pieces
    (root / names[8]).write_bytes(b"")
    for name in names[9:21]:
        (root / name).write_bytes(b"short\n")
    with a_site(tmp_path, stand_in, model=roomy, options="{num_ctx: 10000000}") as site:
        future = site.client.submit(prompt, files=names, root=root, target="out.txt")
        assert future.result(90).text == "200"
        sent = site.asked()[-1].prompt
        for name in names:
            assert f"### File: {name}\n```\n{(root / name).read_text()}\n```" in sent
        assert len(sent.encode()) > 15 * 2**20


def test_an_ollama_that_comes_and_goes_costs_an_attempt_each_time_and_no_task(
    tmp_path: Path, stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(box_module, "PROBE_EVERY_S", 1.0)
    with a_site(tmp_path, stand_in) as site:
        assert site.client.submit("One [[sim: raw=1]]").result(30).text == "1"
        for number in (2, 3):
            site.sim.faults.add(Fault(FaultKind.RESTART, delay_s=0.7))
            done = site.client.submit(f"More [[sim: raw={number}]]").result(30)
            assert done.text == str(number)
            # Retries come within a tenth of a second here: a box that went on offering its slot would use all five.
            assert done.task.attempts <= 3


@linux
def test_a_template_that_is_killed_costs_an_attempt_and_no_task(site: Site) -> None:
    assert site.client.submit("One [[sim: raw=1]]").result(30).text == "1"
    site.sim.faults.add(Fault(FaultKind.STALL, after=1))
    future = site.client.submit("Two [[sim: raw=2]]")
    eventually(lambda: len(site.asked()) == 2, what="the second is being answered")
    (template,) = [pid for pid in children_of(os.getpid()) if "serve" in command(pid)]
    site.sim.faults.clear()
    os.kill(template, signal.SIGKILL)
    assert future.result(30).text == "2"
    assert [str(one.error_class) for one in site.client.story(future.id).attempts] == ["cli_failed", "None"]


def command(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")


def test_a_stalled_model_is_found_and_the_slot_is_free_again(tmp_path: Path, stand_in: Path) -> None:
    with a_site(tmp_path, stand_in, options="{}, network_timeout: 1") as site:
        site.sim.faults.add(Fault(FaultKind.STALL, after=1))
        future = site.client.submit("One [[sim: raw=1]]", max_attempts=1)
        with pytest.raises(TaskFailedError, match="no token came for 1 s"):
            future.result(30)
        assert site.client.story(future.id).attempts[-1].error_class is ErrorClass.STALLED
        assert site.client.submit("Two [[sim: raw=2]]").result(30).text == "2"


def test_old_inputs_leave_the_cache_of_an_agent_without_work(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_module, "_TRIM_EVERY_S", 0.1)
    old = site.house.config.cache_dir / ("0" * 64)
    old.write_bytes(b"a prompt of last week")
    at = time.time() - 8 * 86_400
    os.utime(old, (at, at))
    eventually(lambda: not old.exists())


def test_doctor_looks_at_the_broker_while_the_agent_works(site: Site) -> None:
    site.sim.faults.add(Fault(FaultKind.STALL, after=1))
    future = site.client.submit("One [[sim: raw=1]]")
    eventually(site.asked, what="it is being answered")
    checks = site.doctor()
    assert {name: str(checks[name].finding) for name in ("key", "broker", "version", "clock", "ollama", "models")} == {
        "key": "ok",
        "broker": "ok",
        "version": "ok",
        "clock": "ok",
        "ollama": "ok",
        "models": "ok",
    }
    assert "allows 2 tasks at a time, this box 1" in checks["slots"].detail
    assert "model" not in checks
    assert site.client.tasks(task_ids=[future.id])[0].state is TaskState.RUNNING
    assert site.client.status().workers[0].connected
    assert site.client.story(future.id).task.attempts == 1
    site.client.cancel([future.id])


def test_doctor_names_the_model_that_the_worker_lacks_and_a_clock_that_is_off(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SimulatedOllama(SimSettings(), [model_named("llama3.2:3b", "tiny")]) as other:
        found = examine(site.house.home, worker_id=None, given=None, ollama_url=other.url)
    (missing,) = [check for check in found if check.name == "model"]
    assert (str(missing.finding), missing.fix) == ("fault", f"ollama pull {THINKER}")
    monkeypatch.setattr("koubou_agent.doctor.__version__", "0.0.1")
    honest = time.time
    monkeypatch.setattr("koubou_agent.doctor.time.time", lambda: honest() - 60)
    with ThreadPoolExecutor(1) as pool:
        checks = pool.submit(site.doctor).result()
    assert str(checks["version"].finding) == "warning"
    assert str(checks["clock"].finding) == "warning"
    assert "60 s ahead of ours" in checks["clock"].detail
