"""The broker's process: first start, stopping, killing, freezing, and what its command line says."""

import random
import signal
import socket
import sqlite3
import time
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

import pytest

from koubou_common.errors import Code
from koubou_common.home import Home
from koubou_common.keys import new_key_pair
from koubou_common.messages import (
    ClientHello,
    Dispatch,
    Enrol,
    Enrolled,
    Error,
    GetStory,
    GetTasks,
    Heartbeat,
    HeartbeatAck,
    Invite,
    Invited,
    Story,
    Submit,
    Submitted,
    Tasks,
    Welcome,
)
from koubou_common.messages.values import Role
from support.broker_play import MODEL, a_spec, a_status, an_agent_hello
from support.broker_process import DISK, BrokerProcess
from support.waiting import eventually

pytestmark = pytest.mark.e2e


def test_a_first_start_makes_private_keys_and_says_where_it_listens(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "home") as broker:
        home = broker.home
        for path in (home.key_file("broker"), home.key_file("operator"), home.state / "koubou.db"):
            assert path.stat().st_mode & 0o777 == 0o600, path
        for folder in (home.root, home.keys, home.state):
            assert folder.stat().st_mode & 0o777 == 0o700, folder
        address = (home.state / "broker.address").read_text().strip()
        with broker.peer() as operator:
            assert operator.hello().role is Role.OPERATOR
        broker.signal(signal.SIGTERM)
        code, out, err = broker.finish()
        assert code == 0, err
        assert f"address  {address}" in out
        assert "key      " in out
        assert not (home.state / "broker.address").exists()


def test_sigterm_ends_at_once_and_what_was_told_is_there_again(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path) as broker:
        with broker.peer() as client:
            client.hello()
            task_id = client.submit(a_spec()).tasks[0].task_id
        began_s = time.monotonic()
        broker.signal(signal.SIGINT)
        assert broker.finish()[0] == 0
        assert time.monotonic() - began_s < 5
        broker.start()
        with broker.peer() as client:
            client.hello()
            again = client.submit(a_spec())
            assert (again.tasks[0].task_id, again.tasks[0].existing) == (task_id, True)


