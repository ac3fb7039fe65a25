"""The broker's door: whoever is enrolled gets in as who they are, everybody else gets nothing."""

import ctypes
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
import zmq
from zmq.utils.monitor import recv_monitor_message

from koubou_broker.access import (
    AccessControl,
    Grant,
    check_bind,
    open_router,
    require_libzmq,
    seed_routing_ids,
    self_test,
    user_key,
)
from koubou_common.errors import Code, ConfigError, KoubouError
from koubou_common.keys import new_key_pair
from koubou_common.messages.limits import HWM_MESSAGES, MESSAGE_BYTES
from koubou_common.messages.values import Role
from support.door import Door
from support.peers import Peer, expect_service
from support.waiting import eventually

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def door() -> Iterator[Door]:
    with Door() as door:
        yield door


def test_every_message_tells_the_key_it_came_by(door: Door) -> None:
    one, two = door.enrol("one"), door.enrol("two")
    with Peer().curve(door.pair.public, one) as first, Peer().curve(door.pair.public, two) as second:
        assert first.enter(door.address)
        assert second.enter(door.address)
        for _ in range(10):
            first.socket.send(one.public.encode())
            second.socket.send(two.public.encode())
        for _ in range(20):
            _, frame = door.receive()
            assert user_key(frame) == frame.bytes.decode()
    assert door.access.grant_of(one.public) == Grant("one", Role.WORKER)


def test_what_a_peer_claims_to_be_does_not_count(door: Door) -> None:
    victim, liar = door.enrol("victim", Role.OPERATOR), door.enrol("liar")
    with Peer().curve(door.pair.public, liar) as peer:
        peer.socket.routing_id = f"k1:{victim.public}".encode()
        assert peer.enter(door.address)
        peer.socket.send(b"I am the operator")
        _, frame = door.receive()
        assert user_key(frame) == liar.public


def test_a_frame_without_proof_has_no_key() -> None:
    assert user_key(zmq.Frame(b"from nowhere")) is None


NULL_GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)


def property_value(value: bytes) -> bytes:
    return len(value).to_bytes(4, "big") + value


@pytest.mark.parametrize("claim", ["admin", "k1:", "k1:short", "K1:" + "0" * 40, "k1:" + "~" * 40])
def test_a_user_id_that_is_not_ours_is_no_key(claim: str) -> None:
    context = zmq.Context()
    open_door = context.socket(zmq.ROUTER)
    open_door.linger = 0
    port = open_door.bind_to_random_port("tcp://127.0.0.1")
    with socket.create_connection(("127.0.0.1", port), timeout=5) as peer:
        ready = b"\x05READY\x0bSocket-Type" + property_value(b"DEALER")
        ready += b"\x07User-Id" + property_value(claim.encode())
        peer.sendall(NULL_GREETING + bytes([4, len(ready)]) + ready)
        heard = b""
        while b"READY" not in heard:
            heard += peer.recv(500)
        peer.sendall(b"\x00\x05hello")
        assert open_door.poll(5_000)
        _, frame = open_door.recv_multipart(copy=False)
        assert frame.get("User-Id") == claim  # libzmq passes it on as if it were proven
        assert user_key(frame) is None
    open_door.close(0)
    context.term()


def test_a_revoked_key_gets_in_no_more_and_its_open_connection_is_good_for_nothing(door: Door) -> None:
    pair = door.enrol("leaving")
    with Peer().curve(door.pair.public, pair) as inside:
        assert inside.enter(door.address)
        door.access.revoke(pair.public)
        with Peer().curve(door.pair.public, pair) as again:
            assert not again.enter(door.address)
        inside.socket.send(b"still here")
        _, frame = door.receive()
        key = user_key(frame)
        assert key == pair.public
        assert door.access.grant_of(key) is None
    door.access.revoke(pair.public)
    expect_service(door)


def test_an_allow_list_can_be_taken_over_as_a_whole(door: Door) -> None:
    old, new = door.enrol("old"), new_key_pair()
    door.access.replace_all({new.public: Grant("new", Role.CLIENT)})
    with Peer().curve(door.pair.public, old) as peer:
        assert not peer.enter(door.address)
    with Peer().curve(door.pair.public, new) as peer:
        assert peer.enter(door.address)


