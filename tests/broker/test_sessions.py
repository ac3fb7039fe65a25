"""Sessions and their queues: what is sent, held back, shortened, forgotten."""

from dataclasses import replace

import pytest

from koubou_broker.sessions import NoSuchPeerError, PeerFullError, Sessions
from koubou_common.codec import decode
from koubou_common.messages import Error, FromBroker, Keys, Message, Preview, Removed, Status, Workers
from koubou_common.messages.limits import PART_TASKS, QUEUE_BYTES
from koubou_common.messages.values import (
    AlertView,
    Candidate,
    KeyView,
    Plan,
    Role,
    WorkerMode,
    WorkerView,
)

LONG = "𝕏"  # four bytes


class Wire:
    """Takes frames, or does not."""

    def __init__(self) -> None:
        self.frames: list[tuple[bytes, bytes]] = []
        self.fault: Exception | None = None

    def __call__(self, route: bytes, data: bytes) -> None:
        if self.fault is not None:
            raise self.fault
        self.frames.append((route, data))

    def messages(self) -> list[Message]:
        return [decode(data).message for _, data in self.frames]


def a_worker(nth: int) -> WorkerView:
    name, word = LONG * 255, LONG * 64
    return WorkerView(
        f"w{nth}".ljust(64, "w"), "remote", True, WorkerMode.ACTIVE, 2, 2, name, (name,) * 8, (name,) * 8,
        0.5, 0.5, 2**53, 2**53, 2**53, 2**53, False, word, LONG * 2_000, name, name,
    )  # fmt: skip


def a_plan() -> Plan:
    candidate = Candidate("w" * 64, True, False, 230.0, LONG * 2_000)
    return Plan(LONG * 255, 2**53, LONG * 2_000, (candidate,) * 8, LONG * 2_000)


A_KEY = KeyView("n" * 64, Role.OPERATOR, "k" * 40, 2**53, 2**53, True, 2**53)
WORKERS = tuple(a_worker(nth) for nth in range(500))
ALERTS = tuple(AlertView(f"silent:{nth}".ljust(64, "x"), LONG * 2_000, 2**53) for nth in range(100))


@pytest.mark.parametrize(
    "message",
    [
        Workers("r" * 64, WORKERS),
        Status("r" * 64, LONG * 255, "p" * 64, Role.OPERATOR, 2**53, 2**53, (), 0, WORKERS, ALERTS),
        Preview("r" * 64, (a_plan(),) * PART_TASKS),
    ],
)
def test_an_answer_in_which_peers_used_every_limit_is_shortened_until_it_fits(message: FromBroker) -> None:
    wire = Wire()
    sessions = Sessions(2**62, wire)
    session, _ = sessions.heard(b"r", "k" * 40)
    sessions.send(session, message)
    assert sessions.flush() == []
    assert [type(one) for one in wire.messages()] == [type(message)]


def test_as_many_keys_as_are_shown_fit_one_message() -> None:
    key = KeyView("n" * 64, Role.OPERATOR, "k" * 40, 2**53, 2**53, True, 2**53)
    wire = Wire()
    sessions = Sessions(2**62, wire)
    session, _ = sessions.heard(b"r", "k" * 40)
    sessions.send(session, Keys("r" * 64, (key,) * 4_000))
    sessions.flush()
    assert [type(one) for one in wire.messages()] == [Keys]


def test_what_cannot_be_shortened_is_answered_with_an_error() -> None:
    key = KeyView("n" * 64, Role.OPERATOR, "k" * 40, 2**53, 2**53, True, 2**53)
    wire = Wire()
    sessions = Sessions(1, wire)
    session, _ = sessions.heard(b"r", "k" * 40)
    sessions.send(session, Keys("r1", (key,) * 9_000))
    sessions.flush()
    (error,) = wire.messages()
    assert isinstance(error, Error)
    assert (error.code, error.request_id) == ("too_large", "r1")


def test_a_full_connection_keeps_its_queue_and_a_gone_one_ends_the_session() -> None:
    wire = Wire()
    sessions = Sessions(1, wire)
    session, _ = sessions.heard(b"r", "k" * 40)
    wire.fault = PeerFullError()
    sessions.send(session, Removed())
    assert sessions.flush() == []
    assert sessions.is_waiting
    wire.fault = None
    assert sessions.flush() == []
    assert not sessions.is_waiting
    assert wire.messages() == [Removed()]
    wire.fault = NoSuchPeerError()
    sessions.send(session, Removed())
    assert sessions.flush() == [session.number]


