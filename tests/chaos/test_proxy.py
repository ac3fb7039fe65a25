"""The fault proxy by itself: plain sockets through it, every kind of fault."""

import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from chaos.proxy import FaultProxy
from chaos.weather import Climate, Gust, Kind, draw
from support.waiting import eventually

CLIMATE = Climate(mean_pause_s=2.0)
BIG = bytes(range(256)) * 4_096  # 1 MiB
ANSWER_S = 5.0


class Echo:
    """A server that sends back what it gets; `server_ends` tells how its connections ended."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self.listener.getsockname()
        self.received: list[bytes] = []
        self.ends: list[str] = []
        self.threads: list[threading.Thread] = []

    def serve(self) -> None:
        while True:
            try:
                one, _ = self.listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._answer, args=(one,))
            thread.start()
            self.threads.append(thread)

    def _answer(self, one: socket.socket) -> None:
        with one:
            try:
                while data := one.recv(65_536):
                    self.received.append(data)
                    one.sendall(data)
                self.ends.append("closed")
            except ConnectionResetError:
                self.ends.append("reset")


@contextmanager
def echo() -> Iterator[Echo]:
    server = Echo()
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield server
    finally:
        server.listener.shutdown(socket.SHUT_RDWR)
        server.listener.close()
        thread.join()
        for one in server.threads:
            one.join()


@pytest.fixture
def server() -> Iterator[Echo]:
    with echo() as server:
        yield server


@pytest.fixture
def told() -> list[tuple[str, Kind]]:
    return []


@pytest.fixture
def proxy(server: Echo, told: list[tuple[str, Kind]]) -> Iterator[FaultProxy]:
    with FaultProxy(server.address, told=lambda door, gust: told.append((door, gust.kind))) as proxy:
        yield proxy


@pytest.fixture
def peer(proxy: FaultProxy) -> Iterator[socket.socket]:
    """A connection that has been answered once."""
    port = proxy.open_door("peer")
    proxy.start()
    with socket.create_connection(("127.0.0.1", port), ANSWER_S) as one:
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        assert ask(one, b"hello") == b"hello"
        yield one


def ask(one: socket.socket, data: bytes) -> bytes:
    """Send it and read as much."""
    sender = threading.Thread(target=one.sendall, args=(data,))
    sender.start()
    got = b""
    while len(got) < len(data):
        piece = one.recv(65_536)
        if not piece:
            break
        got += piece
    sender.join()
    return got


def timed(what: Callable[[], bytes]) -> tuple[bytes, float]:
    began_s = time.monotonic()
    return what(), time.monotonic() - began_s


def test_in_fair_weather_every_byte_arrives_in_order(peer: socket.socket) -> None:
    assert ask(peer, BIG) == BIG


def test_a_reset_is_seen_at_both_ends(proxy: FaultProxy, peer: socket.socket, server: Echo) -> None:
    proxy.strike(Gust(Kind.RESET, 0.0))
    with pytest.raises(ConnectionResetError):
        peer.recv(1)
    eventually(lambda: server.ends == ["reset"], what="the server sees a reset")


def test_a_close_is_a_proper_end_at_both_ends(proxy: FaultProxy, peer: socket.socket, server: Echo) -> None:
    proxy.strike(Gust(Kind.CLOSE, 0.0))
    assert peer.recv(1) == b""
    eventually(lambda: server.ends == ["closed"], what="the server sees the end")


def test_what_a_stall_held_back_arrives_whole(proxy: FaultProxy, peer: socket.socket) -> None:
    proxy.strike(Gust(Kind.STALL, 0.0, lasts_s=0.4))
    answer, took_s = timed(lambda: ask(peer, BIG))
    assert answer == BIG
    assert took_s >= 0.35


def test_healing_ends_a_stall(proxy: FaultProxy, peer: socket.socket) -> None:
    proxy.strike(Gust(Kind.STALL, 0.0, lasts_s=60.0))
    peer.sendall(b"late")
    peer.settimeout(0.2)
    with pytest.raises(TimeoutError):
        peer.recv(4)
    proxy.heal()
    peer.settimeout(ANSWER_S)
    assert peer.recv(4) == b"late"


@pytest.mark.parametrize("upwards", [True, False])
def test_half_open_swallows_one_direction_and_tells_nobody(
    proxy: FaultProxy, peer: socket.socket, server: Echo, *, upwards: bool
) -> None:
    proxy.strike(Gust(Kind.HALF_OPEN, 0.0, lasts_s=60.0, upwards=upwards))
    peer.settimeout(0.3)
    with pytest.raises(TimeoutError):
        ask(peer, b"is there anybody")
    arrived = b"".join(server.received) == b"hello" + b"is there anybody"
    assert arrived is not upwards
    assert server.ends == []


def test_the_end_of_a_half_open_peer_is_not_told_before_the_cut(
    proxy: FaultProxy, peer: socket.socket, server: Echo
) -> None:
    proxy.strike(Gust(Kind.HALF_OPEN, 0.0, lasts_s=0.6))
    began_s = time.monotonic()
    peer.sendall(b"unheard")
    peer.close()
    eventually(lambda: server.ends == ["reset"], what="the cut")
    assert time.monotonic() - began_s >= 0.55


def test_healing_cuts_what_is_half_open(proxy: FaultProxy, peer: socket.socket) -> None:
    proxy.strike(Gust(Kind.HALF_OPEN, 0.0, lasts_s=60.0))
    proxy.heal()
    with pytest.raises(ConnectionResetError):
        peer.recv(1)


def test_delayed_bytes_are_late_and_in_order(proxy: FaultProxy, peer: socket.socket) -> None:
    proxy.strike(Gust(Kind.DELAY, 0.0, lasts_s=30.0, latency_s=0.15))
    answer, took_s = timed(lambda: ask(peer, b"one") + ask(peer, b"two"))
    assert answer == b"onetwo"
    assert took_s >= 0.55  # four ways of 0.15 s


def test_a_throttled_connection_keeps_to_its_rate(proxy: FaultProxy, peer: socket.socket) -> None:
    proxy.strike(Gust(Kind.THROTTLE, 0.0, lasts_s=30.0, bytes_per_s=100_000.0))
    answer, took_s = timed(lambda: ask(peer, BIG[:60_000]))
    assert answer == BIG[:60_000]
    assert 0.45 <= took_s <= 3.0  # 0.6 s for 60,000 bytes, less what was saved up


def test_only_the_named_door_is_struck(proxy: FaultProxy, told: list[tuple[str, Kind]]) -> None:
    ports = [proxy.open_door(name) for name in ("left", "right")]
    proxy.start()
    left, right = (socket.create_connection(("127.0.0.1", port), ANSWER_S) for port in ports)
    with left, right:
        assert (ask(left, b"l"), ask(right, b"r")) == (b"l", b"r")
        proxy.strike(Gust(Kind.RESET, 0.0), "left")
        with pytest.raises(ConnectionResetError):
            left.recv(1)
        assert ask(right, b"still here") == b"still here"
    assert told == [("left", Kind.RESET)]


def test_where_nobody_listens_the_peer_is_cut_off(server: Echo) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        with FaultProxy(nobody.getsockname()) as proxy:
            port = proxy.open_door("peer")
            proxy.start()
            with pytest.raises(ConnectionResetError), socket.create_connection(("127.0.0.1", port), ANSWER_S) as one:
                one.recv(1)


def test_the_faults_of_a_seed_happen_by_themselves(server: Echo) -> None:
    seen: list[Kind] = []
    climate = Climate(mean_pause_s=0.02, stall_most_s=0.6, half_open_most_s=2.1, slow_most_s=1.1)
    with FaultProxy(server.address, seed=3, climate=climate, told=lambda _, gust: seen.append(gust.kind)) as proxy:
        port = proxy.open_door("peer")
        proxy.start()
        for _ in range(8):
            with socket.create_connection(("127.0.0.1", port), ANSWER_S) as one:
                one.settimeout(0.2)
                try:
                    while one.recv(1):
                        pass
                except OSError:
                    continue
    assert len(seen) >= 8
    assert len(set(seen)) >= 3


def test_one_seed_draws_the_same_faults_again() -> None:
    def faults(seed: int) -> list[Gust]:
        return draw(random.Random(f"{seed} door 1"), CLIMATE)

    assert faults(1) == faults(1)
    assert faults(1) != faults(2)


def test_every_kind_of_fault_is_drawn_and_only_the_last_one_ends_the_connection() -> None:
    drawn = [draw(random.Random(seed), CLIMATE) for seed in range(100)]
    assert {gust.kind for gusts in drawn for gust in gusts} == set(Kind)
    ends = (Kind.RESET, Kind.CLOSE, Kind.HALF_OPEN)
    assert all([gust.kind in ends for gust in gusts] == [*[False] * (len(gusts) - 1), True] for gusts in drawn)
    assert draw(random.Random(1), Climate(mean_pause_s=0.0)) == []
