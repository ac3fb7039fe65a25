"""The whole agent in a thread, against a broker by hand, a simulated Ollama, and the CLI's stand-in."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from koubou_agent.agent import Agent
from koubou_agent.config import AgentConfig, agent_config
from koubou_agent.core.core import EXIT_REMOVED
from koubou_agent.effects import Exit
from koubou_agent.spool import Spool
from koubou_common.errors import ErrorClass
from koubou_common.home import Home
from koubou_common.keys import KeyPair, write_public
from koubou_common.messages import (
    Abort,
    BlobChunk,
    BlobGet,
    BlobMissing,
    Failure,
    Goodbye,
    Removed,
    Result,
    ResultStored,
)
from koubou_common.messages.limits import CHUNK_BYTES, CHUNKS_OUTSTANDING
from koubou_common.messages.values import (
    AbortReason,
    Body,
    Disposition,
    File,
    Option,
    Role,
    WorkerConfig,
    WorkerLimits,
)
from koubou_simulator.ollama import Fault, FaultKind, SimulatedOllama, model_named
from support.agent_play import a_body, a_dispatch, a_success, uid
from support.cli import stand_in_python
from support.fake_broker import FakeBroker
from support.waiting import eventually

MODEL = "qwen2.5-coder:1.5b"
SLOW_MODEL = "qwen3:8b"  # 1,000 tokens a second
ONE_SECOND = b"[[sim: length=1000]]"
WORKER = WorkerConfig(
    "lan_001", MODEL, ("*",), slots=1, limits=WorkerLimits(load_s=10, first_token_s=10, idle_s=10, total_s=20)
)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stand_in_python(tmp_path_factory.mktemp("home"))


@pytest.fixture
def sim() -> Iterator[SimulatedOllama]:
    roomy = replace(model_named(MODEL, "tiny"), train_ctx=4_000_000)
    with SimulatedOllama(models=[roomy, model_named(SLOW_MODEL, "fast")]) as simulated:
        yield simulated


@pytest.fixture
def broker() -> Iterator[FakeBroker]:
    with FakeBroker(WORKER) as made:
        yield made


class Office:
    """A home with the settings of an agent, and the agent's thread."""

    def __init__(self, folder: Path, broker: FakeBroker, sim: SimulatedOllama, python: Path) -> None:
        self.home = Home(folder)
        self.home.create()
        self.home.config_file("agent").write_text(
            f"worker_id: lan_001\nbroker_addresses: ['{broker.address}']\n"
            f"ollama_url: {sim.url}\ncli_python: {python}\nslots_ceiling: 1\n"
        )
        write_public(self.home.public_key_file("broker"), broker.pair.public)
        self.exit: Exit | None = None

    @property
    def config(self) -> AgentConfig:
        return agent_config(self.home)

    @contextmanager
    def agent(self, pair: KeyPair) -> Iterator[tuple[Agent, threading.Thread]]:
        agent = Agent(self.config, pair)
        thread = threading.Thread(target=self._run, args=(agent,))
        thread.start()
        try:
            yield agent, thread
        finally:
            agent.stop(0)
            agent.stop(0)  # a second one does not wait for the broker
            thread.join(20)
            assert not thread.is_alive()

    def _run(self, agent: Agent) -> None:
        self.exit = agent.run()


@pytest.fixture
def office(tmp_path: Path, broker: FakeBroker, sim: SimulatedOllama, python: Path) -> Office:
    return Office(tmp_path, broker, sim, python)


def ready(broker: FakeBroker) -> None:
    """The agent has looked at its box and offers its slot."""
    while True:
        heartbeat = broker.expect_heartbeat(0)
        if heartbeat.status.free_slots == 1:
            return


def dispatched(
    broker: FakeBroker,
    prompt: bytes | Body,
    number: int = 1,
    files: tuple[File, ...] = (),
    model: str = MODEL,
) -> None:
    body = Body(hashlib.sha256(prompt).digest(), len(prompt), prompt) if isinstance(prompt, bytes) else prompt
    broker.send(
        replace(a_dispatch(number, session=broker.session), prompt=body, files=files, model=model, target="out.py")
    )


