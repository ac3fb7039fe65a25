"""Raw ZeroMQ peers at a running broker: without a key nothing comes back, with the wrong role one refusal."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from e2e.site import MODEL, Site
from koubou_common.client_settings import load_client_settings
from koubou_common.codec import decode, encode
from koubou_common.errors import Code
from koubou_common.keys import KeyPair, new_key_pair, read_key_pair, read_public
from koubou_common.messages import (
    AgentHello,
    ClientHello,
    Error,
    GetKeys,
    Heartbeat,
    Message,
    RevokeKey,
    SetWorkerMode,
)
from koubou_common.messages.values import AgentHealth, AgentStatus, WorkerMode
from koubou_simulator.workshop import Worker
from support.peers import Peer

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e-strangers")]

SILENCE_S = 1.0  # an answer comes within milliseconds
HELLO = ClientHello(1, 1, "a raw peer")
AGENT_HELLO = AgentHello(1, 1, "a raw peer", "Linux", "0" * 32, 1, AgentStatus(), AgentHealth())


@pytest.fixture(scope="module", autouse=True)
def broker(site: Site) -> None:
    site.open([Worker("local_001", MODEL, "http://localhost:1")])


@pytest.fixture(scope="module")
def server_key(site: Site) -> str:
    return read_public(site.home / "keys" / "broker.pub")


@pytest.fixture(scope="module")
def client_pair(site: Site, tmp_path_factory: pytest.TempPathFactory) -> KeyPair:
    """A person's own key, enrolled as people do it."""
    home = tmp_path_factory.mktemp("person") / "koubou"
    token = site.ctl("keys", "invite", "ken", "--quiet").out.strip()
    joined = site.run_ctl("--home", str(home), "join", token, cwd=Path.cwd())
    assert joined.returncode == 0, joined.stderr
    key_file = load_client_settings(home / "config" / "client.yaml").key_file
    assert key_file is not None
    return read_key_pair(home / key_file)


@pytest.fixture(scope="module")
def worker_pair(site: Site) -> KeyPair:
    """The key of a box that joined and whose agent does not run."""
    site.workshop.join_box("local_001")
    return read_key_pair(site.home / "boxes" / "local_001" / "keys" / "agents" / "local_001.key")


@pytest.fixture
def peer() -> Iterator[Peer]:
    with Peer() as peer:
        yield peer


def without_security(peer: Peer, server_key: str) -> None:
    pass


def with_a_password(peer: Peer, server_key: str) -> None:
    peer.socket.plain_username = b"admin"
    peer.socket.plain_password = b"admin"


def with_an_unknown_key(peer: Peer, server_key: str) -> None:
    peer.curve(server_key, new_key_pair())


def with_another_brokers_key(peer: Peer, server_key: str) -> None:
    peer.curve(new_key_pair().public, new_key_pair())


@pytest.mark.parametrize("dress", [without_security, with_a_password, with_an_unknown_key, with_another_brokers_key])
def test_a_stranger_gets_no_application_byte(
    site: Site, peer: Peer, server_key: str, dress: Callable[[Peer, str], None]
) -> None:
    dress(peer, server_key)
    assert not peer.enter(site.workshop.address, 3.0, saying=encode(HELLO, 0))
    assert peer.socket.poll(round(SILENCE_S * 1000)) == 0
    assert site.ctl("status").code == 0, "and the broker serves on"


def test_an_enrolled_key_is_greeted(site: Site, peer: Peer, server_key: str, client_pair: KeyPair) -> None:
    """The other tests would pass against a dead broker; this one would not."""
    heard = said_and_heard(site, peer.curve(server_key, client_pair), [HELLO])
    assert [type(message).__name__ for message in heard] == ["ClientWelcome"]


@pytest.mark.parametrize(
    "message",
    [
        AGENT_HELLO,
        Heartbeat(0, 0, AgentStatus(), None),
        GetKeys("r1"),
        RevokeKey("r1", "operator"),
        SetWorkerMode("r1", "local_001", WorkerMode.PAUSED),
    ],
    ids=lambda message: type(message).__name__,
)
def test_a_client_that_says_what_only_others_may_is_refused_once(
    site: Site, peer: Peer, server_key: str, client_pair: KeyPair, message: Message
) -> None:
    welcome, *heard = said_and_heard(site, peer.curve(server_key, client_pair), [HELLO, message])
    assert type(welcome).__name__ == "ClientWelcome"
    assert [one.code for one in heard if isinstance(one, Error)] == [Code.NOT_AUTHORISED]
    assert len(heard) == 1


@pytest.mark.parametrize("message", [HELLO, GetKeys("r1")], ids=lambda message: type(message).__name__)
def test_a_worker_that_speaks_as_a_client_is_refused_once(
    site: Site, peer: Peer, server_key: str, worker_pair: KeyPair, message: Message
) -> None:
    heard = said_and_heard(site, peer.curve(server_key, worker_pair), [message])
    assert [one.code for one in heard if isinstance(one, Error)] == [Code.NOT_AUTHORISED]
    assert len(heard) == 1


def test_noise_of_an_enrolled_key_is_dropped_without_a_word(
    site: Site, peer: Peer, server_key: str, client_pair: KeyPair
) -> None:
    peer.curve(server_key, client_pair)
    assert peer.enter(site.workshop.address)
    for noise in (b"", b"\xc1", b"hello", b"\x81\xa1v\x01", b"\xff" * 10_000):
        peer.socket.send(noise)
    assert peer.socket.poll(round(SILENCE_S * 1000)) == 0
    assert site.ctl("status").code == 0


def said_and_heard(site: Site, peer: Peer, messages: list[Message]) -> list[Message]:
    """Say it all, then listen until the broker has been silent for a while."""
    assert peer.enter(site.workshop.address)
    for message in messages:
        peer.socket.send(encode(message, 0))
    heard = []
    while peer.socket.poll(round(SILENCE_S * 1000), zmq.POLLIN):
        heard.append(decode(peer.socket.recv()).message)
    return heard
