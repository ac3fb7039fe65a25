"""A refusal that says when to come again is obeyed: never earlier, the same request, as long as patience lasts."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import Future
from itertools import pairwise
from pathlib import Path

import pytest

from koubou_client import connection as connection_module
from koubou_client.client import Client
from koubou_client.connection import Connection, new_request_id
from koubou_client.pending import settle
from koubou_client.tasks import draft_task
from koubou_common.errors import Code, KoubouError
from koubou_common.messages import ClientHello, Error, GetStatus, GetTasks, Message, Status, Submit, Tasks
from support.ctl import Ctl
from support.fake_workshop import FakeWorkshop
from support.waiting import eventually

pytestmark = pytest.mark.usefixtures("repo")

RETRY_S = 0.2


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes half a minute in life takes moments here, and is no blip all the same."""
    monkeypatch.setattr(connection_module, "_BLIP_S", 0.0)


class Refusing:
    """Refuses so many submissions; when each came."""

    def __init__(self, workshop: FakeWorkshop, times: int, code: Code = Code.STORE_FULL) -> None:
        self.came_s: list[float] = []
        self._left = times
        self._code = code
        workshop.hook = self

    def __call__(self, message: Message) -> list[Message] | None:
        if not isinstance(message, Submit) or message.dry_run:
            return None
        self.came_s.append(time.monotonic())
        self._left -= 1
        if self._left < 0:
            return None
        return [Error(self._code, "the disk is full", "make room", message.request_id, RETRY_S)]


@pytest.mark.parametrize("code", [Code.STORE_FULL, Code.BUSY])
def test_a_refused_submission_comes_again_when_it_was_told_and_not_before(
    workshop: FakeWorkshop, client: Client, code: Code
) -> None:
    refusing = Refusing(workshop, 3, code)
    waits: list[tuple[str, float, float]] = []
    client.submit_drafts(
        [draft_task("hello")], on_wait=lambda why, wait_s: waits.append((why.message, why.retry_after_s, wait_s))
    )
    submits = workshop.heard(Submit)
    assert len(submits) == 4
    assert len(set(submits)) == 1, "another request, or another key"
    assert all(later - earlier >= RETRY_S for earlier, later in pairwise(refusing.came_s))
    assert [(why, told_s) for why, told_s, _ in waits] == [("the disk is full", RETRY_S)] * 3
    assert all(RETRY_S <= wait_s <= 1.5 * RETRY_S for _, _, wait_s in waits)
    assert len({wait_s for _, _, wait_s in waits}) == 3, "all who were refused at once come back at once"


def test_patience_ends_with_the_reason(workshop: FakeWorkshop, client: Client) -> None:
    refusing = Refusing(workshop, 1_000)
    with pytest.raises(KoubouError, match="the disk is full") as caught:
        client.submit_drafts([draft_task("hello")], patience_s=3 * RETRY_S)
    assert (caught.value.code, caught.value.retry_after_s) == (Code.STORE_FULL, RETRY_S)
    assert caught.value.hint == "make room (try again in 0 s)"
    assert 2 <= len(refusing.came_s) <= 3


def test_without_patience_a_refusal_is_told_at_once(workshop: FakeWorkshop, client: Client) -> None:
    refusing = Refusing(workshop, 1_000, Code.BUSY)
    with pytest.raises(KoubouError):
        client.submit_drafts([draft_task("hello")], patience_s=0.0)
    assert len(refusing.came_s) == 1


def test_what_waiting_does_not_mend_is_never_waited_for(workshop: FakeWorkshop, client: Client) -> None:
    refusing = Refusing(workshop, 1_000, Code.CONFLICT)
    with pytest.raises(KoubouError) as caught:
        client.submit_drafts([draft_task("hello")])
    assert caught.value.code is Code.CONFLICT
    assert len(refusing.came_s) == 1


def test_a_program_s_submissions_wait_for_room(workshop: FakeWorkshop, client: Client) -> None:
    refusing = Refusing(workshop, 2)
    future = client.submit("hello")
    workshop.succeed(future.id, b"hi\n")
    assert future.result(15).text == "hi\n"
    assert len(refusing.came_s) == 3


