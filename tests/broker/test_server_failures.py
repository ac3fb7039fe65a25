"""When commits are slow, fail, or break a rule: nothing false is told, and the broker comes back by itself."""

import itertools
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine, event

from koubou_broker import disk_watch, turns
from koubou_broker import server as server_module
from koubou_common.errors import Code
from koubou_common.keys import new_key_pair
from koubou_common.messages import (
    BlobChunk,
    BlobGet,
    ClientHello,
    ClientWelcome,
    Dispatch,
    Enrol,
    Enrolled,
    Error,
    GetResult,
    GetStatus,
    GetStory,
    GetTasks,
    Heartbeat,
    HeartbeatAck,
    Invite,
    Invited,
    Keys,
    Preview,
    ResultStored,
    RevokeKey,
    Status,
    Story,
    Submit,
    Submitted,
    TaskResult,
    Tasks,
    Welcome,
)
from koubou_common.messages.values import AttemptState, Disposition, Role, TaskRef, TaskState
from support.broker_play import (
    BROKER,
    BrokerPlay,
    Peer,
    a_broker,
    a_configuration,
    a_result,
    a_spec,
    a_status,
    an_agent_hello,
    serve_chunk,
)
from support.disks import files_at_most
from support.waiting import eventually

PAGES_MAX = 1_073_741_823  # SQLite's own limit


@pytest.fixture(autouse=True)
def quick_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "CHECK_S", 0.1)
    monkeypatch.setattr(disk_watch, "PAUSE_S", (0.1, 0.4))


def writer_of(play: BrokerPlay) -> Engine:
    return play.server._machine.store._engine


def reader_of(play: BrokerPlay) -> Engine:
    return play.server._machine.reader._engine


@contextmanager
def a_blocked_store(play: BrokerPlay) -> Iterator[None]:
    """Somebody else's transaction keeps the store waiting, as a stalled disk would."""
    other = sqlite3.connect(play.home.state / "koubou.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


class FaultyDisk:
    """A labelled fault in an engine, the writer's if none is named: statements that mention `text` fail with `code`."""

    def __init__(
        self, play: BrokerPlay, text: str, code: int, parameter: str = "", *, engine: Engine | None = None
    ) -> None:
        self.is_on = True
        self.hits = 0

        @event.listens_for(engine or writer_of(play), "before_cursor_execute")
        def fail(connection: Connection, cursor: object, statement: str, parameters: object, *more: object) -> None:
            if self.is_on and text in statement and parameter in repr(parameters):
                self.hits += 1
                error = sqlite3.OperationalError("injected fault")
                error.sqlite_errorcode = code
                raise error


def hello_again(peer: Peer) -> None:
    assert peer.next(Error).code is Code.HELLO_REQUIRED
    peer.hello()


def test_nothing_is_said_before_it_and_all_before_it_is_durable(tmp_path: Path) -> None:
    with a_broker(tmp_path) as play, play.operator() as client, play.peer(play.enrol("rin", Role.CLIENT)) as other:
        other.hello()
        with a_blocked_store(play):
            client.say(Submit("r1", "k1", (a_spec(),)))
            other.say(GetStatus("s1"))
            other.say(Submit("r2", "k2", (a_spec(),)))
            other.say(Submit("r2", "k2", (a_spec(),)))
            # Even a status rests on a task that is not durable yet; a repeated answer found in memory too.
            assert client.drain(0.3) == []
            assert other.drain(0.1) == []
        assert client.next(Submitted).request_id == "r1"
        assert other.next(Status).request_id == "s1"
        assert other.next(Submitted).tasks[0].task_id == other.next(Submitted).tasks[0].task_id


def test_a_dispatch_leaves_only_after_its_commit(tmp_path: Path) -> None:
    with a_broker(tmp_path) as play, play.operator() as client, play.agent() as agent:
        with a_blocked_store(play):
            client.say(Submit("r1", "k1", (a_spec(),)))
            assert agent.drain(0.3) == []
        agent.next(Dispatch)
        client.next(Submitted)


def test_too_much_undurable_stops_reading_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "UNDURABLE_ENTRIES", 10)
    with a_broker(tmp_path) as play, play.operator() as client:
        with a_blocked_store(play):
            for number in range(60):
                client.say(Submit(f"r{number}", f"k{number}", (a_spec(),)))
            eventually(lambda: play.server._conductor.is_full)
            assert play.server._conductor._ledger._entries < 60
        assert {client.next(Submitted).request_id for _ in range(60)} == {f"r{number}" for number in range(60)}