def stored(broker: FakeBroker, number: int = 1) -> None:
    broker.send(ResultStored(uid(number), Disposition.RECORDED))


def test_a_dispatch_becomes_a_result_with_its_text_inside(office: Office, broker: FakeBroker) -> None:
    with office.agent(broker.enrolled()):
        ready(broker)
        dispatched(broker, b"hello [[sim: raw=print(1)]]")
        result = broker.expect(Result)
        assert result.raw.inline == b"print(1)"
        assert result.attempt_uid == uid(1)
        assert result.status.free_slots == 1
        assert result.status.last_dispatch == 1
        assert len(Spool(office.config.spool_dir).load()) == 1
        stored(broker)
        while broker.expect_heartbeat(0).status.spooled:
            pass
        assert Spool(office.config.spool_dir).load() == []
    assert office.exit == Exit(0, "stopped")


def test_large_inputs_are_pulled_in_pieces_and_kept(office: Office, broker: FakeBroker) -> None:
    prompt = b"hello [[sim: raw=short]]" + b"x" * CHUNK_BYTES
    content = bytes(range(32, 127)) * 25_000  # five pieces
    broker.worker = replace(WORKER, options=(Option("num_ctx", 2_000_000), Option("num_predict", 1_000)))
    with office.agent(broker.enrolled()):
        ready(broker)
        dispatched(broker, a_body(prompt), files=(File("a.txt", a_body(content)),))
        for index in (0, 1):
            assert broker.expect(BlobGet).index == index
        for index in (0, 1):
            piece(broker, prompt, index)
        for index in range(CHUNKS_OUTSTANDING):
            assert broker.expect(BlobGet).index == index
        for index in range(CHUNKS_OUTSTANDING):
            piece(broker, content, index)
        piece(broker, content, broker.expect(BlobGet).index)
        assert broker.expect(Result).raw.inline == b"short"
        stored(broker)
    kept = sorted(path.stat().st_size for path in office.config.cache_dir.iterdir())
    assert kept == sorted([len(prompt), len(content)])


def test_large_outputs_are_given_in_pieces(office: Office, broker: FakeBroker) -> None:
    said = b"x" * (CHUNK_BYTES + 1000)
    Spool(office.config.spool_dir).write(a_success(1, said), said)
    with office.agent(broker.enrolled()):
        result = broker.expect(Result)
        assert result.raw == a_body(said)
        for index in (0, 1):
            broker.send(BlobGet(result.raw.sha256, index))
        pieces = [broker.expect(BlobChunk).data for _ in range(2)]
        assert b"".join(pieces) == said
        broker.send(BlobGet(b"?" * 32, 0))
        broker.expect(BlobMissing)
        stored(broker)
        eventually(lambda: not Spool(office.config.spool_dir).load())
        broker.send(BlobGet(result.raw.sha256, 0))
        broker.expect(BlobMissing)  # forgotten with the outcome


def piece(broker: FakeBroker, content: bytes, index: int) -> None:
    data = content[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]
    broker.send(BlobChunk(hashlib.sha256(content).digest(), index, data))


def test_an_input_that_the_broker_lacks_ends_the_attempt(office: Office, broker: FakeBroker) -> None:
    with office.agent(broker.enrolled()):
        ready(broker)
        dispatched(broker, b"hello", files=(File("a.txt", a_body(b"gone")),))
        broker.send(BlobMissing(broker.expect(BlobGet).sha256))
        assert broker.expect(Failure).error_class is ErrorClass.INPUTS_UNAVAILABLE


def test_an_aborted_attempt_disappears_from_the_heartbeats(
    office: Office, broker: FakeBroker, sim: SimulatedOllama
) -> None:
    sim.faults.add(Fault(FaultKind.STALL, after=3))
    with office.agent(broker.enrolled()):
        ready(broker)
        dispatched(broker, b"hello")
        while broker.expect_heartbeat(1).status.running[0].tokens < 1:
            pass
        broker.send(Abort(uid(1), AbortReason.CANCELLED))
        assert broker.expect_heartbeat(0).status.spooled == ()
        ready(broker)


