"""Strangers at the broker's door: no byte in, no byte out, and it stays open for the others."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
import zmq

from koubou_broker.access import (
    Grant,
    harden,
    self_test,
)
from koubou_common.errors import Code, KoubouError
from koubou_common.keys import KeyPair, new_key_pair
from koubou_common.messages.values import Role
from support.door import Door
from support.peers import Peer, expect_service

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def door() -> Iterator[Door]:
    with Door() as door:
        yield door


def a_null_peer(door: Door) -> Peer:
    return Peer()


def a_plain_peer(door: Door) -> Peer:
    peer = Peer()
    peer.socket.plain_username = b"admin"
    peer.socket.plain_password = b"admin"
    return peer


def with_wrong_server_key(door: Door) -> Peer:
    return Peer().curve(new_key_pair().public, door.enrol("has_a_good_key"))


def with_unknown_key(door: Door) -> Peer:
    return Peer().curve(door.pair.public, new_key_pair())


def with_no_key_of_its_own(door: Door) -> Peer:
    return Peer().curve(door.pair.public, None)


def with_the_public_key_of_another(door: Door) -> Peer:
    return Peer().curve(door.pair.public, KeyPair(door.enrol("victim").public, new_key_pair().secret))


def with_the_brokers_own_public_key(door: Door) -> Peer:
    return Peer().curve(door.pair.public, KeyPair(door.pair.public, new_key_pair().secret))


STRANGERS = [
    a_null_peer,
    a_plain_peer,
    with_wrong_server_key,
    with_unknown_key,
    with_no_key_of_its_own,
    with_the_public_key_of_another,
    with_the_brokers_own_public_key,
]


@pytest.mark.parametrize("make", STRANGERS)
def test_a_stranger_gets_no_byte_in_and_none_out(door: Door, make: Callable[[Door], Peer]) -> None:
    with make(door) as stranger:
        assert not stranger.enter(door.address, saying=b"let me in")
        expect_service(door)
        assert not door.router.poll(0)
        assert not stranger.socket.poll(0)


def test_refusals_of_unknown_keys_are_counted_and_logged_once_a_second(
    door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(5):
        with with_unknown_key(door) as stranger:
            assert not stranger.enter(door.address)
    assert door.access.refusals == 5
    lines = [record.getMessage() for record in caplog.records]
    assert 1 <= len(lines) < 5
    assert "address=127.0.0.1" in lines[0]


def test_an_empty_allow_list_admits_nobody(door: Door) -> None:
    # pyzmq's own authenticator takes "*" for "any key", and one forgotten call leaves it there.
    with with_unknown_key(door) as stranger:
        assert not stranger.enter(door.address)


@pytest.mark.parametrize("key", ["*", "", "any", "0" * 39, "~" * 40, "\u5de5" * 40])
def test_nothing_but_a_key_can_be_allowed(door: Door, key: str) -> None:
    with pytest.raises(ValueError, match="CURVE"):
        door.access.allow(key, "everybody", Role.OPERATOR)
    with pytest.raises(ValueError, match="CURVE"):
        door.access.replace_all({key: Grant("everybody", Role.OPERATOR)})
    with with_unknown_key(door) as stranger:
        assert not stranger.enter(door.address)


NULL_GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"CURVE".ljust(20, b"\0") + bytes(32)
GARBAGE = [
    b"GET / HTTP/1.1\r\nHost: broker\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(508),
    b"SSH-2.0-OpenSSH_9.2\r\n",
    b"\0" * 1_000,
    b"\xff" * 1_000,
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f" + b"\xff" * 100,
    b"\x01\x00\x01",  # ZMTP 1.0
    b"\xff" + bytes(8) + b"\x7f\x01\x05" + bytes(50),  # ZMTP 2.0
    GREETING[:11],
    NULL_GREETING + b"\x04\x26\x05READY\x0bSocket-Type\0\0\0\6DEALER\x08Identity\0\0\0\0",
    GREETING.replace(b"CURVE", b"PLAIN") + b"\x04\x12\x05HELLO\x05admin\x05admin",
    GREETING + b"\x06" + (2**62).to_bytes(8, "big") + bytes(1_000),  # a command of 4 exbibytes
    GREETING + b"\x02" + (2**31).to_bytes(8, "big") + bytes(1_000),  # a message of 2 GiB
    GREETING + b"\x04\xc8\x05HELLO\x01\x00" + bytes(193),  # a HELLO that no key opens
    GREETING + b"\x04\xc8\x05HELLO\x01\x00" + os.urandom(193),
    GREETING + b"\x04\x06\x05READY",  # out of turn
    GREETING + b"\x00\x05hello",  # a message before any handshake
    GREETING + os.urandom(4_096),
    os.urandom(4_096),
]


def test_garbage_is_hung_up_on_and_the_door_stays_open(door: Door) -> None:
    rubbish = []
    for data in GARBAGE:
        caller = socket.create_connection(("127.0.0.1", door.port), timeout=5)
        caller.sendall(data)
        rubbish.append(caller)
    expect_service(door)
    assert not door.router.poll(0)
    for caller in rubbish:
        caller.close()
    expect_service(door)


def test_a_stranger_cannot_make_the_broker_keep_what_it_sends(door: Door) -> None:
    """Without a limit a stranger's single connection was measured to hold 400 MiB."""
    with socket.create_connection(("127.0.0.1", door.port), timeout=10) as caller:
        caller.sendall(GREETING + b"\x02" + (2**31).to_bytes(8, "big"))
        sent = 0
        with suppress(OSError):  # reset or broken pipe, as the system likes
            while sent < 200:
                caller.sendall(bytes(1_000_000))
                sent += 1
        assert sent < 20, "the broker read on"
    expect_service(door)