def test_on_a_full_disk_submissions_are_refused_and_taken_again_when_there_is_room(tmp_path: Path) -> None:
    limit = {"pages": PAGES_MAX}
    with a_broker(tmp_path) as play, play.operator() as client:

        @event.listens_for(writer_of(play), "begin")
        def keep_to_the_quota(connection: Connection) -> None:
            connection.exec_driver_sql(f"PRAGMA max_page_count = {limit['pages']}")

        first = client.submit(a_spec(), key="k1").tasks[0].task_id
        reserve = play.home.state / "reserve"
        assert reserve.exists()
        limit["pages"] = 1  # SQLite never goes below the pages in use: not one more
        client.say(Submit("r2", "k2", (a_spec(b"p" * 200_000),)))
        hello_again(client)
        refused = client.ask(Submit("r2", "k2", (a_spec(b"p" * 200_000),)), Error)
        assert refused.code is Code.STORE_FULL
        assert refused.retry_after_s > 0
        assert client.ask(GetTasks("g", (first,)), Tasks).tasks[0].state is TaskState.QUEUED
        limit["pages"] = PAGES_MAX
        taken = eventually(lambda: _submitted(client), what="submissions are taken again")
        assert taken
        assert taken.tasks[0].task_id == first + 1
        eventually(reserve.exists, what="the reserve is held again")
        status = client.ask(GetStatus("s"), Status)
        assert [alert.code for alert in status.alerts if alert.code == "store_full"] == []


def _submitted(client: Peer) -> Submitted | None:
    client.say(Submit("r2", "k2", (a_spec(b"p" * 200_000),)))
    heard = client.drain(0.2)
    for message in heard:
        if isinstance(message, Submitted):
            return message
        if isinstance(message, Error) and message.code is Code.HELLO_REQUIRED:
            client.say(ClientHello(1, 1, "test"))
    return None


def test_while_nothing_can_be_stored_what_was_accepted_is_known_and_nothing_new_is_begun(tmp_path: Path) -> None:
    large = b"p" * 300_000
    with a_broker(tmp_path) as play, play.operator() as client:
        first = client.submit(a_spec(), key="k1").tasks[0].task_id
        pulled = a_spec(b"p", {"f": large}, inline=False)
        client.say(Submit("r2", "large", (pulled,)))
        serve_chunk(client, large)
        second = client.next(Submitted).tasks[0].task_id
        with files_at_most(0):
            client.say(Submit("r3", "k3", (a_spec(),)))
            hello_again(client)
            # Told again, although neither a claim can be written nor a body pulled: it was accepted.
            assert client.ask(Submit("r4", "k1", (a_spec(),)), Submitted).tasks[0] == TaskRef(
                first, TaskState.QUEUED, existing=True
            )
            assert client.ask(Submit("r5", "large", (pulled,)), Submitted).tasks[0].task_id == second
            for key, spec in (("k3", a_spec()), ("k4", a_spec(b"q", {"g": large[1:]}, inline=False))):
                refused = client.ask(Submit(f"r-{key}", key, (spec,)), Error)
                assert (refused.code, refused.request_id) == (Code.STORE_FULL, f"r-{key}")
            # The bodies of a first part would be lost: it is sent again later.
            parts = client.ask(Submit("r6", "k6", (a_spec(),), part=0, parts=2), Error)
            assert (parts.code, parts.retry_after_s > 0) == (Code.BUSY, True)
            assert client.ask(Submit("dry", "k9", (a_spec(),), dry_run=True), Preview).request_id == "dry"
            assert (
                client.ask(Invite("i", "rin", Role.CLIENT, new_key_pair().public, 60.0), Error).code is Code.STORE_FULL
            )
            assert client.drain(0.1) == []
            assert not play.stopped
        taken = eventually(lambda: _submitted(client), what="submissions are taken again")
        assert taken


def test_a_change_that_cannot_wait_holds_up_all_that_comes_after_it(tmp_path: Path) -> None:
    with a_broker(tmp_path) as play, play.operator() as client:
        invitation, own = new_key_pair(), new_key_pair()
        client.ask(Invite("i", "rin", Role.CLIENT, invitation.public, 60.0), Invited)
        with play.peer(invitation) as guest:
            guest.ask(Enrol("e", own.public), Enrolled)
        with play.peer(own) as rin:
            with files_at_most(0):
                client.say(Submit("r", "k", (a_spec(),)))
                hello_again(client)
                # Its first hello ends the enrolment key: a change, which has to be stored before it is answered.
                rin.say(ClientHello(1, 1, "test"))
                assert rin.drain(0.5) == []
                client.say(GetStatus("s"))
                assert client.drain(0.3) == [], "whatever is said now would rest on it"
            rin.next(ClientWelcome)
            client.next(Status)