def test_a_result_outlives_the_agent_and_is_delivered_by_the_next(office: Office, broker: FakeBroker) -> None:
    pair = broker.enrolled()
    with office.agent(pair):
        ready(broker)
        dispatched(broker, b"hello [[sim: raw=kept]]")
        broker.expect(Result)
    broker.expect(Goodbye)
    with office.agent(pair):
        result = broker.expect(Result)
        assert result.raw.inline == b"kept"
        assert broker.hellos[-1].status.spooled == (uid(1),)
        assert broker.hellos[-1].boot_id != broker.hellos[0].boot_id


def test_work_goes_on_without_a_broker_and_is_delivered_to_the_next_one(office: Office, broker: FakeBroker) -> None:
    pair = broker.enrolled()
    with office.agent(pair):
        ready(broker)
        dispatched(broker, ONE_SECOND, model=SLOW_MODEL)
        broker.expect_heartbeat(1)
        broker.stop()
        eventually(lambda: Spool(office.config.spool_dir).load(), what="the result is in the spool")
        with FakeBroker(WORKER, address=broker.address, pair=broker.pair) as later:
            later.epoch = broker.epoch + 1
            later.access.allow(pair.public, "lan_001", Role.WORKER)
            assert later.expect(Result, 30).attempt_uid == uid(1)
            assert later.hellos[-1].status.spooled == (uid(1),)


def test_sigterm_finishes_what_runs_and_says_goodbye(office: Office, broker: FakeBroker) -> None:
    with office.agent(broker.enrolled()) as (agent, thread):
        ready(broker)
        dispatched(broker, ONE_SECOND, model=SLOW_MODEL)
        broker.expect_heartbeat(1)
        agent.stop(20)
        broker.expect(Result)
        stored(broker)
        assert broker.expect(Goodbye).status.running == ()
        thread.join(10)
        assert not thread.is_alive()
    assert office.exit == Exit(0, "stopped")


def test_what_does_not_finish_in_time_is_handed_back(office: Office, broker: FakeBroker, sim: SimulatedOllama) -> None:
    sim.faults.add(Fault(FaultKind.STALL, after=3))
    with office.agent(broker.enrolled()) as (agent, _):
        ready(broker)
        dispatched(broker, b"hello")
        broker.expect_heartbeat(1)
        agent.stop(0.2)
        assert broker.expect(Failure).error_class is ErrorClass.DRAIN


def test_a_removed_worker_wipes_its_cache_and_ends_with_a_clear_word(office: Office, broker: FakeBroker) -> None:
    with office.agent(broker.enrolled()) as (_, thread):
        ready(broker)
        dispatched(broker, b"hello", files=(File("a.txt", a_body(b"secret")),))
        broker.expect(BlobGet)
        piece(broker, b"secret", 0)
        broker.expect(Result)
        assert list(office.config.cache_dir.iterdir())
        broker.send(Removed())
        thread.join(15)
        assert not thread.is_alive()
    assert office.exit is not None
    assert office.exit.code == EXIT_REMOVED
    assert list(office.config.cache_dir.iterdir()) == []
    assert len(Spool(office.config.spool_dir).load()) == 1


def test_an_ollama_that_is_down_is_told_and_no_slot_is_offered(
    office: Office, broker: FakeBroker, sim: SimulatedOllama
) -> None:
    sim.stop()
    with office.agent(broker.enrolled()):
        while True:
            heartbeat = broker.expect_heartbeat(0)
            if heartbeat.health is not None and "nothing answers" in heartbeat.health.issue:
                break
        assert not heartbeat.health.can_work
        assert heartbeat.status.free_slots == 0


def test_a_full_disk_is_told_and_the_result_is_delivered_from_memory(office: Office, broker: FakeBroker) -> None:
    with office.agent(broker.enrolled()):
        ready(broker)
        blocker = office.config.spool_dir / f"{uid(1)}.outcome.partial"
        blocker.mkdir()
        dispatched(broker, b"hello [[sim: raw=kept]]")
        assert broker.expect(Result).raw.inline == b"kept"
        heartbeat = broker.expect_heartbeat(0)
        assert heartbeat.health is not None
        assert "cannot keep results" in heartbeat.health.issue
        assert heartbeat.status.free_slots == 0
        blocker.rmdir()
        stored(broker)
        ready(broker)
