"""koubou-ctl purge and parked, against a whole broker."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from koubou_common.messages import ResultStored
from koubou_common.messages.values import Disposition
from support.broker_play import BrokerPlay, Peer, a_broker, a_result, serve_chunk, work_one
from support.ctl import Ctl


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[BrokerPlay]:
    with a_broker(tmp_path / "main") as broker:
        yield broker


@pytest.fixture
def agent(broker: BrokerPlay) -> Iterator[Peer]:
    with broker.agent() as agent:
        yield agent


@pytest.fixture
def ctl(broker: BrokerPlay) -> Ctl:
    return Ctl(broker.home.root)


@pytest.fixture
def mika(ctl: Ctl, tmp_path: Path) -> Ctl:
    mika = Ctl(tmp_path / "mika")
    assert mika("join", "-", stdin=ctl("keys", "invite", "mika", "-q").raw).code == 0
    return mika


def done(ctl: Ctl, agent: Peer, text: bytes) -> int:
    """A task with this prompt, and an answer that has it too."""
    task_id = int(ctl("submit", text.decode()).out)
    assert work_one(agent, b"answer: " + text).task_id == task_id
    return task_id


def files_with(broker: BrokerPlay, text: bytes) -> list[str]:
    return [path.name for path in broker.home.state.iterdir() if path.is_file() and text in path.read_bytes()]


def test_the_text_of_a_task_is_gone_and_result_says_so(ctl: Ctl, broker: BrokerPlay, agent: Peer) -> None:
    secret, other = done(ctl, agent, b"the secret recipe"), done(ctl, agent, b"something else")
    assert files_with(broker, b"the secret recipe")
    ran = ctl("purge", str(secret), "--yes")
    assert (ran.code, ran.out) == (0, "purged 1 task: 2 texts, 0.0 MiB\n")
    assert files_with(broker, b"the secret recipe") == []
    gone = ctl("result", str(secret), "--json")
    assert (gone.code, gone.error["code"]) == (5, "not_found")
    assert "no longer kept" in gone.error["message"]
    assert ctl("retry", str(secret)).code == 7
    assert "were removed" in ctl("show", str(secret)).out
    assert ctl("result", str(other)).raw == b"answer: something else"
    with closing(sqlite3.connect(f"file:{broker.home.state / 'koubou.db'}?mode=ro", uri=True)) as database:
        audited = database.execute("SELECT actor, subject FROM audit WHERE action = 'purge'").fetchall()
    assert audited == [("operator", f"task {secret}")]


def test_an_output_that_another_task_has_too_is_gone_for_the_purged_one(ctl: Ctl, agent: Peer) -> None:
    first = int(ctl("submit", "one").out)
    work_one(agent, b"the same answer")
    second = int(ctl("submit", "two").out)
    work_one(agent, b"the same answer")
    ran = ctl("purge", str(first), "--yes", "--json")
    assert (ran.data["texts"], ran.data["shared"]) == (1, 1)
    assert ctl("result", str(first)).code == 5
    assert ctl("result", str(second)).raw == b"the same answer"


def test_the_whole_record_goes_with_history(ctl: Ctl, broker: BrokerPlay, agent: Peer) -> None:
    task_id = done(ctl, agent, b"the secret recipe")
    ran = ctl("purge", str(task_id), "--history", "--yes", "--json")
    assert ran.data["tasks"] == 1
    assert ctl("show", str(task_id)).code == 5
    assert files_with(broker, b"the secret recipe") == []
    assert int(ctl("submit", "again").out) > task_id


def test_what_has_not_ended_is_refused_by_name(ctl: Ctl, agent: Peer) -> None:
    ended = done(ctl, agent, b"one")
    waiting = int(ctl("submit", "two").out)
    agent.drain()
    ran = ctl("purge", str(ended), str(waiting), "--yes")
    assert ran.code == 7
    assert f"task {waiting} was left as it is: is running" in ran.err
    assert "purged 1 task" in ran.out
    assert ctl("result", str(waiting), "--json").error["code"] == "refused"


def test_a_batch_is_purged_by_its_name(ctl: Ctl, agent: Peer, tmp_path: Path) -> None:
    lines = "".join(f'{{"prompt": "text {number}"}}\n' for number in range(3))
    assert ctl("submit", "--jsonl", "-", stdin=lines.encode()).code == 0
    for number in range(3):
        work_one(agent, b"answer %d" % number)
    assert ctl("purge", "b1", "--yes", "--json").data["texts"] == 6


def test_a_client_purges_its_own_and_an_operator_everybodys(ctl: Ctl, mika: Ctl, agent: Peer) -> None:
    theirs, mine = done(ctl, agent, b"theirs"), done(mika, agent, b"mine")
    assert mika("purge", str(theirs), "--yes").code == 5
    time.sleep(0.01)  # older than nothing: by the clock of milliseconds
    assert mika("purge", "--older-than", "0.001", "--yes", "--json").data["tasks"] == 1
    assert mika("result", str(mine)).code == 5
    assert ctl("result", str(theirs)).code == 0
    assert ctl("purge", "--older-than", "0.001", "--yes", "--json").data["tasks"] == 1
    assert ctl("result", str(theirs)).code == 5


def test_what_ended_lately_is_not_old(ctl: Ctl, agent: Peer) -> None:
    task_id = done(ctl, agent, b"new")
    assert ctl("purge", "--older-than", "1h", "--yes").out == "purged 0 tasks: 0 texts, 0.0 MiB\n"
    assert ctl("purge", str(task_id), "--older-than", "1h", "--yes", "--json").data["tasks"] == 0
    assert ctl("result", str(task_id)).code == 0


def test_nobody_purges_by_accident(ctl: Ctl, agent: Peer) -> None:
    task_id = done(ctl, agent, b"one")
    assert ctl("purge", str(task_id)).code == 7
    assert ctl("purge", str(task_id), stdin=b"n\n", is_terminal=True).code == 7
    assert ctl("result", str(task_id)).code == 0
    assert ctl("purge", str(task_id), stdin=b"y\n", is_terminal=True).code == 0
    assert ctl("result", str(task_id)).code == 5


@pytest.mark.parametrize("arguments", [(), ("1", "--bodies", "--history")])
def test_what_makes_no_sense_is_a_usage_error(ctl: Ctl, arguments: tuple[str, ...]) -> None:
    assert ctl("purge", *arguments, "--yes").code == 2


def test_a_purged_text_may_be_submitted_again(ctl: Ctl, agent: Peer) -> None:
    text = b"word " * 100_000
    first = int(ctl("submit", "-", stdin=text).out)
    work_one(agent, b"one")
    assert ctl("purge", str(first), "--yes", "--json").data["texts"] == 2
    second = int(ctl("submit", "-", stdin=text).out)
    work_one(agent, b"two")
    assert ctl("result", str(second)).raw == b"two"


def test_parked_results_are_listed_and_fetched(ctl: Ctl, mika: Ctl, agent: Peer, tmp_path: Path) -> None:
    assert ctl("parked").out == "Nothing is parked.\n"
    small, large = "0" * 31 + "1", "0" * 31 + "2"
    for uid, text, is_inline in ((small, b"a small text", True), (large, b"word " * 100_000, False)):
        agent.say(a_result(uid, text, inline=is_inline, last=0))
        if not is_inline:
            serve_chunk(agent, text)
        assert agent.next(ResultStored).disposition is Disposition.PARKED
    header, *rows = ctl("parked").out.splitlines()
    assert header.split() == ["UID", "WORKER", "AGE", "BYTES", "WHAT"]
    assert sorted(row.split()[0] for row in rows) == [small, large]
    assert ctl("parked", small).raw == b"a small text"
    assert ctl("parked", small, "--json").data["text"] == "a small text"
    assert ctl("parked", large, "-o", str(tmp_path / "out.txt")).code == 2, "outputs stay below the current folder"
    assert ctl("parked", large).raw == b"word " * 100_000
    assert ctl("parked", "f" * 32).code == 5
    assert mika("parked").code == 4


def test_a_parked_text_is_written_to_a_file_of_ones_own(
    ctl: Ctl, agent: Peer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    uid = "0" * 31 + "1"
    agent.ask(a_result(uid, b"a text", last=0), ResultStored)
    assert ctl("parked", uid, "-o", "out.txt").code == 0
    assert (tmp_path / "out.txt").read_bytes() == b"a text\n"
    (tmp_path / "other.txt").write_text("precious")
    assert ctl("parked", uid, "-o", "other.txt").code == 7
    assert ctl("parked", "-o", "x").code == 2
