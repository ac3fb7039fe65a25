"""The whole agent in a thread, against a broker by hand, a simulated Ollama, and the CLI's stand-in."""

import hashlib
import logging
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from koubou_agent import box as box_module
from koubou_agent.cli_env import CliInfo
from koubou_agent.core.core import EXIT_REMOVED
from koubou_agent.effects import Exit
from koubou_agent.runner import Runner, RunReport, RunRequest
from koubou_agent.spool import Spool
from koubou_common.errors import Code, ErrorClass, KoubouError
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
    AgentHealth,
    AgentStatus,
    Body,
    Disposition,
    File,
    Option,
    Role,
    WorkerConfig,
    WorkerLimits,
)
from koubou_simulator.ollama import Fault, FaultKind, SimulatedOllama, model_named
from support.agent_house import AgentHouse
from support.agent_play import a_body, a_dispatch, a_success, uid
from support.cli_runs import running
from support.fake_broker import FakeBroker
from support.waiting import eventually

MODEL = "qwen2.5-coder:1.5b"
SLOW_MODEL = "qwen3:8b"  # 1,000 tokens a second
ONE_SECOND = b"[[sim: length=1000]]"
WORKER = WorkerConfig(
    "lan_001", MODEL, ("*",), slots=1, limits=WorkerLimits(load_s=10, first_token_s=10, idle_s=10, total_s=20)
)


@pytest.fixture
def sim() -> Iterator[SimulatedOllama]:
    roomy = replace(model_named(MODEL, "tiny"), train_ctx=4_000_000)
    with SimulatedOllama(models=[roomy, model_named(SLOW_MODEL, "fast")]) as simulated:
        yield simulated


@pytest.fixture
def broker() -> Iterator[FakeBroker]:
    with FakeBroker(WORKER) as made:
        yield made


class LentRunner(Runner):
    """One warm runner for all agents here: starting it takes half a second and is tested elsewhere."""

    def __init__(self, lender: Runner) -> None:
        self._lender = lender

    def start(self) -> None:
        pass

    def stop(self) -> None:
        pass

    def describe(self) -> CliInfo:
        return self._lender.describe()

    def run(self, request: RunRequest, cancel: threading.Event) -> RunReport:
        return self._lender.run(request, cancel)


