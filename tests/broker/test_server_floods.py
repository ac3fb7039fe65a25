"""One key floods, or never reads: everybody else is served, and the broker keeps no more than it has room for."""

import hashlib
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from koubou_broker import reception as reception_module
from koubou_broker import server as server_module
from koubou_broker.usage import OWED_EACH
from koubou_common.errors import Code
from koubou_common.messages import (
    BlobGet,
    BlobMissing,
    Error,
    GetStatus,
    GetTasks,
    PartStaged,
    Status,
    Submit,
    Submitted,
    Tasks,
)
from koubou_common.messages.limits import CHUNK_BYTES, MIB, QUEUE_BYTES
from koubou_common.messages.values import Role
from support.broker_play import BROKER, BrokerPlay, Peer, a_broker, a_configuration, a_spec, serve_chunk
from support.waiting import eventually

FLOOD = 1_500  # messages, less than a line holds
SMALL_LIMITS = "limits: {prompt_bytes: 1048576, file_bytes: 1048576, task_bytes: 1048576"


def waiting(play: BrokerPlay, who: str) -> int:
    """How many messages of a client are not looked at yet."""
    return play.server._reception._shares.waiting().get(who, 0)


def questions(rin: Peer) -> None:
    for number in range(FLOOD):
        rin.say(GetTasks(f"g{number}"))


def submissions(rin: Peer) -> None:
    for number in range(FLOOD):
        rin.say(Submit(f"r{number}", f"k{number}", (a_spec(b"%d" % number),)))


