"""The outbox: nothing is forgotten before its answer, nothing overtakes, nothing grows without bound."""

from hypothesis import given
from hypothesis import strategies as st

from koubou_common.outbox import Outbox


class Wire:
    """Takes messages while it has room."""

    def __init__(self, room: int = 1_000) -> None:
        self.room = room
        self.taken: list[bytes] = []

    def send(self, data: bytes) -> bool:
        if self.room == 0:
            return False
        self.room -= 1
        self.taken.append(data)
        return True


def an_outbox(*bodies: bytes, most_requests: int = 100, most_bytes: int = 10_000) -> Outbox[str]:
    outbox: Outbox[str] = Outbox(resend_s=5.0, most_requests=most_requests, most_bytes=most_bytes)
    for body in bodies:
        assert outbox.add(body.decode(), body)
    return outbox


def test_nothing_leaves_and_nothing_is_due_before_a_session() -> None:
    outbox, wire = an_outbox(b"a"), Wire()
    outbox.flush(wire.send, 0.0)
    assert wire.taken == []
    assert outbox.next_deadline is None


def test_requests_leave_in_order_and_once_until_their_time_is_over() -> None:
    outbox, wire = an_outbox(b"a", b"b", b"c"), Wire()
    outbox.opened()
    assert outbox.next_deadline == 0.0
    outbox.flush(wire.send, 10.0)
    outbox.flush(wire.send, 14.9)
    assert wire.taken == [b"a", b"b", b"c"]
    assert outbox.next_deadline == 15.0
    outbox.flush(wire.send, 15.0)
    assert wire.taken == [b"a", b"b", b"c"] * 2


def test_an_acknowledged_request_is_not_sent_again() -> None:
    outbox, wire = an_outbox(b"a", b"b"), Wire()
    outbox.opened()
    outbox.flush(wire.send, 0.0)
    assert outbox.acknowledge("a")
    assert not outbox.acknowledge("a")
    assert not outbox.acknowledge("never asked")
    outbox.flush(wire.send, 5.0)
    assert wire.taken == [b"a", b"b", b"b"]
    assert "a" not in outbox
    assert "b" in outbox


def test_a_new_session_gets_all_that_is_unanswered_at_once() -> None:
    outbox, wire = an_outbox(b"a", b"b"), Wire()
    outbox.opened()
    outbox.flush(wire.send, 0.0)
    outbox.closed()
    outbox.flush(wire.send, 100.0)
    assert outbox.next_deadline is None
    outbox.opened()
    outbox.flush(wire.send, 100.1)
    assert wire.taken == [b"a", b"b"] * 2


def test_a_full_queue_stops_the_row_and_is_tried_again_soon() -> None:
    outbox, wire = an_outbox(b"a", b"b", b"c"), Wire(room=1)
    outbox.opened()
    outbox.flush(wire.send, 1.0)
    assert wire.taken == [b"a"]
    deadline = outbox.next_deadline
    assert deadline is not None
    assert 1.0 < deadline < 1.2
    wire.room = 1
    outbox.flush(wire.send, deadline)
    assert wire.taken == [b"a", b"b"]


def test_it_is_bounded_by_number_and_by_bytes_and_acknowledging_makes_room() -> None:
    outbox = an_outbox(b"a", b"b", most_requests=2)
    assert not outbox.add("c", b"c")
    outbox.acknowledge("a")
    assert outbox.add("c", b"c")
    heavy = an_outbox(b"aaaa", most_bytes=6)
    assert not heavy.add("b", b"bbb")
    assert heavy.add("b", b"bb")
    heavy.acknowledge("aaaa")
    assert heavy.add("c", b"cccc")


def test_the_same_request_twice_is_one_and_another_under_its_key_is_refused() -> None:
    outbox = an_outbox(b"a")
    assert outbox.add("a", b"a")
    assert len(outbox) == 1
    assert not outbox.add("a", b"other")


@given(st.lists(st.tuples(st.sampled_from("aspoc"), st.integers(0, 9)), max_size=60))
def test_whatever_happens_unanswered_requests_stay_in_order_and_all_leave_in_the_end(
    steps: list[tuple[str, int]],
) -> None:
    outbox, now_s = an_outbox(most_requests=6), 0.0
    expected: list[str] = []
    for what, number in steps:
        now_s += number
        key = str(number)
        match what:
            case "a" if outbox.add(key, key.encode()) and key not in expected:
                expected.append(key)
            case "s":
                outbox.flush(Wire(room=number).send, now_s)
            case "p" if outbox.acknowledge(key):
                expected.remove(key)
            case "o":
                outbox.opened()
            case "c":
                outbox.closed()
    wire = Wire()
    outbox.opened()
    outbox.flush(wire.send, now_s)
    assert wire.taken == [key.encode() for key in expected]
