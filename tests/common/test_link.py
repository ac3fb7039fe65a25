"""The link over real sockets: it gets through, says why not, and comes back by itself."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from koubou_common.errors import Code, ConfigError, KoubouError
from koubou_common.keys import KeyPair, fingerprint, new_key_pair
from koubou_common.link import (
    Backoff,
    Connected,
    Diagnosis,
    Disconnected,
    Link,
    LinkEvent,
    Received,
    Timeouts,
)
from koubou_common.messages.limits import HWM_MESSAGES, MESSAGE_BYTES
from koubou_common.messages.values import Role
from support.door import Door
from support.strangers import TcpPort, unused_address

QUICK = Backoff(first_s=0.02, cap_s=0.2)
SHORT = Timeouts(connect_s=0.5, handshake_s=0.7)  # where silence is what the test waits for

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def door() -> Iterator[Door]:
    with Door() as door:
        yield door


class Driver:
    """Turns a link's crank and keeps what it told."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.events: list[LinkEvent] = []

    def until(self, done: Callable[[], object], timeout_s: float = 15.0) -> None:
        deadline_s = time.monotonic() + timeout_s
        while True:
            self.events += self.link.pump(time.monotonic())
            if done():
                return
            assert time.monotonic() < deadline_s, (self.link.diagnosis, self.events)
            self.link.poll(0.02)

    def until_event(self, event: LinkEvent) -> None:
        self.until(lambda: event in self.events)

    def until_diagnosed(self) -> Diagnosis:
        self.until(lambda: self.link.diagnosis is not Diagnosis.CONNECTING)
        return self.link.diagnosis

    @property
    def received(self) -> list[bytes]:
        return [event.data for event in self.events if isinstance(event, Received)]

    @property
    def losses(self) -> list[Disconnected]:
        return [event for event in self.events if isinstance(event, Disconnected)]


def a_link(
    *addresses: str,
    server: str | None = None,
    pair: KeyPair | None = None,
    timeouts: Timeouts | None = None,
    backoff: Backoff = QUICK,
) -> "closing[Link]":
    server = server or new_key_pair().public
    return closing(Link(addresses, server, pair or new_key_pair(), backoff=backoff, timeouts=timeouts, seed=1))


def to_door(door: Door, pair: KeyPair | None = None, timeouts: Timeouts | None = None) -> "closing[Link]":
    return a_link(door.address, server=door.pair.public, pair=pair or door.enrol(), timeouts=timeouts)


def test_messages_travel_both_ways(door: Door) -> None:
    with to_door(door) as link:
        driver = Driver(link)
        driver.until_event(Connected(1))
        assert link.diagnosis is Diagnosis.CONNECTED
        assert link.send(b"hello")
        sender, frame = door.receive()
        assert frame.bytes == b"hello"
        door.send(sender, b"welcome")
        driver.until_event(Received(b"welcome"))
        assert driver.events == [Connected(1), Received(b"welcome")]


def test_messages_of_the_largest_size_pass_and_larger_ones_are_refused_before_sending(door: Door) -> None:
    with to_door(door) as link:
        driver = Driver(link)
        driver.until_event(Connected(1))
        assert link.send(b"x" * MESSAGE_BYTES)
        sender, frame = door.receive()
        assert len(frame.bytes) == MESSAGE_BYTES
        door.send(sender, b"y" * MESSAGE_BYTES)
        driver.until(lambda: driver.received)
        with pytest.raises(KoubouError, match="limit is 1000000 bytes") as caught:
            link.send(b"x" * (MESSAGE_BYTES + 1))
        assert caught.value.code is Code.TOO_LARGE
        assert link.is_connected


def test_nothing_is_taken_without_a_session(door: Door) -> None:
    with to_door(door) as link:
        assert not link.send(b"early")
        driver = Driver(link)
        driver.until_event(Connected(1))
        door.go_away()
        driver.until(lambda: not link.is_connected)
        assert not link.send(b"late")