def test_a_message_that_waits_for_bodies_holds_up_those_behind_it() -> None:
    wire = Wire()
    sessions = Sessions(1, wire)
    session, _ = sessions.heard(b"r", "k" * 40)
    first = sessions.send(session, Keys("r1", ()), is_complete=False)
    sessions.send(session, Removed())
    sessions.flush()
    assert wire.frames == []
    assert not sessions.is_waiting
    sessions.complete(session, first, replace(Keys("r1", ()), request_id="r2"))
    sessions.flush()
    assert wire.messages() == [Keys("r2", ()), Removed()]


def test_who_was_silent_longest_is_forgotten_when_there_are_too_many() -> None:
    sessions = Sessions(1, Wire(), most=2)
    first, _ = sessions.heard(b"1", "k" * 40)
    second, _ = sessions.heard(b"2", "k" * 40)
    first.is_greeted = second.is_greeted = True
    sessions.heard(b"1", "k" * 40)
    _, forgotten = sessions.heard(b"3", "k" * 40)
    assert forgotten == [second.number]
    assert len(sessions) == 2


def test_who_does_not_read_is_given_up_and_told_so_when_it_reads_again() -> None:
    wire = Wire()
    sessions = Sessions(1, wire)
    session, _ = sessions.heard(b"r", "k" * 40)
    session.is_greeted = True
    wire.fault = PeerFullError()
    over: list[int] = []
    sent = 0
    while not over:
        sessions.send(session, Keys("r1", (A_KEY,) * 500))
        sent += 1
        over = sessions.flush()
    assert over == [session.number]
    assert sessions.get(session.number) is None
    assert sent * 60_000 > QUEUE_BYTES / 2
    wire.fault = None
    assert sessions.flush() == []
    assert [one.code for one in wire.messages() if isinstance(one, Error)] == ["hello_required"]
    assert len(wire.frames) == 1
    again, _ = sessions.heard(b"r", "k" * 40)
    assert again.number != session.number
    assert not again.is_greeted
    assert sessions._queued == {}


def test_many_small_messages_count_for_what_they_take() -> None:
    wire = Wire()
    sessions = Sessions(1, wire)
    session, _ = sessions.heard(b"r", "k" * 40)
    wire.fault = PeerFullError()
    count = 0
    while not sessions.flush():
        for _ in range(100):
            sessions.send(session, Removed())
        count += 100
    assert count * 512 < 2 * QUEUE_BYTES


def test_the_queues_of_one_key_have_a_bound_together_and_the_longest_goes_first() -> None:
    wire = Wire()
    sessions = Sessions(1, wire)
    wire.fault = PeerFullError()
    mine = [sessions.heard(b"%d" % nth, "k" * 40)[0] for nth in range(10)]
    other, _ = sessions.heard(b"x", "o" * 40)
    message = Keys("r1", (A_KEY,) * 4_000)
    over: list[int] = []
    while not over:
        for session in (*mine, mine[3], other):
            if session.queued_bytes < QUEUE_BYTES - 1_000_000:
                sessions.send(session, message)
        over = sessions.flush()
        assert sum(session.queued_bytes for session in mine) < 6 * QUEUE_BYTES
    assert over == [mine[3].number]
    assert sessions.get(other.number) is other


def test_one_key_opens_no_more_sessions_than_it_may() -> None:
    sessions = Sessions(1, Wire(), most_each=2)
    first, _ = sessions.heard(b"1", "k" * 40)
    other, _ = sessions.heard(b"2", "o" * 40)
    second, _ = sessions.heard(b"3", "k" * 40)
    first.is_greeted = True
    sessions.heard(b"1", "k" * 40)
    _, forgotten = sessions.heard(b"4", "k" * 40)
    assert forgotten == []
    assert sessions.get(second.number) is None
    _, forgotten = sessions.heard(b"5", "k" * 40)
    assert forgotten == [first.number]
    assert sessions.get(other.number) is other
    assert len(sessions) == 3