def test_a_read_only_disk_is_waited_for_like_a_full_one(tmp_path: Path) -> None:
    with a_broker(tmp_path) as play, play.operator() as client, play.agent() as agent:
        task_id = client.submit(a_spec()).tasks[0].task_id
        attempt = agent.next(Dispatch)
        fault = FaultyDisk(play, "", sqlite3.SQLITE_READONLY)
        agent.say(a_result(attempt.attempt_uid))
        assert agent.next(Error).code is Code.HELLO_REQUIRED
        hello_again(client)
        assert client.ask(GetTasks("g", (task_id,)), Tasks).tasks[0].state is TaskState.RUNNING
        agent.say(an_agent_hello(a_status(spooled=(attempt.attempt_uid,))))
        agent.say(a_result(attempt.attempt_uid, last=0))
        heard = [getattr(one, "code", one) for one in agent.drain(0.3)]
        assert heard == [Code.HELLO_REQUIRED], "it hears no welcome, and keeps its result"
        fault.is_on = False

        def welcomed() -> bool:
            agent.say(an_agent_hello(a_status(spooled=(attempt.attempt_uid,))))
            return any(isinstance(one, Welcome) for one in agent.drain(0.2))

        eventually(welcomed)
        assert agent.ask(a_result(attempt.attempt_uid, last=0), ResultStored).disposition is Disposition.RECORDED
        assert client.ask(GetTasks("g", (task_id,)), Tasks).tasks[0].state is TaskState.SUCCEEDED


def test_leases_do_not_run_while_the_disk_takes_nothing(tmp_path: Path) -> None:
    configuration = a_configuration(broker=f"{BROKER}lease_s: 2\nheartbeat_s: 0.5\n")
    with a_broker(tmp_path, configuration) as play, play.operator() as client, play.agent() as agent:
        client.submit(a_spec())
        attempt = agent.next(Dispatch)
        with files_at_most(0):
            client.say(Submit("r", "k", (a_spec(),)))
            hello_again(client)
            time.sleep(3.0)  # longer than a lease: nothing can be waited for, nothing is to happen

        def welcomed() -> bool:
            agent.say(an_agent_hello(a_status((attempt.attempt_uid,))))
            return any(isinstance(one, Welcome) for one in agent.drain(0.2))

        eventually(welcomed)
        story = client.ask(GetStory("g", attempt.task_id), Story)
        assert [one.state for one in story.attempts] == [AttemptState.RUNNING]
        assert [one.after for one in story.events] == [TaskState.QUEUED, TaskState.RUNNING], "it ran all the time"


def test_a_submission_that_cannot_be_stored_is_put_aside_and_all_others_go_on(tmp_path: Path) -> None:
    with a_broker(tmp_path) as play, play.operator() as client, play.peer(play.enrol("rin", Role.CLIENT)) as other:
        other.hello()
        fault = FaultyDisk(play, "INSERT INTO submissions", sqlite3.SQLITE_CONSTRAINT, "poison")
        client.say(Submit("r1", "poison", (a_spec(),)))
        hello_again(client)
        hello_again(other)
        again = client.ask(Submit("r1", "poison", (a_spec(),)), Error)
        assert (again.code, again.request_id) == (Code.INTERNAL, "r1")
        assert fault.hits == 2  # with its group, then alone; never again
        client.submit(a_spec(), key="k2")
        other.submit(a_spec(), key="k3")
        alerts = client.ask(GetStatus("s"), Status).alerts
        assert [alert.code for alert in alerts if alert.code == "quarantined"] == ["quarantined"]
        with sqlite3.connect(f"file:{play.home.state / 'koubou.db'}?mode=ro", uri=True) as database:
            assert database.execute("SELECT principal, kind FROM quarantined").fetchall() == [
                ("operator", "submission")
            ]
        database.close()


def test_a_result_that_cannot_be_stored_is_taken_off_the_agent_and_the_task_runs_again(tmp_path: Path) -> None:
    with a_broker(tmp_path) as play, play.operator() as client, play.agent() as agent:
        task_id = client.submit(a_spec()).tasks[0].task_id
        first = agent.next(Dispatch)
        fault = FaultyDisk(play, "INSERT INTO worker_metrics", sqlite3.SQLITE_CONSTRAINT)
        agent.say(a_result(first.attempt_uid))
        assert agent.next(Error).code is Code.HELLO_REQUIRED
        held = a_status(spooled=(first.attempt_uid,))
        agent.ask(an_agent_hello(held), Welcome)
        assert agent.ask(a_result(first.attempt_uid, last=0), ResultStored).disposition is Disposition.PARKED
        fault.is_on = False
        agent.ask(Heartbeat(1, 0, a_status(), None), HeartbeatAck)
        second = agent.next(Dispatch)
        assert second.attempt_uid != first.attempt_uid
        agent.ask(a_result(second.attempt_uid), ResultStored)
        hello_again(client)
        assert client.ask(GetTasks("g", (task_id,)), Tasks).tasks[0].state is TaskState.SUCCEEDED


