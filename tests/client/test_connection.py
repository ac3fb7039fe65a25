"""One connection: requests are repeated until answered, watches until they end, over restarts of the broker."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future

import pytest

from koubou_client import connection as connection_module
from koubou_client.connection import Connection, new_request_id
from koubou_client.inputs import body_of
from koubou_client.pending import settle
from koubou_common.errors import Code, KoubouError
from koubou_common.messages import (
    ClientHello,
    Error,
    GetStatus,
    GetTasks,
    PartStaged,
    Status,
    Submit,
    Submitted,
    TaskChanged,
    Tasks,
    Watch,
)
from koubou_common.messages.values import TaskMark, TaskSpec, TaskState
from support.fake_workshop import FakeWorkshop, a_view
from support.waiting import eventually

Connect = Callable[..., Connection]


@pytest.fixture
def connect(workshop: FakeWorkshop) -> Iterator[Connect]:
    opened: list[Connection] = []

    def connect(**more: float) -> Connection:
        door = workshop.door
        opened.append(Connection([door.address], door.pair.public, workshop.pair, software="test", **more))
        return opened[-1]

    yield connect
    for connection in opened:
        connection.close()


def ask(connection: Connection) -> Tasks:
    return connection.call(GetTasks(new_request_id()), Tasks, timeout_s=15)


def test_a_request_is_answered_under_its_id(connect: Connect, workshop: FakeWorkshop) -> None:
    connection = connect()
    requests = [GetTasks(new_request_id()) for _ in range(20)]
    futures: list[Future[Tasks]] = []
    for request in requests:
        future: Future[Tasks] = Future()
        connection.begin(request, settle(future))
        futures.append(future)
    assert [future.result(15).request_id for future in futures] == [request.request_id for request in requests]


def test_many_threads_share_one_connection(connect: Connect) -> None:
    connection = connect()
    answers: list[Tasks] = []
    threads = [threading.Thread(target=lambda: answers.extend(ask(connection) for _ in range(10))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(answers) == 80


def test_an_unanswered_request_is_repeated(
    connect: Connect, workshop: FakeWorkshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "_RESEND_S", 0.1)
    workshop.hook = lambda message: [] if len(workshop.heard(GetTasks)) == 1 else None
    ask(connect())
    first, second = workshop.heard(GetTasks)
    assert first == second


def test_a_hello_without_an_answer_is_repeated(
    connect: Connect, workshop: FakeWorkshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "_HELLO_RESEND_S", 0.1)
    workshop.hook = lambda message: (
        [] if isinstance(message, ClientHello) and len(workshop.heard(ClientHello)) == 1 else None
    )
    assert connect().welcome().principal == "mika"
    assert len(workshop.heard(ClientHello)) == 2


def test_requests_survive_the_death_of_the_broker(connect: Connect, workshop: FakeWorkshop) -> None:
    connection = connect()
    ask(connection)
    workshop.kill()
    future: Future[Tasks] = Future()
    connection.begin(GetTasks(new_request_id()), settle(future))
    workshop.revive()
    assert future.result(20).tasks == ()


def test_a_forgotten_session_is_opened_with_one_hello(connect: Connect, workshop: FakeWorkshop) -> None:
    connection = connect()
    ask(connection)
    workshop.forget_sessions()
    futures: list[Future[Tasks]] = [Future() for _ in range(10)]
    for future in futures:
        connection.begin(GetTasks(new_request_id()), settle(future))
    for future in futures:
        future.result(15)
    assert len(workshop.heard(ClientHello)) == 2
    assert connection.session == 2


def test_a_request_of_one_session_is_not_repeated_in_the_next(connect: Connect, workshop: FakeWorkshop) -> None:
    connection = connect()
    connection.welcome()
    workshop.forget_sessions()
    part = Submit(new_request_id(), "k", (TaskSpec(body_of(b"x")),), part=1, parts=2)
    with pytest.raises(KoubouError) as caught:
        connection.call(part, PartStaged, {body_of(b"x").sha256: b"x"}, timeout_s=15, session=1)
    assert caught.value.code is Code.HELLO_REQUIRED
    assert len(workshop.heard(Submit)) == 1
    with pytest.raises(KoubouError) as caught:
        connection.call(part, PartStaged, timeout_s=15, session=1)
    assert caught.value.code is Code.HELLO_REQUIRED
    assert len(workshop.heard(Submit)) == 1


def test_an_error_is_raised_with_its_hint(connect: Connect, workshop: FakeWorkshop) -> None:
    workshop.hook = lambda message: (
        [Error(Code.STORE_FULL, "the disk is full", "make room", message.request_id, 30.0)]
        if isinstance(message, GetStatus)
        else None
    )
    with pytest.raises(KoubouError, match="the disk is full") as caught:
        connect().call(GetStatus(new_request_id()), Status, timeout_s=15)
    assert (caught.value.code, caught.value.hint) == (Code.STORE_FULL, "make room (try again in 30 s)")


def test_an_error_about_the_session_ends_all_that_waits(connect: Connect, workshop: FakeWorkshop) -> None:
    workshop.hook = lambda message: (
        [Error(Code.VERSION, "no common version", "upgrade")] if isinstance(message, ClientHello) else None
    )
    with pytest.raises(KoubouError, match="no common version"):
        connect().welcome()


def test_an_answer_of_an_older_broker_changes_nothing(connect: Connect, workshop: FakeWorkshop) -> None:
    connection = connect()
    ask(connection)
    workshop.epoch -= 1
    future: Future[Tasks] = Future()
    connection.begin(GetTasks(new_request_id()), settle(future))
    workshop.await_heard(GetTasks, 2)
    workshop.epoch += 2
    assert connection.call(GetStatus(new_request_id()), Status, timeout_s=15).version == "0.1.0"
    assert not future.done()


def test_an_answer_of_another_type_is_named(connect: Connect, workshop: FakeWorkshop) -> None:
    workshop.hook = lambda message: [PartStaged(message.request_id, 0)] if isinstance(message, GetTasks) else None
    with pytest.raises(KoubouError, match="PartStaged"):
        ask(connect())


def test_a_watch_tells_the_state_now_and_every_change(connect: Connect, workshop: FakeWorkshop) -> None:
    workshop.tasks[7] = a_view(7)
    seen: list[TaskState] = []
    missing: list[int] = []

    def on_marks(marks: Sequence[TaskMark], ids: Sequence[int]) -> bool:
        seen.extend(mark.state for mark in marks)
        missing.extend(ids)
        return False

    connect().watch([7, 8], on_marks)
    eventually(lambda: seen)
    workshop.start(7)
    workshop.edit(7, state=TaskState.FAILED)
    eventually(lambda: len(seen) == 3)
    assert seen == [TaskState.QUEUED, TaskState.RUNNING, TaskState.FAILED]
    assert missing == [8]


def test_a_watch_that_has_heard_enough_is_told_no_more(connect: Connect, workshop: FakeWorkshop) -> None:
    workshop.tasks[7] = a_view(7)
    seen: list[int] = []
    connection = connect()

    def hear_once(marks: Sequence[TaskMark], missing: Sequence[int]) -> bool:
        seen.append(len(marks))
        return True

    connection.watch([7], hear_once)
    eventually(lambda: seen)
    workshop.start(7)
    ask(connection)
    assert seen == [1]


def test_a_busy_broker_is_asked_to_watch_again(connect: Connect, workshop: FakeWorkshop) -> None:
    workshop.tasks[7] = a_view(7)
    workshop.hook = lambda message: (
        [Error(Code.BUSY, "a moment", "", message.request_id, 0.05)]
        if isinstance(message, Watch) and len(workshop.heard(Watch)) == 1
        else None
    )
    told = threading.Event()

    def hear_once(marks: Sequence[TaskMark], missing: Sequence[int]) -> bool:
        told.set()
        return True

    connect().watch([7], hear_once)
    assert told.wait(15)


def test_a_stranger_to_our_watches_is_ignored(connect: Connect, workshop: FakeWorkshop) -> None:
    connection = connect()
    mark = TaskMark(7, TaskState.FAILED, "", 1)
    workshop.hook = lambda message: (
        [TaskChanged("nobody", mark), Tasks(message.request_id, (), 0)] if isinstance(message, GetTasks) else None
    )
    assert ask(connection).tasks == ()


def test_a_closed_connection_answers_every_request_with_that(connect: Connect, workshop: FakeWorkshop) -> None:
    connection = connect()
    connection.welcome()
    workshop.hook = lambda message: []
    waiting: Future[Tasks] = Future()
    connection.begin(GetTasks(new_request_id()), settle(waiting))
    connection.close()
    connection.close()
    errors: list[KoubouError] = []
    connection.watch([1], lambda *_: True, errors.append)
    for ended in (waiting, connection.fetch(body_of(b"x"))):
        error = ended.exception(5)
        assert isinstance(error, KoubouError)
        errors.append(error)
    with pytest.raises(KoubouError) as caught:
        ask(connection)
    assert {error.code for error in (*errors, caught.value)} == {Code.BROKER_UNREACHABLE}
    assert len(errors) == 3


def test_a_broker_that_stays_away_is_given_up_after_the_outage_time(connect: Connect, workshop: FakeWorkshop) -> None:
    connection = connect(outage_timeout_s=0.3)
    connection.welcome()
    workshop.kill()
    eventually(lambda: not connection._was_connected, what="the loss is noticed")
    with pytest.raises(KoubouError) as caught:
        ask(connection)
    assert caught.value.code is Code.BROKER_UNREACHABLE
    workshop.revive()
    assert eventually(lambda: connection.session == 2, timeout_s=20, what="it comes back by itself")
    ask(connection)


def test_a_large_body_of_a_request_is_given_when_asked_for(connect: Connect, workshop: FakeWorkshop) -> None:
    data = b"long " * 300_000
    body = body_of(data)
    connection = connect()
    accepted = connection.call(
        Submit(new_request_id(), "k", (TaskSpec(body),)), Submitted, {body.sha256: data}, timeout_s=20
    )
    assert len(accepted.tasks) == 1
    assert connection._offer._bodies == {}
