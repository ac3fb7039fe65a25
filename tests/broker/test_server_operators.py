"""What operators do to workers and keys, on real sockets: it holds from the moment it is on record."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import zmq

from koubou_common.errors import Code, KoubouError
from koubou_common.messages import (
    AgentHello,
    BlobGet,
    ClientHello,
    Dispatch,
    Error,
    GetTasks,
    Heartbeat,
    HeartbeatAck,
    Keys,
    Removed,
    RemoveWorker,
    RevokeKey,
    SetWorkerMode,
    Submit,
    Submitted,
    Tasks,
    Welcome,
    Workers,
)
from koubou_common.messages.values import Role, TaskState, WorkerMode
from support.broker_play import (
    BROKER,
    BrokerPlay,
    Peer,
    a_broker,
    a_configuration,
    a_spec,
    a_status,
    an_agent_hello,
    work_one,
)


def stored_tasks(play: BrokerPlay) -> int:
    with closing(sqlite3.connect(f"file:{play.home.state / 'koubou.db'}?mode=ro", uri=True)) as database:
        (count,) = database.execute("SELECT count(*) FROM tasks").fetchone()
    return int(count)


def set_mode(operator: Peer, mode: WorkerMode) -> None:
    (worker,) = operator.ask(SetWorkerMode("m", "lan_001", mode), Workers).workers
    assert worker.mode is mode


def test_a_paused_or_draining_worker_gets_nothing_new_and_finishes_what_it_has(tmp_path: Path) -> None:
    with a_broker(tmp_path) as play, play.operator() as operator, play.agent() as agent:
        for number, mode in enumerate((WorkerMode.PAUSED, WorkerMode.DRAINING)):
            first = operator.submit(a_spec(), key=f"first-{mode}").tasks[0].task_id
            dispatch = agent.next(Dispatch)
            set_mode(operator, mode)
            second = operator.submit(a_spec(), key=f"second-{mode}").tasks[0].task_id
            agent.heard.insert(0, dispatch)
            assert work_one(agent).task_id == first
            agent.drain()
            acked = agent.ask(Heartbeat(1, 0, a_status(last=2 * number + 1), None), HeartbeatAck)
            assert (acked.sent_ms, acked.mode) == (1, mode)
            assert not [one for one in agent.drain() if isinstance(one, Dispatch)]
            view = operator.ask(GetTasks("g", (second,)), Tasks).tasks[0]
            assert (view.state, str(mode) in view.waiting_for) == (TaskState.QUEUED, True)
            set_mode(operator, WorkerMode.ACTIVE)
            assert work_one(agent).task_id == second


def test_a_removed_worker_is_told_so_and_nothing_else_and_its_work_goes_elsewhere(tmp_path: Path) -> None:
    with (
        a_broker(tmp_path) as play,
        play.operator() as operator,
        play.agent("lan_001") as gone,
        play.peer(play.enrol("lan_002", Role.WORKER)) as other,
    ):
        operator.submit(a_spec(b"secret" * 2_000))
        dispatch = gone.next(Dispatch)
        operator.ask(RemoveWorker("w", "lan_001"), Workers)
        gone.next(Removed)
        for message in (BlobGet(dispatch.prompt.sha256, 0), an_agent_hello(), BlobGet(dispatch.prompt.sha256, 0)):
            gone.say(message)
            heard = gone.drain()
            expected = [Removed()] if isinstance(message, AgentHello) else [Code.NOT_AUTHORISED]
            assert [getattr(one, "code", one) for one in heard] == expected
        other.ask(an_agent_hello(), Welcome)
        assert work_one(other).task_id == dispatch.task_id


def test_under_load_nothing_is_accepted_after_a_key_was_revoked(tmp_path: Path) -> None:
    with a_broker(tmp_path) as play, play.operator() as operator, play.peer(play.enrol("rin", Role.CLIENT)) as rin:
        rin.hello()
        for number in range(300):
            rin.say(Submit(f"r{number}", f"k{number}", (a_spec(),)))
        operator.say(RevokeKey("x", "rin"))
        for number in range(300, 600):
            rin.say(Submit(f"r{number}", f"k{number}", (a_spec(),)))
        operator.next(Keys)
        accepted = stored_tasks(play)
        for number in range(600, 650):
            rin.say(Submit(f"r{number}", f"k{number}", (a_spec(),)))
        rin.say(ClientHello(1, 1, "test"))
        heard = rin.drain(0.5)
        told = [one for one in heard if isinstance(one, Submitted)]
        assert stored_tasks(play) == accepted
        # The last of them may be on record untold: the session ended at once.
        assert 0 < len(told) <= accepted < 600
        assert {one.code for one in heard if isinstance(one, Error)} == {Code.NOT_AUTHORISED}
        assert isinstance(heard[-1], Error)


def test_every_address_of_a_list_is_served_and_one_that_is_taken_stops_the_start(tmp_path: Path) -> None:
    several = BROKER.replace("tcp://127.0.0.1:0", "[tcp://127.0.0.1:0, tcp://127.0.0.2:0]")
    with a_broker(tmp_path / "a", a_configuration(several)) as play:
        router = play.server._machine.router
        with play.operator() as operator:
            operator.submit(a_spec())
        play.address = router.get_string(zmq.LAST_ENDPOINT)
        assert play.address.startswith("tcp://127.0.0.2:")
        with play.operator() as operator:
            operator.submit(a_spec(), key="k2")
        taken = BROKER.replace("tcp://127.0.0.1:0", f"[tcp://127.0.0.1:0, '{play.address}']")
        with pytest.raises(KoubouError, match="cannot listen"), a_broker(tmp_path / "b", a_configuration(taken)):
            pass