def test_keys_that_change_from_several_threads_lose_nothing(door: Door) -> None:
    keys = [new_key_pair().public for _ in range(80)]

    def change(mine: list[str]) -> None:
        for key in mine:
            door.access.allow(key, "somebody", Role.CLIENT)
        for key in mine[::2]:
            door.access.revoke(key)

    threads = [threading.Thread(target=change, args=(keys[n::4],)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kept = {key for n in range(4) for key in keys[n::4][1::2]}
    assert {key for key in keys if door.access.grant_of(key)} == kept


def test_nonsense_cannot_end_the_thread_that_checks_keys(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    asking = door.context.socket(zmq.DEALER)
    asking.linger = 0
    asking.connect("inproc://zeromq.zap.01")
    good = [b"1.0", b"1", b"koubou", b"127.0.0.1", b"", b"CURVE", bytes(32)]
    questions = [
        [],
        [b""],
        [b"1.0"],
        good[:-1],
        [*good, b"more"],
        [b"9.9", *good[1:]],
        [*good[:2], b"other domain", *good[3:]],
        [*good[:5], b"NULL"],
        [*good[:5], b"PLAIN", b"admin", b"admin"],
        [*good[:6], b"short"],
        [*good[:6], bytes(33)],
        [*good[:3], b"\xff\xfe", *good[4:]],
        [b"\xff" * 1_000] * 20,
    ]
    for question in questions:
        asking.send_multipart([b"", *question])
    answers: list[list[bytes]] = []
    asking.send_multipart([b"", *good])
    while not answers or answers[-1][2] != b"1" or len(answers) < 9:
        assert asking.poll(5_000)
        answers.append(asking.recv_multipart())
    assert all(answer[3] == b"400" for answer in answers)
    assert all(answer[5] == b"" for answer in answers)
    asking.close(0)
    assert door.access.is_alive()
    assert "could not be checked" in caplog.text
    expect_service(door)


def test_without_the_thread_nobody_gets_in_and_it_shows(door: Door) -> None:
    pair = door.enrol()
    assert door.access.is_alive()
    door.access.stop()
    door.access.stop()
    assert not door.access.is_alive()
    with Peer().curve(door.pair.public, pair) as peer:
        peer.socket.handshake_ivl = 500
        assert not peer.enter(door.address)
    door.access.start()
    assert door.access.is_alive()
    with Peer().curve(door.pair.public, pair) as peer:
        assert peer.enter(door.address)


def test_there_is_one_access_control_to_a_context(door: Door) -> None:
    second = AccessControl(door.context)
    with pytest.raises(zmq.ZMQError):
        second.start()
    second.stop()
    assert door.access.is_alive()


def test_the_end_of_the_context_ends_the_thread() -> None:
    context = zmq.Context()
    access = AccessControl(context)
    access.start()
    ending = threading.Thread(target=context.term)
    ending.start()
    eventually(lambda: not access.is_alive())
    access.stop()
    ending.join(5)
    assert not ending.is_alive()


def test_nothing_listens_before_access_control_runs() -> None:
    context = zmq.Context()
    with pytest.raises(RuntimeError, match="must run before"):
        open_router(context, AccessControl(context), new_key_pair(), "tcp://127.0.0.1:*")
    context.term()


def test_a_taken_address_is_named(door: Door) -> None:
    with pytest.raises(KoubouError, match=door.address) as caught:
        open_router(door.context, door.access, door.pair, door.address)
    assert caught.value.code is Code.BAD_CONFIGURATION
    assert "another broker" in caught.value.hint


def test_ipv6_works_where_the_host_has_it() -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this host has no IPv6 loopback")
    with Door() as door:
        door.router.close(0)
        door.router = open_router(door.context, door.access, door.pair, "tcp://[::1]:*")
        self_test(door.router.get_string(zmq.LAST_ENDPOINT), door.pair.public)


def test_every_guard_is_set(door: Door) -> None:
    router = door.router
    assert router.get(zmq.ZAP_DOMAIN) == b"koubou\0".rstrip(b"\0")
    assert router.get(zmq.ZAP_ENFORCE_DOMAIN) == 1
    assert router.get(zmq.CURVE_SERVER) == 1
    assert router.get(zmq.MAXMSGSIZE) == MESSAGE_BYTES + 33
    assert (router.get(zmq.SNDHWM), router.get(zmq.RCVHWM)) == (HWM_MESSAGES, HWM_MESSAGES)
    assert router.get(zmq.HANDSHAKE_IVL) == 5_000
    assert router.get(zmq.HEARTBEAT_IVL) == 5_000
    assert router.get(zmq.LINGER) == 0
    with pytest.raises(zmq.ZMQError) as caught:  # ROUTER_MANDATORY cannot be read: it shows
        router.send_multipart([b"nobody", b"x"], zmq.NOBLOCK)
    assert caught.value.errno == zmq.EHOSTUNREACH


def test_a_second_peer_under_the_same_routing_id_takes_nothing_over(door: Door) -> None:
    victim, thief = door.enrol("victim"), door.enrol("thief")
    with Peer().curve(door.pair.public, victim) as first, Peer().curve(door.pair.public, thief) as second:
        first.socket.routing_id = second.socket.routing_id = b"box_a"
        assert first.enter(door.address)
        first.socket.send(b"mine")
        door.receive()
        assert second.enter(door.address)
        second.socket.send(b"mine now")
        expect_service(door)
        door.send(b"box_a", b"for the victim")
        assert first.socket.poll(5_000)
        assert first.socket.recv() == b"for the victim"
        assert not second.socket.poll(0)


def test_an_oversize_message_ends_its_senders_connection_and_nobody_elses(door: Door) -> None:
    with (
        Peer().curve(door.pair.public, door.enrol("large")) as large,
        Peer().curve(door.pair.public, door.enrol("other")) as other,
    ):
        assert large.enter(door.address)
        assert other.enter(door.address)
        large.socket.send(b"x" * (MESSAGE_BYTES + 1))
        eventually(lambda: recv_monitor_message(large.monitor)["event"] == zmq.EVENT_DISCONNECTED)
        other.socket.send(b"y" * MESSAGE_BYTES)
        assert len(door.receive()[1].bytes) == MESSAGE_BYTES
        assert not door.router.poll(0)


@pytest.mark.parametrize(
    "address",
    [
        "tcp://127.0.0.1:5570",
        "tcp://[::1]:5570",
        "tcp://192.168.1.10:5570",
        "tcp://10.1.2.3:5570",
        "tcp://172.31.0.1:5570",
        "tcp://169.254.7.7:5570",
        "tcp://100.64.0.1:5570",
        "tcp://100.127.255.254:5570",
        "tcp://[fd00::10]:5570",
        "tcp://[fe80::1]:5570",
        "tcp://[::ffff:192.168.1.10]:5570",
    ],
)
def test_private_addresses_are_fine(address: str) -> None:
    check_bind(address)


@pytest.mark.parametrize(
    "address",
    [
        "tcp://0.0.0.0:5570",
        "tcp://*:5570",
        "tcp://[::]:5570",
        "tcp://8.8.8.8:5570",
        "tcp://172.32.0.1:5570",
        "tcp://100.128.0.1:5570",
        "tcp://[2001:4860:4860::8888]:5570",
        "tcp://[::ffff:8.8.8.8]:5570",
        "tcp://192.0.2.1:5570",
    ],
)
def test_public_addresses_need_a_word(address: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_bind(address)
    assert address in caught.value.message
    check_bind(address, allow_public=True)


@pytest.mark.parametrize("address", ["", "5570", "tcp://eth0:5570", "ipc:///tmp/x", "tcp://127.0.0.1:70000"])
def test_what_is_no_address_is_refused_even_with_that_word(address: str) -> None:
    with pytest.raises(ConfigError):
        check_bind(address, allow_public=True)


@pytest.mark.skipif(os.name != "posix", reason="the broker is for POSIX systems")
def test_routing_ids_begin_elsewhere_at_every_start() -> None:
    """libzmq draws them from the C library's generator, which begins alike in every process unless seeded."""
    script = "import ctypes, sys; {}; print([ctypes.CDLL(None).rand() for _ in range(4)])"
    seeded = script.format("from koubou_broker.access import seed_routing_ids; seed_routing_ids()")

    def draws(code: str) -> bytes:
        return subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=30).stdout

    assert draws(script.format("pass")) == draws(script.format("pass"))
    assert draws(seeded) != draws(seeded)


@pytest.mark.skipif(os.name != "posix", reason="the broker is for POSIX systems")
def test_seeding_again_changes_what_follows() -> None:
    library = ctypes.CDLL(None)
    rows = []
    for _ in range(3):
        seed_routing_ids()
        rows.append(tuple(library.rand() for _ in range(4)))
    assert len(set(rows)) == 3


def test_a_libzmq_with_known_holes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    require_libzmq()
    monkeypatch.setattr(zmq, "zmq_version_info", lambda: (4, 3, 4))
    with pytest.raises(ConfigError, match=r"4\.3\.5 or newer"):
        require_libzmq()


def test_a_libzmq_without_encryption_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zmq, "has", lambda capability: False)
    with pytest.raises(ConfigError, match="without encryption"):
        require_libzmq()