@pytest.mark.parametrize("flood", [questions, submissions])
def test_a_quiet_client_is_answered_while_a_flood_waits(tmp_path: Path, flood: Callable[[Peer], None]) -> None:
    with a_broker(tmp_path) as play, play.operator() as quiet, play.peer(play.enrol("rin", Role.CLIENT)) as rin:
        rin.hello()
        rin.socket.sndhwm = 0
        flood(rin)
        eventually(lambda: waiting(play, "rin") > FLOOD // 2, what="the flood is read")
        assert quiet.submit(a_spec(), key="quiet").tasks
        assert quiet.ask(GetStatus("s"), Status).request_id == "s"
        assert waiting(play, "rin") > FLOOD // 4, "the flood was served first"


def test_a_flood_puts_no_more_before_others_on_the_way_to_the_disk_than_it_may(tmp_path: Path) -> None:
    with a_broker(tmp_path) as play, play.operator() as quiet, play.peer(play.enrol("rin", Role.CLIENT)) as rin:
        rin.hello()
        disk = sqlite3.connect(play.home.state / "koubou.db", isolation_level=None)
        disk.execute("BEGIN IMMEDIATE")  # as a stalled disk: nothing becomes durable
        for number in range(200):
            rin.say(Submit(f"r{number}", f"k{number}", (a_spec(b"%d" % number),)))
        eventually(lambda: waiting(play, "rin") > 100, what="it is held back")
        quiet.say(Submit("q", "quiet", (a_spec(),)))
        conductor = play.server._conductor
        eventually(lambda: conductor._ledger.owed_to("operator"), what="the quiet one goes to the store")
        assert OWED_EACH <= conductor._ledger.owed_to("rin") < OWED_EACH + 10
        disk.execute("ROLLBACK")
        disk.close()
        quiet.next(Submitted)
        assert {rin.next(Submitted).request_id for _ in range(200)} == {f"r{number}" for number in range(200)}
        eventually(lambda: not conductor._ledger._owed, what="nothing is owed any more")


def test_bytes_that_are_no_message_cost_others_nothing(tmp_path: Path) -> None:
    with a_broker(tmp_path) as play, play.operator() as quiet, play.peer(play.enrol("rin", Role.CLIENT)) as rin:
        for _ in range(FLOOD):
            rin.socket.send(b"\x93" * 500)
        assert quiet.submit(a_spec(), key="quiet").tasks
        rin.hello()  # after all that was before it
        assert play.server._conductor.undecodable == FLOOD


def test_who_sends_more_than_is_kept_is_told_when_to_come_again_and_shown_to_operators(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "CHECK_S", 0.05)
    monkeypatch.setattr(reception_module, "SHOWN_S", 0.5)
    with a_broker(tmp_path) as play, play.operator() as boss, play.peer(play.enrol("rin", Role.CLIENT)) as rin:
        rin.hello()
        play.server._reception._shares._messages = 5
        asked = {f"g{number}" for number in range(300)}
        for request_id in sorted(asked):
            rin.say(GetTasks(request_id))
        answered: set[str] = set()
        refused: set[str] = set()

        def take() -> bool:
            for message in rin.drain(0.05):
                if isinstance(message, Error):
                    assert (message.code, message.retry_after_s) == (Code.BUSY, 2.0)
                    refused.add(message.request_id)
                elif isinstance(message, Tasks):
                    answered.add(message.request_id)
            return answered | refused == asked

        eventually(take, what="all are answered somehow")
        assert refused
        assert answered
        for request_id in sorted(refused):
            assert rin.ask(GetTasks(request_id), Tasks).request_id == request_id

        def shown() -> str:
            alerts = boss.ask(GetStatus("s"), Status).alerts
            return next((alert.message for alert in alerts if alert.code == "held_back:rin"), "")

        rin.say(GetTasks("more"))
        for number in range(50):
            rin.say(GetTasks(f"h{number}"))
        assert "messages wait" in eventually(shown, what="operators see it")
        eventually(lambda: not shown(), what="it ends by itself")


def test_who_never_reads_loses_its_session_and_nobody_else_s_time(tmp_path: Path) -> None:
    file = bytes(2 * MIB)
    sha256 = hashlib.sha256(file).digest()
    with a_broker(tmp_path) as play, play.operator() as quiet:
        pair = play.enrol("rin", Role.CLIENT)
        with play.peer(pair) as rin, play.peer(pair, rcvhwm=1) as deaf:
            rin.hello()
            rin.say(Submit("r", "k", (a_spec(b"p", {"f": file}, inline=False),)))
            for _ in range(len(file) // CHUNK_BYTES):
                serve_chunk(rin, file)
            rin.next(Submitted)
            deaf.hello()
            sessions = play.server._conductor._sessions

            def is_given_up() -> bool:
                for index in range(len(file) // CHUNK_BYTES):
                    deaf.say(BlobGet(sha256, index))
                assert sum(sessions._queued.values()) < 2 * QUEUE_BYTES
                quiet.ask(GetStatus("s"), Status, 5.0)
                return sessions._given_up > 0

            eventually(is_given_up, 30.0, "its session is given up")
            assert quiet.submit(a_spec(), key="quiet").tasks
            rin.ask(GetStatus("s"), Status)  # its other connections are as good as ever
            codes = [one.code for one in deaf.drain(0.5) if isinstance(one, Error)]
            assert Code.HELLO_REQUIRED in codes
            deaf.hello()


def abandon(rin: Peer, number: int) -> Error | None:
    """Upload a file of a submission whose second file is not there; the refusal if nothing was asked for."""
    data = b"%07d" % number * 100_000
    rin.say(Submit(f"r{number}", f"k{number}", (a_spec(b"p", {"a": data, "b": b"gone" * 2_000}, inline=False),)))
    message: BlobGet | Error = rin.next((BlobGet, Error))  # type: ignore[arg-type] # isinstance takes either
    if isinstance(message, Error):
        return message
    rin.heard.insert(0, message)
    for _ in range(-(-len(data) // CHUNK_BYTES)):
        serve_chunk(rin, data)
    asked = rin.next(BlobGet)
    rin.say(BlobMissing(asked.sha256))
    rin.next(Error)
    return None


def test_uploads_for_nothing_are_bounded_also_after_a_restart(tmp_path: Path) -> None:
    text = f"{BROKER}{SMALL_LIMITS}, unreferenced_bytes_per_client: 2000000}}\n"
    with a_broker(tmp_path, a_configuration(text)) as play:
        pair = play.enrol("rin", Role.CLIENT)
        with play.peer(pair) as rin:
            rin.hello()
            refusals = [abandon(rin, number) for number in range(3)]
            assert refusals[:2] == [None, None]
            assert refusals[2] is not None
            assert refusals[2].code is Code.BUSY
            assert "unreferenced_bytes_per_client is 2,000,000" in refusals[2].message
            assert refusals[2].retry_after_s >= 60
    with a_broker(tmp_path, a_configuration(text)) as play, play.peer(pair) as rin:
        rin.hello()
        error = abandon(rin, 4)
        assert error is not None
        assert "unreferenced_bytes_per_client" in error.message
        # What was sent is of use now: a task that names it is taken, and it counts no more.
        data = b"%07d" % 0 * 100_000
        assert rin.submit(a_spec(b"p", {"a": data}, inline=False), key="new").tasks
        assert abandon(rin, 5) is None


def test_parts_that_are_never_finished_count_as_uploads(tmp_path: Path) -> None:
    text = f"{BROKER}{SMALL_LIMITS}, unreferenced_bytes_per_client: 1100000}}\n"
    with a_broker(tmp_path, a_configuration(text)) as play, play.operator() as client:
        for number in range(3):
            prompt = b"%d" % number * 200_000
            client.ask(Submit(f"r{number}", f"k{number}", (a_spec(prompt),), part=0, parts=2), PartStaged)
        uploads = play.server._conductor._intake.uploads
        assert uploads.held_bytes("operator", 0.0) == 600_000
        client.ask(Submit("r", "k1", (a_spec(b"last"),), part=1, parts=2), Submitted)
        assert uploads.held_bytes("operator", 0.0) == 400_000
