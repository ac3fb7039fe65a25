"""koubou-ctl against a real broker: the operator of the same home, a client from elsewhere, an agent by hand."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from koubou_common.client_settings import ClientSettings
from koubou_common.codec import decode
from koubou_common.errors import ErrorClass
from koubou_common.home import Home
from koubou_common.keys import read_public, write_key_pair
from koubou_common.messages import Abort, BlobChunk, BlobGet, Dispatch, Failure, Welcome
from koubou_common.messages.limits import CHUNK_BYTES
from koubou_common.messages.values import Metrics, Role
from support.broker_play import MODEL, BrokerPlay, Peer, a_broker, a_result, a_status, an_agent_hello
from support.ctl import Ctl
from support.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

MUCH = b"x" * 700_000  # too much for one message


class HandAgent:
    """Answers every prompt with itself in capitals; `fail`, `hang` and `much` are taken by their word."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._stopping = threading.Event()
        self.aborted: list[str] = []
        self._thread = threading.Thread(target=self._run, name="hand-agent")

    def start(self) -> None:
        self._peer.ask(an_agent_hello(), Welcome)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            if not self._peer.socket.poll(20):
                continue
            match decode(self._peer.socket.recv()).message:
                case Dispatch() as dispatch:
                    self._answer(dispatch)
                case BlobGet() as ask:
                    piece = MUCH[ask.index * CHUNK_BYTES : (ask.index + 1) * CHUNK_BYTES]
                    self._peer.say(BlobChunk(ask.sha256, ask.index, piece))
                case Abort() as abort:
                    self.aborted.append(abort.attempt_uid)
                case _:
                    continue

    def _answer(self, dispatch: Dispatch) -> None:
        prompt = dispatch.prompt.inline or b"(large)"
        uid, number = dispatch.attempt_uid, dispatch.number
        if prompt == b"fail":
            status = a_status(last=number)
            self._peer.say(Failure(uid, ErrorClass.EMPTY_OUTPUT, "0 of 4096 tokens", Metrics(), "the log", status))
        elif prompt == b"much":
            self._peer.say(a_result(uid, MUCH, inline=False, last=number))
        elif prompt != b"hang":
            self._peer.say(a_result(uid, prompt.upper(), last=number))


@pytest.fixture
def play(tmp_path: Path) -> Iterator[BrokerPlay]:
    with a_broker(tmp_path / "home") as play:
        yield play


@pytest.fixture
def ctl(play: BrokerPlay) -> Ctl:
    """The operator of the same home: no set-up at all."""
    return Ctl(play.home.root)


@pytest.fixture
def agent(play: BrokerPlay) -> Iterator[HandAgent]:
    with play.peer(play.enrol("lan_001", Role.WORKER)) as peer:
        agent = HandAgent(peer)
        agent.start()
        try:
            yield agent
        finally:
            agent.stop()


@pytest.fixture(autouse=True)
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "repo"
    folder.mkdir()
    (folder / "a.py").write_text("x = 1\n")
    monkeypatch.chdir(folder)
    return folder


@contextmanager
def a_client(play: BrokerPlay, root: Path, name: str) -> Iterator[Ctl]:
    """A person's laptop that has joined."""
    home = Home(root)
    home.create()
    write_key_pair(home.key_file(name), play.enrol(name, Role.CLIENT))
    server = read_public(play.home.public_key_file("broker"))
    settings = ClientSettings((play.address,), server, Path(f"keys/{name}.key"))
    home.config_file("client").write_text(settings.to_yaml())
    yield Ctl(root)


@pytest.mark.usefixtures("agent")
def test_a_task_goes_in_and_its_text_comes_back(ctl: Ctl, repo: Path) -> None:
    ran = ctl("submit", "say hello", "-f", "a.py", "-o", "out/hello.md", "--wait")
    assert ran.code == 0, ran.err
    assert (repo / "out/hello.md").read_text() == "SAY HELLO\n"
    assert ctl("result", "last").out == "SAY HELLO"
    assert ctl("submit", "again", "--wait").out == "AGAIN"
    assert ctl("ps").out.splitlines()[1:] == []
    assert len(ctl("ps", "-a", "-q").out.split()) == 2