@pytest.fixture(scope="module")
def lender(stand_in: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    with running(stand_in, tmp_path_factory.mktemp("lender")) as started:
        yield started


@pytest.fixture(autouse=True)
def lent_runner(lender: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(box_module, "Runner", lambda _python, _work_dir: LentRunner(lender))


@pytest.fixture
def office(tmp_path: Path, broker: FakeBroker, sim: SimulatedOllama, stand_in: Path) -> AgentHouse:
    return AgentHouse(
        tmp_path, broker_address=broker.address, broker_key=broker.pair.public, ollama_url=sim.url, python=stand_in
    )


def ready(broker: FakeBroker) -> None:
    """The agent has looked at its box and offers its slot."""
    while True:
        heartbeat = broker.expect_heartbeat(0)
        if heartbeat.status.free_slots == 1:
            return


def told(broker: FakeBroker, issue: str) -> tuple[AgentHealth, AgentStatus]:
    """What the agent says once it knows of an issue: in its Hello, or in a heartbeat later."""
    while True:
        heartbeat = broker.expect_heartbeat(0)
        for said in (broker.hellos[-1], heartbeat):
            if said.health is not None and issue in said.health.issue:
                return said.health, said.status


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


def kept(office: AgentHouse) -> list[str]:
    """The outcomes in the spool. Looked at only: loading a spool clears what is half written, and it is not ours."""
    return [path.stem for path in office.config.spool_dir.glob("*.outcome")]


def test_a_dispatch_becomes_a_result_with_its_text_inside(office: AgentHouse, broker: FakeBroker) -> None:
    with office.agent(broker.enrolled()):
        ready(broker)
        dispatched(broker, b"hello [[sim: raw=print(1)]]")
        result = broker.expect(Result)
        assert result.raw.inline == b"print(1)"
        assert result.attempt_uid == uid(1)
        assert result.status.free_slots == 1
        assert result.status.last_dispatch == 1
        assert kept(office) == [uid(1)]
        stored(broker)
        while broker.expect_heartbeat(0).status.spooled:
            pass
        assert kept(office) == []
    assert office.exit == Exit(0, "stopped")


def test_large_inputs_are_pulled_in_pieces_and_kept(office: AgentHouse, broker: FakeBroker) -> None:
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


def test_large_outputs_are_given_in_pieces(office: AgentHouse, broker: FakeBroker) -> None:
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
        eventually(lambda: not kept(office))
        broker.send(BlobGet(result.raw.sha256, 0))
        broker.expect(BlobMissing)  # forgotten with the outcome


def piece(broker: FakeBroker, content: bytes, index: int) -> None:
    data = content[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]
    broker.send(BlobChunk(hashlib.sha256(content).digest(), index, data))


def test_an_input_that_the_broker_lacks_ends_the_attempt(office: AgentHouse, broker: FakeBroker) -> None:
    with office.agent(broker.enrolled()):
        ready(broker)
        dispatched(broker, b"hello", files=(File("a.txt", a_body(b"gone")),))
        broker.send(BlobMissing(broker.expect(BlobGet).sha256))
        assert broker.expect(Failure).error_class is ErrorClass.INPUTS_UNAVAILABLE


def test_an_aborted_attempt_disappears_from_the_heartbeats(
    office: AgentHouse, broker: FakeBroker, sim: SimulatedOllama
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


def test_a_result_outlives_the_agent_and_is_delivered_by_the_next(office: AgentHouse, broker: FakeBroker) -> None:
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


def test_work_goes_on_without_a_broker_and_is_delivered_to_the_next_one(office: AgentHouse, broker: FakeBroker) -> None:
    pair = broker.enrolled()
    with office.agent(pair):
        ready(broker)
        dispatched(broker, ONE_SECOND, model=SLOW_MODEL)
        broker.expect_heartbeat(1)
        broker.stop()
        eventually(lambda: kept(office), 30, what="the result is in the spool")
        with FakeBroker(WORKER, address=broker.address, pair=broker.pair) as later:
            later.epoch = broker.epoch + 1
            later.access.allow(pair.public, "lan_001", Role.WORKER)
            assert later.expect(Result, 30).attempt_uid == uid(1)
            assert later.hellos[-1].status.spooled == (uid(1),)


def test_sigterm_finishes_what_runs_and_says_goodbye(office: AgentHouse, broker: FakeBroker) -> None:
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


def test_what_does_not_finish_in_time_is_handed_back(
    office: AgentHouse, broker: FakeBroker, sim: SimulatedOllama
) -> None:
    sim.faults.add(Fault(FaultKind.STALL, after=3))
    with office.agent(broker.enrolled()) as (agent, _):
        ready(broker)
        dispatched(broker, b"hello")
        broker.expect_heartbeat(1)
        agent.stop(0.2)
        assert broker.expect(Failure).error_class is ErrorClass.DRAIN


def test_a_removed_worker_wipes_its_cache_and_ends_with_a_clear_word(office: AgentHouse, broker: FakeBroker) -> None:
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
    assert kept(office) == [uid(1)]


def test_an_ollama_that_is_down_is_told_and_no_slot_is_offered(
    office: AgentHouse, broker: FakeBroker, sim: SimulatedOllama
) -> None:
    sim.stop()
    with office.agent(broker.enrolled()):
        health, status = told(broker, "nothing answers")
        assert not health.can_work
        assert status.free_slots == 0


@pytest.mark.parametrize("problem", [KoubouError(Code.INTERNAL, "did not start in time"), RuntimeError("a bug")])
def test_a_cli_that_does_not_start_at_first_is_told_and_tried_again(
    office: AgentHouse, broker: FakeBroker, monkeypatch: pytest.MonkeyPatch, problem: Exception
) -> None:
    monkeypatch.setattr(box_module, "PROBE_EVERY_S", 0.2)
    starts: list[Runner] = []

    class LateRunner(Runner):
        def start(self) -> None:
            starts.append(self)
            if len(starts) < 3:
                raise problem
            super().start()

    monkeypatch.setattr(box_module, "Runner", LateRunner)
    with office.agent(broker.enrolled()):
        _, status = told(broker, str(problem))
        assert status.free_slots == 0
        ready(broker)
    assert len(starts) == 3


def test_neither_log_nor_result_tells_what_a_task_is_about(
    office: AgentHouse, broker: FakeBroker, caplog: pytest.LogCaptureFixture
) -> None:
    secrets = ("the hidden plan of the prompt", "the hidden plan of the file", "the hidden plan of the answer")
    prompt, content, answer = (secret.encode() for secret in secrets)
    caplog.set_level(logging.DEBUG)
    pair = broker.enrolled()
    with office.agent(pair):
        ready(broker)
        said = b" [[sim: raw=" + answer + b"]]"
        dispatched(broker, prompt + said, files=(File("a.txt", a_body(content)),))
        broker.expect(BlobGet)
        piece(broker, content, 0)
        result = broker.expect(Result)
        assert result.raw.inline == answer
        stored(broker)
        dispatched(broker, prompt + b" [[sim: fault=crashed]]", 2)
        failure = broker.expect(Failure)
    told = "\n".join([caplog.text, result.log, failure.log, failure.message])
    assert "attempt=" in told
    assert "generation_start" in told, "the log of gemini-repo-cli is there"
    for secret in (*secrets, pair.secret, "/t/"):
        assert secret not in told


def test_a_full_disk_is_told_and_the_result_is_delivered_from_memory(office: AgentHouse, broker: FakeBroker) -> None:
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


def test_what_came_inside_a_dispatch_is_kept_for_the_next_one_but_not_the_small(
    office: AgentHouse, broker: FakeBroker
) -> None:
    common, small = b"c" * 50_000, b"s" * 100
    broker.worker = replace(WORKER, options=(Option("num_ctx", 200_000), Option("num_predict", 1_000)))
    with office.agent(broker.enrolled()):
        ready(broker)
        files = tuple(File(name, replace(a_body(data), inline=data)) for name, data in (("c", common), ("s", small)))
        dispatched(broker, b"hello [[sim: raw=one]]", files=files)
        assert broker.expect(Result).raw.inline == b"one"
        stored(broker)
        assert [path.name for path in office.config.cache_dir.iterdir()] == [hashlib.sha256(common).hexdigest()]
        dispatched(broker, b"hello [[sim: raw=two]]", number=2, files=(File("c", a_body(common)),))
        assert broker.expect(Result).raw.inline == b"two"  # a BlobGet before it would have failed this
        stored(broker, 2)


def test_a_body_that_is_not_what_it_is_called_is_not_kept(office: AgentHouse, broker: FakeBroker) -> None:
    wrong = replace(a_body(b"c" * 50_000), inline=b"d" * 50_000)
    with office.agent(broker.enrolled()):
        ready(broker)
        dispatched(broker, b"hello", files=(File("c", wrong),))
        assert broker.expect(Failure).error_class is ErrorClass.INPUTS_UNAVAILABLE
    assert list(office.config.cache_dir.iterdir()) == []