def test_a_full_queue_leaves_the_message_with_the_caller(door: Door) -> None:
    with to_door(door) as link:
        Driver(link).until_event(Connected(1))
        sent = 0
        while link.send(b"z" * 100_000):
            sent += 1
            assert sent < 2_000, "the queue has no end"
        assert sent >= HWM_MESSAGES
        door.receive()


def test_a_port_where_nothing_listens_is_called_that() -> None:
    with a_link(unused_address()) as link:
        assert Driver(link).until_diagnosed() is Diagnosis.NOTHING_LISTENS
        error = link.explain()
        assert error.code is Code.BROKER_UNREACHABLE
        assert "nothing listens at tcp://127.0.0.1" in error.message
        assert "koubou-broker" in error.hint


def test_a_name_that_leads_nowhere_is_called_that() -> None:
    with a_link(f"tcp://{'a' * 64}:5570", timeouts=SHORT) as link:  # too long for any resolver to ask anybody
        assert Driver(link).until_diagnosed() is Diagnosis.NOTHING_LISTENS
        assert "leads nowhere" in link.explain().message


def test_a_broker_with_another_key_is_called_that_and_both_fingerprints_can_be_compared(door: Door) -> None:
    expected = new_key_pair().public
    with a_link(door.address, server=expected, pair=door.enrol()) as link:
        assert Driver(link).until_diagnosed() is Diagnosis.WRONG_BROKER_KEY
        error = link.explain()
        assert error.code is Code.WRONG_BROKER_KEY
        assert fingerprint(expected) in error.hint


def test_a_key_that_is_not_enrolled_is_called_that_and_gets_in_once_it_is(door: Door) -> None:
    pair = new_key_pair()
    with to_door(door, pair) as link:
        driver = Driver(link)
        assert driver.until_diagnosed() is Diagnosis.KEY_NOT_ENROLLED
        error = link.explain()
        assert error.code is Code.KEY_NOT_ENROLLED
        assert fingerprint(pair.public) in error.hint
        door.access.allow(pair.public, "lan_001", Role.WORKER)
        driver.until_event(Connected(1))
        assert link.send(b"hello")
        assert door.receive()[1].bytes == b"hello"