@pytest.mark.slow
def test_idle_strangers_are_sent_away_when_the_handshake_limit_is_over(door: Door) -> None:
    callers = [socket.create_connection(("127.0.0.1", door.port), timeout=8) for _ in range(20)]
    for caller in callers:
        while caller.recv(64):
            pass  # the broker's greeting, then its goodbye
        caller.close()
    expect_service(door)


def test_the_self_test_passes_at_a_guarded_door(door: Door) -> None:
    self_test(door.address, door.pair.public)
    assert door.access.refusals == 1
    assert not door.router.poll(0)


@pytest.mark.parametrize("everywhere", ["0.0.0.0", "*"])
def test_the_self_test_knows_that_every_interface_includes_the_loopback(door: Door, everywhere: str) -> None:
    self_test(f"tcp://{everywhere}:{door.port}", door.pair.public)
    assert door.access.refusals == 1


@pytest.mark.parametrize("forgotten", ["handler", "encryption", "everything"])
def test_the_self_test_finds_each_way_to_leave_the_door_open(forgotten: str) -> None:
    pair, context = new_key_pair(), zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.linger = 0
    if forgotten == "handler":  # CURVE alone: libzmq admits whoever knows the public key
        router.curve_server = True
        router.curve_secretkey = pair.secret.encode()
    elif forgotten == "encryption":
        harden(router, pair)
        router.curve_server = False
    router.bind("tcp://127.0.0.1:*")
    with pytest.raises(KoubouError, match="test of its door failed") as caught:
        self_test(router.get_string(zmq.LAST_ENDPOINT), pair.public)
    assert caught.value.code is Code.INTERNAL
    router.close(0)
    context.term()


def test_a_handler_that_admits_any_key_is_found_by_the_self_test(door: Door) -> None:
    class AnyKey(dict[str, Grant]):
        def __contains__(self, key: object) -> bool:
            return True

    door.access._grants = AnyKey()
    with pytest.raises(KoubouError, match="it was let in"):
        self_test(door.address, door.pair.public)


def test_keys_and_secrets_stay_out_of_the_log(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    pair = new_key_pair()
    with Peer().curve(door.pair.public, pair) as peer:
        assert not peer.enter(door.address)
    expect_service(door)
    for secret in (pair.secret, door.pair.secret, pair.public):
        assert secret not in caplog.text
