"""Disks that fill up or take nothing: a real broker says so, loses nothing and tells nothing false."""

import contextlib
import itertools
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from koubou_common.errors import Code
from koubou_common.keys import new_key_pair
from koubou_common.messages import (
    Cancel,
    Changes,
    Dispatch,
    Enrol,
    Enrolled,
    Error,
    GetStatus,
    GetTasks,
    Invite,
    Invited,
    ResultStored,
    Status,
    Submit,
    Submitted,
    Tasks,
    Welcome,
)
from koubou_common.messages.values import Role, TaskState
from support.broker_play import WORKERS, Peer, a_result, a_spec, a_status, an_agent_hello
from support.broker_process import BrokerProcess
from support.disks import a_small_disk, files_at_most, remount
from support.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e-disk")]

BACK_S = 30.0  # for a broker on a busy machine to notice that the disk takes something again
KEY = itertools.count(1)
RESERVE = "disk: {reserve_bytes: 8388608, min_free_bytes: 0}\n"


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[BrokerProcess]:
    broker = BrokerProcess(tmp_path / "home")
    broker.home.create()
    broker.home.config_file("workers").write_text(WORKERS)
    with broker:
        yield broker


def pid_of(broker: BrokerProcess) -> int:
    assert broker.process
    return broker.process.pid


def an_agent(broker: BrokerProcess, operator: Peer) -> Peer:
    """A worker's agent after its hello."""
    invitation, own = new_key_pair(), new_key_pair()
    operator.ask(Invite("i", "lan_001", Role.WORKER, invitation.public, 60.0), Invited)
    with broker.peer(invitation) as guest:
        guest.ask(Enrol("e", own.public), Enrolled)
    agent = broker.peer(own)
    agent.ask(an_agent_hello(), Welcome)
    return agent


def submit(client: Peer, prompt: bytes = b"say hello") -> Submitted | Error:
    """One try with a key of its own; hello again as often as it is asked for."""
    key = f"k{next(KEY)}"
    for _ in range(5):
        client.say(Submit(key, key, (a_spec(prompt),)))
        answer = answered(client, key)
        if isinstance(answer, Submitted) or answer.code is not Code.HELLO_REQUIRED:
            return answer
        client.hello()
    raise AssertionError("asked for hello again and again")


def answered(client: Peer, request_id: str) -> Submitted | Error:
    """The answer to this request, or that hello is needed."""
    while True:
        assert client.socket.poll(10_000), f"no answer to {request_id}"
        client._read()
        message = client.heard.pop()
        if isinstance(message, Submitted | Error) and (
            message.request_id == request_id or getattr(message, "code", None) is Code.HELLO_REQUIRED
        ):
            return message


def store_alerts(client: Peer) -> list[str]:
    return [alert.message for alert in client.ask(GetStatus("s"), Status).alerts if alert.code == "store_full"]


def taken(client: Peer) -> bool:
    return isinstance(submit(client), Submitted)


def test_a_disk_that_takes_nothing_is_told_questions_are_answered_and_all_goes_on_when_it_does(
    broker: BrokerProcess,
) -> None:
    with broker.peer() as client:
        client.hello()
        first = submit(client)
        second = submit(client)
        assert isinstance(first, Submitted)
        assert isinstance(second, Submitted)
        queued, running = second.tasks[0].task_id, first.tasks[0].task_id
        with an_agent(broker, client) as agent:
            attempt = agent.next(Dispatch)
            with files_at_most(0, pid_of(broker)):
                refused = submit(client)
                assert isinstance(refused, Error)
                assert (refused.code, refused.retry_after_s) == (Code.STORE_FULL, 5.0)
                assert "nothing can be stored" in refused.message
                # Questions are answered meanwhile, by what was stored; what would change something is refused.
                assert "nothing can be stored" in store_alerts(client)[0]
                states = [task.state for task in client.ask(GetTasks("g", (running, queued)), Tasks).tasks]
                assert states == [TaskState.RUNNING, TaskState.RUNNING]
                assert client.ask(Cancel("c", (queued,)), Error).code is Code.STORE_FULL
                # An agent hears nothing false: its result is not stored, and it is not told so.
                agent.drain(0.0)
                agent.say(a_result(attempt.attempt_uid))
                agent.say(an_agent_hello(a_status(spooled=(attempt.attempt_uid,))))
                assert not [one for one in agent.drain(0.5) if isinstance(one, ResultStored | Welcome | Dispatch)]
            uid = attempt.attempt_uid
            eventually(lambda: welcomed(agent, uid), BACK_S, "the agent is welcome again")
            agent.ask(a_result(uid, last=0), ResultStored)
        state = client.ask(GetTasks("g", (attempt.task_id,)), Tasks).tasks[0].state
        assert state is TaskState.SUCCEEDED
        eventually(lambda: taken(client), BACK_S, "tasks are taken again")
        assert store_alerts(client) == []
        assert client.ask(Cancel("c", (queued,)), Changes).changes[0].changed
    assert not broker.process_ended(), "it was the same process all the time"


def welcomed(agent: Peer, *uids: str) -> bool:
    agent.say(an_agent_hello(a_status(spooled=uids)))
    return any(isinstance(one, Welcome) for one in agent.drain(0.3))


def fill(folder: Path) -> Path:
    """Take the last free byte; the file to be removed again."""
    filler = folder / "somebody_elses"
    with filler.open("ab", buffering=0) as file:
        for size_bytes in (1 << 20, 1 << 12):
            with contextlib.suppress(OSError):
                while file.write(bytes(size_bytes)) == size_bytes:
                    pass
    return filler