def test_sigterm_ends_within_five_seconds_also_while_the_disk_is_blocked(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path) as broker, broker.peer() as client:
        client.hello()
        with closing(sqlite3.connect(tmp_path / "state" / "koubou.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            client.say(Submit("r", "k", (a_spec(),)))
            assert client.drain(0.5) == []
            began_s = time.monotonic()
            broker.signal(signal.SIGTERM)
            code, _, err = broker.finish()
            assert (code, time.monotonic() - began_s < 5) == (0, True), err
            assert "told to nobody" in err
        broker.start()
        with broker.peer() as again:
            again.hello()
            assert again.submit(a_spec(), key="k").tasks[0].existing is False


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc, which tells caught signals")
def test_a_second_signal_ends_at_once_what_a_blocked_disk_holds_up(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path) as broker, broker.peer() as client:
        client.hello()
        with closing(sqlite3.connect(tmp_path / "state" / "koubou.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            client.say(Submit("r", "k", (a_spec(),)))
            assert client.drain(0.5) == []
            assert broker.process
            # The first one is heard when the default is back: until then a second one could be the first.
            status = Path(f"/proc/{broker.process.pid}/status")
            broker.signal(signal.SIGINT)
            eventually(lambda: not _catches(status, signal.SIGTERM), 5.0, "the first signal is heard")
            began_s = time.monotonic()
            broker.signal(signal.SIGTERM)
            assert broker.finish()[0] == -signal.SIGTERM
            assert time.monotonic() - began_s < 1
        broker.start()
        with broker.peer() as again:
            again.hello()
            assert again.submit(a_spec(), key="k").tasks[0].existing is False


def _catches(status: Path, number: signal.Signals) -> bool:
    """Whether a process has a handler of its own for a signal, as Linux tells it."""
    caught = next(line for line in status.read_text().splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


def test_whatever_was_told_before_a_kill_is_there_after_it(tmp_path: Path) -> None:
    seed = 20_240_611
    draw = random.Random(seed)
    told: dict[str, int] = {}
    with BrokerProcess(tmp_path) as broker:
        for round_ in range(4):
            with broker.peer() as client:
                client.hello()
                for number in range(300):
                    key = f"{round_}-{number}"
                    client.say(Submit(key, key, (a_spec(key.encode()),)))
                deadline_s = time.monotonic() + draw.uniform(0.005, 0.25)
                while time.monotonic() < deadline_s:
                    if client.socket.poll(5):
                        submitted = client.next(Submitted)
                        told[submitted.request_id] = submitted.tasks[0].task_id
                broker.kill()
                for message in client.drain(0.05):
                    if isinstance(message, Submitted):
                        told[message.request_id] = message.tasks[0].task_id
            broker.start()
        assert told, f"seed {seed}: no kill came after an answer"
        assert len(set(told.values())) == len(told), f"seed {seed}: a number was given out twice"
        with broker.peer() as client:
            client.hello()
            for key, task_id in list(told.items())[:: max(1, len(told) // 50)]:
                answer = client.ask(Submit(key, key, (a_spec(key.encode()),)), Submitted)
                assert answer.tasks[0].task_id == task_id, f"seed {seed}: {key} is another task now"
            ids = sorted(told.values())
            for at in range(0, len(ids), 100):
                assert client.ask(GetTasks("g", tuple(ids[at : at + 100])), Tasks).missing == (), f"seed {seed}"
    with closing(sqlite3.connect(tmp_path / "state" / "koubou.db")) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert database.execute("PRAGMA foreign_key_check").fetchall() == []


def test_a_frozen_broker_does_not_hold_its_own_silence_against_anybody(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.create()
    home.config_file("broker").write_text(f"heartbeat_s: 0.4\nlease_s: 1\n{DISK}")
    home.config_file("workers").write_text(f'workers: {{local_workers: [{{worker_id: lan_001, model: "{MODEL}"}}]}}\n')
    invitation, own = new_key_pair(), new_key_pair()
    with BrokerProcess(tmp_path) as broker, broker.peer() as operator:
        operator.hello()
        operator.ask(Invite("i", "lan_001", Role.WORKER, invitation.public, 60.0), Invited)
        with broker.peer(invitation) as guest:
            guest.ask(Enrol("e", own.public), Enrolled)
        with broker.peer(own) as agent:
            agent.ask(an_agent_hello(), Welcome)
            task_id = operator.submit(a_spec()).tasks[0].task_id
            dispatch = agent.next(Dispatch)
            held = a_status((dispatch.attempt_uid,), last=dispatch.number, free=1)
            agent.ask(Heartbeat(1, 0, held, None), HeartbeatAck)
            broker.signal(signal.SIGSTOP)
            time.sleep(2.5)  # the freeze itself: longer than two leases
            broker.signal(signal.SIGCONT)
            agent.ask(Heartbeat(2, 0, held, None), HeartbeatAck)
            agent.ask(Heartbeat(3, 0, held, None), HeartbeatAck)
            events = operator.ask(GetStory("s", task_id), Story).events
            assert [event.after for event in events] == ["queued", "running"]


def test_a_second_broker_on_the_same_home_is_refused(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path) as broker:
        code, _, err = broker.run("run", "--bind", "tcp://127.0.0.1:0")
        assert code == 8
        assert "already runs" in err
        assert "hint:" in err
        code, _, err = broker.run("migrate")
        assert (code, "already runs" in err) == (8, True)
        with broker.peer() as client:
            client.hello()


def test_an_address_in_use_or_a_public_one_is_refused_with_a_hint(tmp_path: Path) -> None:
    broker = BrokerProcess(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, _, err = broker.run("run", "--bind", f"tcp://127.0.0.1:{taken.getsockname()[1]}")
        assert (code, "cannot listen" in err) == (8, True)
    code, _, err = broker.run("run", "--bind", "tcp://8.8.8.8:5570")
    assert (code, "public" in err, "hint:" in err) == (8, True, True)
    broker.context.destroy()


def test_faults_of_the_settings_are_told_with_file_line_and_column(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.create()
    home.config_file("broker").write_text("lease_s: 30\nhartbeat_s: 5\n")
    broker = BrokerProcess(tmp_path)
    for command in ("check-config", "run"):
        code, _, err = broker.run(command)
        assert code == 8
        assert "broker.yaml:2:1" in err
        assert "heartbeat_s" in err
    home.config_file("broker").unlink()
    home.config_file("workers").write_text(
        f'workers: {{remote_workers: [{{worker_id: far, model: "{MODEL}", agent: here}}]}}\n'
    )
    code, _, err = broker.run("check-config")
    assert (code, "allow_remote_ollama" in err) == (8, True)
    broker.context.destroy()


def test_init_writes_settings_that_the_broker_accepts_and_keeps_what_is_there(tmp_path: Path) -> None:
    broker = BrokerProcess(tmp_path)
    code, out, _ = broker.run("init")
    assert code == 0
    assert "wrote" in out
    key = broker.home.key_file("broker").read_bytes()
    assert broker.run("init")[1].count("wrote") == 0
    assert broker.home.key_file("broker").read_bytes() == key
    assert broker.run("check-config")[0] == 0
    assert "up to date" in broker.run("migrate")[1]
    broker.context.destroy()


def test_systemd_hears_ready_status_watchdog_and_stopping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "notify.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(0.01)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        monkeypatch.setenv("WATCHDOG_USEC", "400000")
        heard: list[str] = []

        def hears(word: str) -> bool:
            with suppress(TimeoutError):
                heard.append(manager.recv(4_096).decode())
            return any(text.startswith(word) for text in heard)

        with BrokerProcess(tmp_path / "home") as broker:
            for word in ("STATUS=listening on tcp://", "READY=1", "WATCHDOG=1"):
                eventually(partial(hears, word), what=word)
            broker.signal(signal.SIGTERM)
            eventually(partial(hears, "STOPPING=1"))
            assert broker.finish()[0] == 0


def test_a_token_key_may_only_replace_itself(tmp_path: Path) -> None:
    invitation = new_key_pair()
    with BrokerProcess(tmp_path) as broker, broker.peer() as operator:
        operator.hello()
        operator.ask(Invite("i", "rin", Role.CLIENT, invitation.public, 60.0), Invited)
        with broker.peer(invitation) as guest:
            for message in (ClientHello(1, 1, "test"), an_agent_hello(), Submit("r", "k", (a_spec(),))):
                assert guest.ask(message, Error).code in (Code.NOT_AUTHORISED, Code.HELLO_REQUIRED)
