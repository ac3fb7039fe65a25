"""Databases that are damaged, gone, foreign or too new: refused at the start with what to do, left as they are."""

import os
import shutil
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from koubou_broker.lock import read_witness
from koubou_common.messages import GetResult, GetTasks, Submitted, TaskResult, Tasks
from koubou_common.messages.values import TaskState
from support.broker_play import a_spec
from support.broker_process import BrokerProcess
from support.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e-disk")]

PAGE_BYTES = 4_096
PROMPTS = 40
PROMPT = b"a prompt of some length " * 400


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose broker has taken tasks and was stopped."""
    with BrokerProcess(tmp_path_factory.mktemp("used") / "home") as broker:
        with broker.peer() as client:
            client.hello()
            for number in range(PROMPTS):
                client.submit(a_spec(PROMPT + str(number).encode()), key=f"k{number}")
        broker.signal(signal.SIGTERM)
        assert broker.finish()[0] == 0
    return broker.home.root


@pytest.fixture
def broker(used: Path, tmp_path: Path) -> Iterator[BrokerProcess]:
    shutil.copytree(used, tmp_path / "home")
    broker = BrokerProcess(tmp_path / "home")
    try:
        yield broker
    finally:
        broker.kill()
        broker.context.destroy(linger=0)


def the_database(broker: BrokerProcess) -> Path:
    return broker.home.state / "koubou.db"


def spoil_header(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"\xff" * 100)


def spoil_tables(path: Path) -> None:
    """All pages but the first: what a start reads is among them."""
    size_bytes = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(PAGE_BYTES)
        file.write(b"\xff" * (size_bytes - PAGE_BYTES))


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2 // PAGE_BYTES * PAGE_BYTES)


def replace_by_text(path: Path) -> None:
    path.write_text("no database at all\n" * 1_000)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def make_newer(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")


def make_foreign(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")


@pytest.mark.parametrize(
    ("spoil", "code", "words", "hint"),
    [
        (spoil_header, 1, "is damaged", "koubou-broker restore FILE"),
        (spoil_tables, 1, "is damaged", "koubou-broker restore FILE"),
        (truncate, 1, "is damaged", "koubou-broker restore FILE"),
        (replace_by_text, 1, "is damaged", "koubou-broker restore FILE"),
        (empty, 8, "is empty, but this home had one", "koubou-broker restore FILE"),
        (Path.unlink, 8, "is missing, but this home had one", "remove"),
        (make_newer, 8, "was written by a newer Koubou", "install that release again"),
        (make_foreign, 8, "not one of Koubou's", "move it away"),
    ],
    ids=["header", "tables", "truncated", "text", "empty", "missing", "newer", "foreign"],
)
def test_a_bad_database_is_refused_with_what_to_do_and_left_as_it_is(
    broker: BrokerProcess, spoil: Callable[[Path], None], code: int, words: str, hint: str
) -> None:
    path = the_database(broker)
    spoil(path)
    before = path.read_bytes() if path.exists() else None
    witness = read_witness(broker.home.state / "epoch")
    exit_code, out, err = broker.run("run", "--bind", "tcp://127.0.0.1:0")
    assert (exit_code, out) == (code, "")
    assert words in err
    assert hint in err.partition("hint: ")[2]
    assert "Traceback" not in err
    assert (path.read_bytes() if path.exists() else None) == before
    assert read_witness(broker.home.state / "epoch") == witness


def test_check_database_finds_what_a_start_does_not_look_for(broker: BrokerProcess) -> None:
    code, out, _ = broker.run("check-database")
    assert (code, "is whole" in out) == (0, True)
    path = the_database(broker)
    path.write_bytes(path.read_bytes().replace(PROMPT[:100], b"A" + PROMPT[1:100], 1))
    code, out, err = broker.run("check-database")
    assert (code, out) == (1, "")
    assert "is spoilt" in err
    assert "koubou-broker restore FILE" in err
    broker.start()
    code, _, err = broker.run("check-database")
    assert code == 8
    assert "already runs" in err


def test_check_database_says_so_where_there_is_none(tmp_path: Path) -> None:
    broker = BrokerProcess(tmp_path / "nowhere")
    broker.home.create()
    code, _, err = broker.run("check-database")
    broker.context.destroy(linger=0)
    assert code == 1
    assert "there is no database" in err


def test_rubbish_in_the_log_is_ignored_up_to_the_last_whole_commit(broker: BrokerProcess) -> None:
    broker.start()
    with broker.peer() as client:
        client.hello()
        accepted = client.submit(a_spec(b"in the log"), key="last").tasks[0].task_id
    broker.kill()
    log = broker.home.state / "koubou.db-wal"
    assert log.stat().st_size > 0
    with log.open("ab") as file:
        file.write(os.urandom(5 * PAGE_BYTES))
    broker.start()
    with broker.peer() as client:
        client.hello()
        (task,) = client.ask(GetTasks("g", (accepted,)), Tasks).tasks
    assert task.state is TaskState.QUEUED


def test_a_log_that_lost_commits_is_noticed_as_a_database_that_went_back_in_time(broker: BrokerProcess) -> None:
    broker.start()
    with broker.peer() as client:
        client.hello()
        before = [client.submit(a_spec(), key=f"x{number}").tasks[0].task_id for number in range(5)]
        seq = read_witness(broker.home.state / "epoch").event_seq
        eventually(lambda: read_witness(broker.home.state / "epoch").event_seq > seq, 20.0, "the witness has noted it")
    broker.kill()
    log = broker.home.state / "koubou.db-wal"
    log.write_bytes(os.urandom(log.stat().st_size))
    broker.start()
    with broker.peer() as client:
        client.hello()
        after = client.submit(a_spec(), key="after")
    assert isinstance(after, Submitted)
    assert after.tasks[0].task_id > max(before), "no number is given out twice"


def test_damage_that_is_found_while_running_ends_the_broker_and_the_next_start_refuses(broker: BrokerProcess) -> None:
    broker.start()
    path = the_database(broker)
    with path.open("r+b") as file:
        data = path.read_bytes()
        at = data.index(PROMPT[:200]) // PAGE_BYTES * PAGE_BYTES
        file.seek(at)
        file.write(b"\xff" * (len(data) - at))
    with broker.peer() as client:
        client.hello()

        def ended() -> bool:
            client.say(GetResult("r", 1))
            client.say(GetTasks("g", tuple(range(1, PROMPTS))))
            assert not [one for one in client.drain(0.2) if isinstance(one, TaskResult) and one.body]
            return broker.process_ended()

        eventually(ended, 20.0, "the broker stops")
    code, _, err = broker.finish()
    assert code == 1
    assert "the broker stops: the database cannot be" in err
    code, _, err = broker.run("run", "--bind", "tcp://127.0.0.1:0")
    assert code == 1
    assert "is damaged" in err
