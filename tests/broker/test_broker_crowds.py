"""Many connections at once: enrolled ones that do little, and strangers that do nothing."""

import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from koubou_broker import migrate, rows, statements
from koubou_broker.database import open_writer
from koubou_broker.records import Principal
from koubou_broker.start import Places
from koubou_common.home import Home
from koubou_common.keys import KeyPair, new_key_pair
from koubou_common.messages import Dispatch, Heartbeat, HeartbeatAck, Welcome
from koubou_common.messages.values import Role
from support.broker_play import MODEL, Peer, a_spec, a_status, an_agent_hello
from support.broker_process import BrokerProcess

pytestmark = pytest.mark.e2e

AGENTS = 500
STRANGERS = 200
SPARE_FILES = 150  # fewer than there are strangers


@pytest.fixture
def many_files() -> Iterator[None]:
    """Room for both ends of every connection."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 6 * AGENTS
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"only {hard} files may be open here, {wanted} are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def enrolled(home: Home, count: int) -> list[KeyPair]:
    """Keys of that many workers, as if each had joined long ago."""
    home.create()
    database = Places(home).database
    migrate.prepare(database)
    pairs = [new_key_pair() for _ in range(count)]
    principals = (Principal(pair.public, f"w{n}", Role.WORKER, None, 1, 0, 0, "") for n, pair in enumerate(pairs))
    engine = open_writer(database)
    with engine.begin() as connection:
        connection.execute(statements.PUT_PRINCIPAL, [rows.principal_row(one) for one in principals])
    engine.dispose()
    return pairs


@pytest.mark.usefixtures("many_files")
def test_five_hundred_idle_agents_are_heard_and_hold_up_nobody(tmp_path: Path) -> None:
    pairs = enrolled(Home(tmp_path), AGENTS)
    with BrokerProcess(tmp_path) as broker, ExitStack() as stack:
        agents: list[Peer] = [stack.enter_context(broker.peer(pair)) for pair in pairs]
        for agent in agents:
            agent.say(an_agent_hello(a_status(free=0)))
        for agent in agents:
            agent.next(Welcome, 30.0)
        for agent in agents:
            agent.say(Heartbeat(1, 0, a_status(free=0), None))
        with broker.peer() as operator:
            began_s = time.monotonic()
            operator.hello()
            operator.submit(replace(a_spec(), model=MODEL))
            assert time.monotonic() - began_s < 3.0, "one heartbeat of all before it"
            for agent in agents:
                agent.next(HeartbeatAck)
            agents[-1].say(Heartbeat(2, 0, a_status(free=1), None))
            assert agents[-1].next(Dispatch).task_id == 1


def test_idle_strangers_that_use_up_all_files_lock_nobody_out_for_long(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path) as broker, ExitStack() as stack:
        assert broker.process
        pid = broker.process.pid
        most = len(list(Path(f"/proc/{pid}/fd").iterdir())) + SPARE_FILES
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, most))
        host, _, port = (
            (broker.home.state / "broker.address").read_text().strip().removeprefix("tcp://").rpartition(":")
        )
        for _ in range(STRANGERS):
            stack.enter_context(socket.create_connection((host, int(port))))
        with broker.peer() as operator:
            operator.hello()
            assert operator.submit(a_spec()).tasks[0].task_id == 1