@pytest.mark.usefixtures("agent")
def test_a_task_in_json_is_that_of_the_contract(ctl: Ctl) -> None:
    task = ctl("submit", "hello", "--wait", "--json").data
    assert task["output"] == "HELLO"
    assert (task["state"], task["worker"], task["attempts"], task["error"]) == ("succeeded", "lan_001", 1, None)
    assert task["wait_s"] >= 0
    assert task["run_s"] >= 0
    assert task["submitted_at"] <= task["started_at"] <= task["finished_at"]


@pytest.mark.usefixtures("agent")
def test_a_failure_reaches_the_person_with_its_story(ctl: Ctl) -> None:
    ran = ctl("submit", "fail", "--wait")
    assert ran.code == 1
    assert "the model answered nothing" in ran.err
    assert "0 of 4096 tokens" in ran.err
    story = ctl("show", "last", "--json").data
    assert story["task"]["error"]["class"] == "empty_output"
    assert [attempt["state"] for attempt in story["attempts"]] == ["failed"]
    assert "lan_001" in story["attempts"][0]["placement"]
    assert [event["after"] for event in story["events"]][-1] == "failed"
    assert "the log" in ctl("logs", "last").out
    assert ctl("retry", "last").code == 0
    assert ctl("wait", "last").code == 1


@pytest.mark.usefixtures("agent")
def test_a_batch_goes_in_and_its_files_come_back(ctl: Ctl, repo: Path) -> None:
    tasks = [{"custom_id": str(n), "prompt": f"task {n}", "out": f"o/{n}.md", "files": ["a.py"]} for n in range(700)]
    data = "".join(json.dumps(task) + "\n" for task in tasks).encode()
    assert ctl("submit", "--jsonl", "-", stdin=data).out == "b1\n"
    assert ctl("wait", "b1").code == 0
    ran = ctl("result", "b1", "--write")
    assert ran.code == 0, ran.err
    assert (repo / "o/699.md").read_text() == "TASK 699\n"
    assert ctl("result", "b1.5").out == "TASK 4"
    assert len(ctl("show", "b1", "--json").data) == 700


@pytest.mark.usefixtures("agent")
def test_large_bodies_pass_both_ways(ctl: Ctl) -> None:
    assert ctl("submit", "-", "--wait", stdin=b"y" * 1_000_000).out == "(LARGE)"
    assert ctl("submit", "much", "--wait").raw == MUCH


def test_a_cancelled_task_is_aborted_and_recorded(ctl: Ctl, agent: HandAgent) -> None:
    task_id = ctl("submit", "hang").out.strip()
    eventually(lambda: ctl("show", task_id, "--json").data["task"]["state"] == "running")
    assert ctl("cancel", task_id).out == f"task {task_id}: cancelled\n"
    eventually(lambda: agent.aborted)
    ran = ctl("result", task_id)
    assert ran.code == 1
    assert "was cancelled" in ran.err
    assert ctl("cancel", task_id).out == f"task {task_id}: had cancelled before\n"


def test_a_task_that_nobody_can_run_yet_says_for_whom_it_waits(ctl: Ctl) -> None:
    ctl("submit", "patience")
    assert "lan_001" in ctl("ps").out.splitlines()[1]
    assert ctl("wait", "last", "--wait-timeout", "0.2").code == 3
    assert ctl("result", "last").code == 7


@pytest.mark.usefixtures("agent")
def test_a_dry_run_weighs_the_workers(ctl: Ctl) -> None:
    plan = ctl("submit", "hello", "--dry-run", "--json").data
    assert plan["model"] == MODEL
    assert [(one["worker"], one["available"]) for one in plan["candidates"]] == [("lan_001", True), ("lan_002", False)]
    assert ctl("ps", "-a", "-q").out == ""