@pytest.mark.parametrize(
    ("words", "hangs_up", "told"),
    [
        (b"", False, "says nothing"),
        (b"", True, "hangs up"),
        (b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n", True, ""),
        (b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n", False, "does not speak ZeroMQ"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", False, ""),
        (bytes.fromhex("15030300020228"), True, ""),
        (b"\xff" * 4_096, False, ""),
        (b"\xff\0\0\0\0\0\0\0\1\x7f", True, ""),
        (b"\xff\0\0\0\0\0\0\0\1\x7f\3\1NULL" + bytes(48), False, "not with Koubou's encryption"),
        (b"\xff\0\0\0\0\0\0\0\1\x7f\3\1CURVE" + bytes(47), False, "says nothing"),
    ],
)
def test_ports_of_others_are_called_no_broker(words: bytes, hangs_up: bool, told: str) -> None:
    with TcpPort(words, hangs_up=hangs_up) as port, a_link(port.address, timeouts=SHORT) as link:
        assert Driver(link).until_diagnosed() is Diagnosis.NOT_A_BROKER
        error = link.explain()
        assert error.code is Code.NOT_A_BROKER
        assert told in error.message


@pytest.mark.parametrize("mechanism", ["null", "plain"])
def test_zeromq_without_our_encryption_is_called_no_broker(mechanism: str) -> None:
    context = zmq.Context()
    other = context.socket(zmq.ROUTER)
    other.linger = 0
    other.plain_server = mechanism == "plain"
    other.bind("tcp://127.0.0.1:*")
    with a_link(other.get_string(zmq.LAST_ENDPOINT)) as link:
        assert Driver(link).until_diagnosed() is Diagnosis.NOT_A_BROKER
        assert "not with Koubou's encryption" in link.explain().message
    other.close(0)
    context.term()


def test_a_wrong_key_is_believed_at_the_second_look_only() -> None:
    """A broker that is killed during a handshake and back at once hangs up like one with another key."""
    greeting = b"\xff\0\0\0\0\0\0\0\1\x7f\3\1CURVE" + bytes(47)
    with TcpPort(greeting, hangs_up_after=64) as port, a_link(port.address) as link:
        driver = Driver(link)
        assert driver.until_diagnosed() is Diagnosis.WRONG_BROKER_KEY
        assert port.accepted == 4  # each look: the handshake, then the question for a greeting
        assert len(driver.losses) == 1


def test_a_reason_is_told_once_however_often_it_repeats() -> None:
    with TcpPort(hangs_up=True) as port, a_link(port.address) as link:
        driver = Driver(link)
        driver.until(lambda: port.accepted >= 8)
        assert [loss.reason for loss in driver.losses] == [Diagnosis.NOT_A_BROKER]


def test_it_comes_back_after_the_brokers_restart_as_a_new_session(door: Door) -> None:
    with to_door(door) as link:
        driver = Driver(link)
        driver.until_event(Connected(1))
        door.go_away()
        driver.until(lambda: len(driver.losses) == 2)
        assert [loss.reason for loss in driver.losses] == [Diagnosis.LOST, Diagnosis.NOTHING_LISTENS]
        assert link.diagnosis is Diagnosis.NOTHING_LISTENS
        door.restart()
        driver.until_event(Connected(2))
        assert link.session_number == 2
        assert link.send(b"hello again")
        assert door.receive()[1].bytes == b"hello again"


def test_what_is_told_of_a_session_that_ends_has_no_gap_and_comes_before_its_loss(door: Door) -> None:
    with to_door(door) as link:
        driver = Driver(link)
        driver.until_event(Connected(1))
        assert link.send(b"hello")
        sender, _ = door.receive()
        for number in range(20):
            door.send(sender, b"%d" % number)
        door.go_away(linger_s=5.0)
        driver.until(lambda: driver.losses)
        assert driver.received == [b"%d" % number for number in range(len(driver.received))]
        assert isinstance(driver.events[-1], Disconnected)


def test_a_port_that_was_our_brokers_and_falls_silent_is_a_broker_lost(door: Door) -> None:
    with to_door(door, timeouts=SHORT) as link:
        driver = Driver(link)
        driver.until_event(Connected(1))
        door.go_away()
        driver.until(lambda: link.diagnosis is Diagnosis.NOTHING_LISTENS)
        with TcpPort(port=door.port):
            driver.until(lambda: link.diagnosis is Diagnosis.LOST)
            assert "does not answer" in link.explain().message
            assert link.explain().code is Code.BROKER_UNREACHABLE


@pytest.mark.parametrize("frames", [[b"x" * (MESSAGE_BYTES + 1)], [b"one", b"two"]])
def test_what_no_broker_of_ours_would_send_ends_the_session_and_the_link_goes_on(
    door: Door, frames: list[bytes]
) -> None:
    with to_door(door) as link:
        driver = Driver(link)
        driver.until_event(Connected(1))
        assert link.send(b"hello")
        sender, _ = door.receive()
        door.send(sender, *frames)
        driver.until_event(Connected(2))
        assert driver.received == []
        assert len(driver.losses) == 1


def test_a_session_that_is_of_no_use_can_be_dropped(door: Door) -> None:
    with to_door(door) as link:
        driver = Driver(link)
        driver.until_event(Connected(1))
        link.drop("the broker stopped answering")
        assert link.next_deadline == 0.0
        assert not link.send(b"into the void")
        driver.until_event(Connected(2))
        assert driver.losses == [Disconnected(Diagnosis.LOST, "the broker stopped answering")]


def test_a_revoked_key_is_told_at_its_next_connection(door: Door) -> None:
    pair = door.enrol()
    with to_door(door, pair) as link:
        driver = Driver(link)
        driver.until_event(Connected(1))
        door.access.revoke(pair.public)
        link.drop("test")
        driver.until(lambda: link.diagnosis is Diagnosis.KEY_NOT_ENROLLED)


def test_the_next_address_is_tried_at_once(door: Door) -> None:
    dead = [unused_address() for _ in range(3)]
    slow = Backoff(first_s=1_000.0, cap_s=1_000.0)  # between rounds: one round must be enough
    with a_link(*dead, door.address, server=door.pair.public, pair=door.enrol(), backoff=slow) as link:
        driver = Driver(link)
        driver.until_event(Connected(1))
        assert len(driver.losses) == 3


def test_of_several_addresses_the_most_telling_reason_comes_first(door: Door) -> None:
    dead = unused_address()
    with a_link(dead, door.address, server=door.pair.public) as link:
        driver = Driver(link)
        driver.until(lambda: link.diagnosis is not Diagnosis.CONNECTING)
        assert link.diagnosis is Diagnosis.KEY_NOT_ENROLLED
        error = link.explain()
        assert error.code is Code.KEY_NOT_ENROLLED
        assert dead in error.message


def test_moving_over_to_the_standby_when_the_first_broker_dies() -> None:
    shared = new_key_pair()
    with Door(shared) as first, Door(shared) as second:
        pair = first.enrol()
        second.access.allow(pair.public, "lan_001", Role.WORKER)
        with a_link(first.address, second.address, server=shared.public, pair=pair) as link:
            driver = Driver(link)
            driver.until_event(Connected(1))
            first.go_away()
            driver.until_event(Connected(2))
            assert link.send(b"hello")
            assert second.receive()[1].bytes == b"hello"


def test_pauses_between_tries_grow_and_stay_below_their_cap() -> None:
    backoff = Backoff(first_s=0.25, cap_s=2.0)
    with a_link(unused_address(), backoff=backoff) as link:
        now_s = 100.0
        pauses: list[float] = []
        while len(pauses) < 40:
            link.pump(now_s)
            if link.sockets():
                link.poll(0.05)
                continue
            deadline_s = link.next_deadline
            assert deadline_s is not None
            assert link.pump(deadline_s - 1e-6) == []
            assert link.sockets() == [], "tried before its time"
            pauses.append(deadline_s - now_s)
            now_s = deadline_s
        bounds = [min(2.0, 0.25 * 2**n) for n in range(40)]
        assert all(pause <= bound for pause, bound in zip(pauses, bounds, strict=True)), pauses
        assert max(pauses) > 1.0
        assert min(pauses) < 0.5


@given(st.integers(0, 10_000), st.floats(0, 1, exclude_max=True))
def test_no_pause_exceeds_the_cap_however_long_it_goes_on(failures: int, draw: float) -> None:
    assert 0 <= Backoff().delay_s(failures, draw) <= 10.0


def test_sessions_that_end_at_once_back_off_too(door: Door) -> None:
    with to_door(door) as link:
        driver = Driver(link)
        now_s, bounds = 0.0, [0.02, 0.04, 0.08, 0.16]
        for session, bound in enumerate(bounds, start=1):
            while not link.is_connected:
                driver.events += link.pump(now_s)
                link.poll(0.01)
            assert Connected(session) in driver.events
            link.drop("no use")
            driver.events += link.pump(now_s)
            deadline_s = link.next_deadline
            assert deadline_s is not None
            assert deadline_s - now_s <= bound
            now_s = deadline_s
        assert link._failures == len(bounds)


def test_a_link_in_anybodys_context_gives_every_socket_back(door: Door) -> None:
    context = zmq.Context()
    pair = door.enrol()
    for address in (door.address, unused_address()):
        link = Link([address], door.pair.public, pair, context=context)
        Driver(link).until_diagnosed()
        link.close()
        link.close()
        assert link.sockets() == []
        assert link.pump(time.monotonic()) == []
    context.term()  # would wait for ever for a socket left open


def test_the_last_words_of_a_clean_end_arrive(door: Door) -> None:
    with to_door(door) as link:
        Driver(link).until_event(Connected(1))
        assert link.send(b"goodbye")
    assert door.receive()[1].bytes == b"goodbye"


@pytest.mark.parametrize("address", ["", "127.0.0.1:5570", "tcp://127.0.0.1", "tcp://*:5570", "ipc:///x"])
def test_an_address_that_is_none_is_a_configuration_error(address: str) -> None:
    with pytest.raises(ConfigError) as caught:
        a_link(address)
    assert repr(address) in caught.value.message


def test_no_address_at_all_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError):
        a_link()