def test_a_moment_is_waited_without_any_patience(
    workshop: FakeWorkshop, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "_BLIP_S", RETRY_S)
    refusing = Refusing(workshop, 2, Code.BUSY)
    waits: list[float] = []
    client.submit_drafts([draft_task("hello")], patience_s=0.0, on_wait=lambda _, wait_s: waits.append(wait_s))
    assert len(refusing.came_s) == 3
    assert waits == [], "nobody wants to hear of moments"


@pytest.fixture
def connection(workshop: FakeWorkshop) -> Iterator[Connection]:
    door = workshop.door
    with Connection([door.address], door.pair.public, workshop.pair, software="test") as connection:
        connection.welcome()
        yield connection


def test_no_more_requests_are_under_way_than_a_broker_keeps(
    workshop: FakeWorkshop, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "_OUTSTANDING", 3)
    workshop.hook = lambda message: [] if isinstance(message, GetTasks) else None
    futures: list[Future[Tasks]] = [Future() for _ in range(10)]
    ids = [new_request_id() for _ in futures]
    for request_id, future in zip(ids, futures, strict=True):
        connection.begin(GetTasks(request_id), settle(future))
    connection.begin(GetStatus(new_request_id()), lambda _: None)
    workshop.await_heard(GetTasks, 3)
    workshop.hook = lambda message: (
        [Tasks(one, (), 0) for one in [*ids[:3], message.request_id]] if isinstance(message, GetTasks) else None
    )
    monkeypatch.setattr(connection_module, "_RESEND_S", 0.05)
    assert len(workshop.heard(GetTasks)) == 3
    assert workshop.heard(GetStatus) == []
    for future in futures:
        future.result(15)
    eventually(lambda: workshop.heard(GetStatus))


def test_a_hello_that_comes_too_soon_is_said_again_later_and_what_waits_goes_on(
    workshop: FakeWorkshop, connection: Connection
) -> None:
    workshop.forget_sessions()
    refused: list[float] = []

    def busy(message: Message) -> list[Message] | None:
        if isinstance(message, ClientHello) and len(refused) < 2:
            refused.append(time.monotonic())
            return [Error(Code.BUSY, "64 connections are in use", "", "", RETRY_S)]
        return None

    workshop.hook = busy
    assert connection.call(GetStatus(new_request_id()), Status, timeout_s=15).version
    assert refused[1] - refused[0] >= RETRY_S


def test_a_person_at_a_terminal_is_told_at_once(ctl: Ctl, workshop: FakeWorkshop) -> None:
    refusing = Refusing(workshop, 1_000)
    ran = ctl("submit", "hello", is_terminal=True)
    assert ran.code == 7
    assert ran.err == "error[store-full]: the disk is full\n  fix: make room (try again in 0 s)\n"
    assert len(refusing.came_s) == 1


@pytest.mark.parametrize("more", [(), ("--patience", "1m")])
def test_a_script_waits_and_says_so(ctl: Ctl, workshop: FakeWorkshop, more: tuple[str, ...]) -> None:
    Refusing(workshop, 1)
    ran = ctl("submit", "hello", *more, is_terminal=bool(more))
    assert ran.code == 0
    assert "the workshop takes no new tasks: the disk is full; trying again in 0 s\n" in ran.err


def test_who_waits_for_the_output_waits_for_room_too(ctl: Ctl, workshop: FakeWorkshop) -> None:
    Refusing(workshop, 1)
    workshop.on_submit = lambda shop, ids: shop.succeed(ids[0], b"hi\n")
    ran = ctl("submit", "hello", "--wait", is_terminal=True)
    assert (ran.code, ran.out) == (0, "hi\n")
    assert "takes no new tasks" in ran.err


def test_a_file_of_tasks_waits_unless_told_not_to(ctl: Ctl, workshop: FakeWorkshop, repo: Path) -> None:
    (repo / "tasks.jsonl").write_text(json.dumps({"prompt": "hello"}))
    Refusing(workshop, 1)
    assert ctl("submit", "--jsonl", "tasks.jsonl", is_terminal=True).code == 0
    refusing = Refusing(workshop, 1)
    ran = ctl("submit", "--jsonl", "tasks.jsonl", "--patience", "0s")
    assert (ran.code, len(refusing.came_s)) == (7, 1)


def test_json_is_not_mixed_with_words(ctl: Ctl, workshop: FakeWorkshop) -> None:
    Refusing(workshop, 1)
    ran = ctl("submit", "hello", "--json")
    assert (ran.code, ran.err) == (0, "")