def test_a_task_is_explained_while_it_waits_while_it_runs_and_afterwards(ctl: Ctl, agent: HandAgent) -> None:
    slots = ctl("workers", "list", "--json").data[0]["slots"]
    for _ in range(slots):
        ctl("submit", "hang")
    ctl("submit", "hello", "--worker", "lan_001")

    def is_busy() -> bool:
        return all(task["state"] == "running" for task in ctl("ps", "--json").data[1:])

    eventually(is_busy, what="every slot is taken")
    running = ctl("explain", "1", "--json").data
    decision = running["attempts"][0]["decision"]
    assert [one["worker"] for one in decision["candidates"]] == ["lan_001"]
    assert decision["candidates"][0]["parts"]["factor"] > 0
    assert (decision["reasons"], running["waiting"]) == ({"not_connected": 1}, None)
    waiting = ctl("explain", "last", "--json").data["waiting"]
    assert {one["worker"]: one["code"] for one in waiting["candidates"]} == {
        "lan_001": "busy",
        "lan_002": "other_worker",
    }
    assert (waiting["outlook"], waiting["ahead"]) == ("waits_for_slot", 0)
    assert waiting["starts_in_s"] > 0
    ctl("cancel", "1")
    eventually(lambda: agent.aborted, what="the abort")
    told = ctl("explain", "1").out
    assert "Attempt 1 on lan_001: aborted" in told
    assert "Chosen    lan_001" in told


@pytest.mark.usefixtures("agent")
def test_a_task_that_nobody_can_ever_run_is_explained_with_a_way_out(ctl: Ctl) -> None:
    ctl("workers", "pause", "lan_001")
    ctl("submit", "hello", "-m", MODEL)
    nobody = ctl("explain", "last").out
    assert "No worker that could take it is able to now." in nobody
    assert "koubou-ctl workers resume lan_001" in nobody


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("explain", "4711"), 5, "4711"),
        (("submit", "x", "-m", "nope:1b"), 7, "nope:1b"),
        (("submit", "x", "--worker", "nobody"), 5, "nobody"),
        (("submit", "x", "--label", "gpu=none"), 7, "gpu"),
        (("submit", "x", "--min-context", "9999999"), 7, "9,999,999"),
        (("show", "4711"), 5, "4711"),
        (("show", "b99"), 5, "b99"),
        (("cancel", "b99"), 5, "b99"),
        (("retry", "4711"), 5, "4711"),
    ],
)
def test_what_cannot_be_is_refused_by_name(ctl: Ctl, arguments: tuple[str, ...], code: int, said: str) -> None:
    ran = ctl(*arguments)
    assert ran.code == code, ran.err
    assert said in ran.err


def test_a_key_used_for_another_task_is_refused(ctl: Ctl) -> None:
    assert ctl("submit", "x", "--idempotency-key", "k").code == 0
    assert ctl("submit", "x", "--idempotency-key", "k").out == "1\n"
    refused = ctl("submit", "y", "--idempotency-key", "k")
    assert refused.code == 7
    assert "error[conflict]" in refused.err


def test_a_client_sees_only_its_own_tasks_and_an_operator_all(ctl: Ctl, play: BrokerPlay, tmp_path: Path) -> None:
    with a_client(play, tmp_path / "mika", "mika") as mika, a_client(play, tmp_path / "ken", "ken") as ken:
        task_id = mika("submit", "mine").out.strip()
        assert mika("ps", "-q").out.split() == [task_id]
        assert ken("ps", "-a", "-q").out == ""
        for command in ("show", "result", "logs", "cancel", "retry", "wait"):
            assert ken(command, task_id).code == 5, command
        assert ken("show", "last").code == 5
        assert ctl("ps", "-q").out.split() == [task_id]
        assert mika("status", "--json").data["role"] == "client"
        assert ctl("status", "--json").data["role"] == "operator"


@pytest.mark.usefixtures("agent")
def test_status_shows_the_worker(ctl: Ctl) -> None:
    workers = {worker["id"]: worker["state"] for worker in ctl("status", "--json").data["workers"]}
    assert workers == {"lan_001": "ready", "lan_002": "never seen"}
    assert "lan_001  ready" in ctl("status").out