def test_on_a_full_disk_the_reserve_lets_results_in_at_once_and_tasks_wait_for_room(broker: BrokerProcess) -> None:
    state = broker.home.state
    with contextlib.ExitStack() as stack:
        broker.kill()
        shutil.rmtree(state)
        stack.enter_context(a_small_disk(state, 48 << 20))
        stack.callback(broker.kill)
        broker.home.config_file("broker").write_text(RESERVE)
        broker.start()
        client = stack.enter_context(broker.peer())
        client.hello()
        with an_agent(broker, client) as agent:
            ids = [done.tasks[0].task_id for done in (submit(client), submit(client)) if isinstance(done, Submitted)]
            attempts = [agent.next(Dispatch), agent.next(Dispatch)]
            filler = fill(state)
            answers = (submit(client, os.urandom(250_000)) for _ in range(100))
            refused = next(answer for answer in answers if isinstance(answer, Error))
            assert refused.code is Code.STORE_FULL
            assert not (state / "reserve").exists(), "given up"
            uids = tuple(attempt.attempt_uid for attempt in attempts)
            eventually(lambda: welcomed(agent, *uids), BACK_S, "the agent is welcome again")
            for uid in uids:
                agent.ask(a_result(uid, b"n" * 100_000, last=0), ResultStored)
            client.hello()
            assert "disk.reserve_bytes of 8 MiB, which was given up" in store_alerts(client)[0]
            states = {task.state for task in client.ask(GetTasks("g", tuple(ids)), Tasks).tasks}
            assert states == {TaskState.SUCCEEDED}
            filler.unlink()
            eventually(lambda: taken(client), BACK_S, "tasks are taken again")
            assert (state / "reserve").stat().st_size == 8 << 20
            assert store_alerts(client) == []


def test_a_start_on_a_full_disk_takes_the_reserve_and_without_one_says_what_to_do(broker: BrokerProcess) -> None:
    state = broker.home.state
    with contextlib.ExitStack() as stack:
        broker.kill()
        shutil.rmtree(state)
        stack.enter_context(a_small_disk(state, 24 << 20))
        stack.callback(broker.kill)
        broker.home.config_file("broker").write_text(RESERVE)
        broker.start()
        with broker.peer() as client:
            client.hello()
            assert taken(client)
        broker.signal(signal.SIGTERM)
        assert broker.finish()[0] == 0
        fill(state)
        broker.start()
        with broker.peer() as client:
            client.hello()
            assert "which was given up" in store_alerts(client)[0], "it runs, and takes results"
        broker.kill()
        filler = fill(state)
        code, _, err = broker.run("run", "--bind", "tcp://127.0.0.1:0")
        assert code == 1
        assert "the broker cannot start: the disk of" in err
        assert "hint: make room there" in err
        assert "Traceback" not in err
        filler.unlink()
        broker.start()
        with broker.peer() as client:
            client.hello()
            assert len(client.ask(GetTasks("g", (1,)), Tasks).tasks) == 1


def test_a_start_on_a_read_only_disk_says_so_and_changes_nothing(broker: BrokerProcess) -> None:
    state = broker.home.state
    with contextlib.ExitStack() as stack:
        broker.kill()
        shutil.rmtree(state)
        stack.enter_context(a_small_disk(state, 24 << 20))
        stack.callback(broker.kill)
        broker.start()
        broker.kill()
        remount(state, "ro")
        code, _, err = broker.run("run", "--bind", "tcp://127.0.0.1:0")
        assert code == 1
        assert "takes nothing more" in err
        assert "make it writable again" in err
        remount(state, "rw")
        broker.start()


@pytest.mark.parametrize(
    ("limit_bytes", "exit_code", "words"),
    [(0, 8, "cannot write the key file"), (100_000, 1, "takes nothing more")],
    ids=["nothing", "a little"],
)
def test_a_first_start_on_a_disk_that_takes_too_little_says_so_and_the_next_one_works(
    tmp_path: Path, limit_bytes: int, exit_code: int, words: str
) -> None:
    with contextlib.closing(Limited(tmp_path / "home", limit_bytes)) as broker:
        code, _, err = broker.run("run", "--bind", "tcp://127.0.0.1:0")
        assert code == exit_code
        assert words in err
        assert "room" in err.partition("hint: ")[2]
        assert "Traceback" not in err
        broker.limit_bytes = resource.RLIM_INFINITY
        broker.start()
        with broker.peer() as client:
            client.hello()
            assert taken(client)


class Limited(BrokerProcess):
    """A broker's process that may write files of so many bytes from its first instruction on."""

    def __init__(self, root: Path, limit_bytes: int) -> None:
        super().__init__(root)
        self.limit_bytes = limit_bytes

    def spawn(self, *arguments: str) -> "subprocess.Popen[str]":
        limited = (
            f"import resource, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, ({self.limit_bytes}, -1));"
            " runpy.run_module('koubou_broker', run_name='__main__', alter_sys=True)"
        )
        command = [sys.executable, "-c", limited, *arguments, "--home", str(self.home.root)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def close(self) -> None:
        self.kill()
        self.context.destroy(linger=0)


def test_a_start_beside_full_keys_and_state_needs_no_room_for_what_it_knows(broker: BrokerProcess) -> None:
    with broker.peer() as client:
        client.hello()
        assert taken(client)
    broker.signal(signal.SIGTERM)
    assert broker.finish()[0] == 0
    before = {path: path.stat().st_mtime_ns for path in broker.home.keys.rglob("*")}
    broker.start()
    assert {path: path.stat().st_mtime_ns for path in broker.home.keys.rglob("*")} == before