def test_after_an_io_error_nothing_is_told_and_the_broker_ends(tmp_path: Path) -> None:
    with a_broker(tmp_path) as play, play.operator() as client:
        FaultyDisk(play, "INSERT INTO tasks", sqlite3.SQLITE_IOERR)
        client.say(Submit("r1", "k1", (a_spec(),)))
        eventually(lambda: play.stopped)
        assert client.drain(0.1) == []
    with a_broker(tmp_path) as play, play.operator() as client:
        assert client.submit(a_spec()).tasks[0].existing is False


def test_a_broker_that_was_replaced_ends_although_it_has_nothing_to_write(tmp_path: Path) -> None:
    with a_broker(tmp_path) as play, play.operator():
        eventually(lambda: play.server._conductor.is_settled)
        with closing(sqlite3.connect(play.server._machine.database)) as other, other:
            other.execute("UPDATE meta SET value = value + 1 WHERE key = 'epoch'")
        stop = eventually(lambda: play.stopped)[0]
        assert "another broker" in str(stop)


def test_a_broker_whose_access_control_died_ends(tmp_path: Path) -> None:
    with a_broker(tmp_path) as play:
        play.server._machine.access.stop()
        stop = eventually(lambda: play.stopped)[0]
        assert "access control" in str(stop)


def test_a_peer_that_reads_nothing_holds_up_nobody_and_loses_its_session(tmp_path: Path) -> None:
    large = b"n" * 250_000
    with (
        a_broker(tmp_path) as play,
        play.operator() as client,
        play.peer(play.enrol("rin", Role.CLIENT), rcvhwm=1) as slow,
        play.agent() as agent,
    ):
        slow.hello()
        task_id = slow.submit(a_spec()).tasks[0].task_id
        agent.ask(a_result(agent.next(Dispatch).attempt_uid, large), ResultStored)
        sessions = play.server._conductor._sessions
        mine = max(sessions._by_number)
        asked = itertools.count()

        def is_given_up() -> bool:
            for _ in range(20):
                slow.say(GetResult(f"g{next(asked)}", task_id))
            return sessions.get(mine) is None

        eventually(is_given_up, what="the session of the slow peer is given up")
        client.submit(a_spec(), key="k2")
        client.ask(GetStatus("s"), Status)


def test_a_revoked_key_is_told_so_once_a_message_and_gets_nothing_else(tmp_path: Path) -> None:
    with a_broker(tmp_path) as play, play.operator() as operator, play.peer(play.enrol("rin", Role.CLIENT)) as rin:
        rin.hello()
        operator.ask(RevokeKey("x", "rin"), Keys)
        for message in (GetStatus("s"), Submit("r", "k", (a_spec(b"p", {"f": b"x" * 9_000}, inline=False),))):
            rin.say(message)
            heard = rin.drain()
            assert [getattr(one, "code", one) for one in heard] == [Code.NOT_AUTHORISED]


def test_a_look_up_or_a_body_that_cannot_be_read_is_answered_and_told_to_people(tmp_path: Path) -> None:
    answer = b"n" * 100
    with a_broker(tmp_path) as play, play.operator() as client, play.agent() as agent:
        task_id = client.submit(a_spec()).tasks[0].task_id
        agent.ask(a_result(agent.next(Dispatch).attempt_uid, answer), ResultStored)
        play.server._conductor._cache._held.clear()
        fault = FaultyDisk(play, "FROM tasks", sqlite3.SQLITE_CONSTRAINT, engine=reader_of(play))
        for _ in range(70):  # more than one session may have under way
            assert client.ask(GetTasks("g", (task_id,)), Error).code is Code.INTERNAL
        fault.is_on = False
        assert "lookup_failed" in [alert.code for alert in client.ask(GetStatus("s"), Status).alerts]
        fault = FaultyDisk(play, "FROM blob_chunk", sqlite3.SQLITE_CONSTRAINT, engine=reader_of(play))
        unread = client.ask(GetResult("r", task_id), Error)
        assert (unread.code, unread.request_id) == (Code.INTERNAL, "r")
        body = a_result("u" * 32, answer).raw
        for _ in range(20):
            client.say(BlobGet(body.sha256, 0))
        assert client.drain(0.3) == []
        fault.is_on = False
        assert client.ask(BlobGet(body.sha256, 0), BlobChunk).data == answer
        assert client.ask(GetResult("r", task_id), TaskResult).body == body
