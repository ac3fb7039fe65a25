"""What a look at Ollama finds, and in which words it fails."""

import socket
from collections.abc import Callable, Iterator

import pytest

from koubou_agent.probe import ModelSeen, Probe, loaded_models
from support.scripted_ollama import Peer, ScriptedOllama

TAGS: list[dict[str, object]] = [
    {"name": "qwen3:8b", "digest": "d1", "size": 5_000, "details": {"family": "qwen3"}},
    {"name": "stop", "digest": "d2", "size": 7, "details": {"family": "llama"}},
    {"name": "gpt-oss:120b-cloud", "digest": "d3", "size": 1, "details": {}},
    {"name": "hidden:7b", "digest": "d4", "size": 1, "remote_host": "https://elsewhere.example"},
]
SHOWN: dict[str, dict[str, object]] = {
    "qwen3:8b": {
        "capabilities": ["completion", "thinking"],
        "model_info": {"general.architecture": "qwen3", "qwen3.context_length": 40960},
    },
    "stop": {"model_info": None},
}


def healthy(peer: Peer) -> None:
    match peer.asked.path:
        case "/api/version":
            peer.fields(200, version="0.33.0-rc2")
        case "/api/tags":
            peer.fields(200, models=TAGS)
        case "/api/show":
            peer.fields(200, **SHOWN[str(peer.asked.body["model"])])
        case _:
            peer.fields(404, error="no")


@pytest.fixture
def server() -> Iterator[ScriptedOllama]:
    with ScriptedOllama(healthy, (("qwen3:8b", 8192),)) as server:
        yield server


def shows(server: ScriptedOllama) -> int:
    return sum(asked.path == "/api/show" for asked in server.asked)


def test_a_healthy_ollama_shows_its_version_and_its_models(server: ScriptedOllama) -> None:
    health = Probe(server.url).check()
    assert (health.ok, health.version, health.issue) == (True, "0.33.0-rc2", "")
    assert health.latency_ms >= 0
    assert health.models == (
        ModelSeen("qwen3:8b", "d1", 5_000, "qwen3", ("completion", "thinking"), 40960, True, 0, 8192),
        ModelSeen("stop:latest", "d2", 7, "llama", (), 0, False, 0, 0),
    )


def test_a_models_abilities_are_asked_once_for_each_digest(server: ScriptedOllama) -> None:
    probe = Probe(server.url)
    first = probe.check()
    assert probe.check().models == first.models
    assert shows(server) == 2

    def pulled_anew(peer: Peer) -> None:
        if peer.asked.path == "/api/tags":
            peer.fields(200, models=[{**TAGS[0], "digest": "d5"}])
        else:
            healthy(peer)

    server.script = pulled_anew
    probe.check()
    assert shows(server) == 3


def test_a_model_that_cannot_be_shown_is_asked_again_and_harms_no_other(server: ScriptedOllama) -> None:
    def partly(peer: Peer) -> None:
        if peer.asked.path == "/api/show" and peer.asked.body["model"] == "qwen3:8b":
            peer.fields(404, error="model 'qwen3:8b' not found")
        else:
            healthy(peer)

    server.script = partly
    probe = Probe(server.url)
    first = probe.check()
    assert first.ok
    assert first.models[0].capabilities == ()
    server.script = healthy
    assert probe.check().models[0].capabilities == ("completion", "thinking")


def test_nothing_that_listens_is_said_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as once:
        port = once.getsockname()[1]
    health = Probe(f"http://127.0.0.1:{port}").check()
    assert not health.ok
    assert f"nothing answers at http://127.0.0.1:{port}" in health.issue


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (lambda peer: peer.hold(), "does not answer within 0.3 s"),
        (lambda peer: peer.reply(200, b"<html>", "text/html"), "not Ollama"),
        (lambda peer: peer.reply(200, b"[]"), "not Ollama"),
        (lambda peer: peer.fields(200, version=5), "not Ollama"),
        (lambda peer: peer.fields(200), "not Ollama"),
        (lambda peer: peer.fields(500, error="boom"), "status 500"),
        (lambda peer: peer.reply(302, b"", Location="http://127.0.0.1:9/"), "status 302"),
        (lambda peer: peer.raw(b"SSH-2.0\r\n"), "Ollama"),
        (lambda _: None, "nothing answers"),
        (lambda peer: peer.reply(200, b"[" * 100_000), "not Ollama"),
    ],
)
def test_what_is_wrong_is_said_in_words(server: ScriptedOllama, script: Callable[[Peer], None], said: str) -> None:
    server.script = script
    health = Probe(server.url, timeout_s=0.3).check()
    assert not health.ok
    assert health.models == ()
    assert said in health.issue


def test_an_answer_that_drips_ends_with_the_timeout(server: ScriptedOllama) -> None:
    def drip(peer: Peer) -> None:
        peer.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while not peer.hung_up(0.05):
            peer.raw(b" ")

    server.script = drip
    health = Probe(server.url, timeout_s=0.4).check()
    assert "does not answer within 0.4 s" in health.issue


def test_tags_that_are_no_list_are_no_models(server: ScriptedOllama) -> None:
    def odd(peer: Peer) -> None:
        if peer.asked.path == "/api/tags":
            peer.fields(200, models=[None, 5, {"name": 7}, {"model": "only-model:1b"}])
        elif peer.asked.path == "/api/show":
            peer.fields(200, capabilities="completion", model_info=[])
        else:
            healthy(peer)

    server.script = odd
    health = Probe(server.url).check()
    assert [model.name for model in health.models] == ["only-model:1b"]


def test_proxy_variables_are_ignored(server: ScriptedOllama, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert Probe(server.url).check().ok


def test_what_is_loaded_is_told_with_its_window(server: ScriptedOllama) -> None:
    server.loaded = (("stop", 2048), ("qwen3:8b", 8192))
    assert loaded_models(server.url, 2.0) == frozenset({("stop:latest", 2048), ("qwen3:8b", 8192)})


def test_what_is_loaded_is_unknown_where_nobody_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as once:
        port = once.getsockname()[1]
    assert loaded_models(f"http://127.0.0.1:{port}", 1.0) is None
