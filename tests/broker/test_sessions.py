"""Sessions and their queues: what is sent, held back, shortened, forgotten."""

from dataclasses import replace

import pytest

from koubou_broker.sessions import NoSuchPeerError, PeerFullError, Sessions
from koubou_common.codec import decode
from koubou_common.messages import Error, FromBroker, Keys, Message, Preview, Removed, Status, Workers
from koubou_common.messages.limits import PART_TASKS
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
