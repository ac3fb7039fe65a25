"""Limits, aborts, and when a slot is free: when Ollama is, not when the task is."""

import socket
import time
from collections.abc import Iterator

import pytest

from koubou_agent.gateway import Door, Gateway, Limits, Phase
from koubou_agent.planning import TOTAL_OF_TASK
from koubou_common.errors import ErrorClass
from support.gateway_calls import Asking, a_gateway, a_plan, ask
from support.scripted_ollama import Peer, ScriptedOllama
from support.waiting import eventually

OLD, NEW = (0, 24, 0), (0, 33, 0)
LOADED = (("stop:latest", 8192),)


class Slow:
    """An answer whose steps a test lets happen one by one."""

    def __init__(self) -> None:
        self.steps: set[str] = set()
        self.hung_up_at: list[str] = []

    def __call__(self, peer: Peer) -> None:
        for step in ("head", "token", "end"):
            while step not in self.steps:
                if peer.hung_up(0.02):
                    self.hung_up_at.append(step)
                    return
            match step:
                case "head":
                    peer.head()
                case "token":
                    peer.token("x")
                case _:
                    peer.end()


@pytest.fixture
def slow() -> Slow:
    return Slow()


@pytest.fixture
def server(slow: Slow) -> Iterator[ScriptedOllama]:
    with ScriptedOllama(slow, LOADED) as server:
        yield server


@pytest.fixture
def gateway(server: ScriptedOllama) -> Iterator[Gateway]:
    with a_gateway(server.url) as gateway:
        yield gateway


def asked(gateway: Gateway, server: ScriptedOllama, **plan: object) -> tuple[Door, Asking]:
    door = gateway.open("uid", a_plan(**plan))
    asking = Asking(door)
    eventually(lambda: server.generated)
    return door, asking


def test_tokens_that_stop_coming_are_a_stall_and_the_connection_closes(
    gateway: Gateway, server: ScriptedOllama, slow: Slow
) -> None:
    slow.steps |= {"head", "token"}
    door, asking = asked(gateway, server, limits=Limits(idle_s=0.3))
    assert asking.told().status == 504
    report = door.close()
    assert report.error_class is ErrorClass.STALLED
    assert "0.3 s" in report.message
    assert report.output_tokens == 1
    eventually(lambda: slow.hung_up_at == ["end"])
    eventually(lambda: gateway.busy == 0)


def test_bytes_that_make_no_line_are_no_tokens(gateway: Gateway, server: ScriptedOllama) -> None:
    def drip(peer: Peer) -> None:
        peer.head()
        peer.token("x")
        while not peer.hung_up(0.05):
            peer.chunk(b" ")

    server.script = drip
    door, asking = asked(gateway, server, limits=Limits(idle_s=0.4))
    assert asking.told().status == 504
    assert door.close().error_class is ErrorClass.STALLED


def test_no_first_token_in_time_is_stuck(gateway: Gateway, server: ScriptedOllama, slow: Slow) -> None:
    door, asking = asked(gateway, server, limits=Limits(first_token_s=0.4), prompt_tokens_per_s=1e6, ollama_version=NEW)
    assert asking.told().status == 504
    report = door.close()
    assert report.error_class is ErrorClass.STUCK
    limit = "no first token within 0.4 s, the first_token_s of its worker's limits"
    assert report.message == f"{limit}; the model is loaded"
    eventually(lambda: slow.hung_up_at == ["head"])
    eventually(lambda: gateway.busy == 0)


def test_the_brokers_limit_of_the_first_token_takes_the_place_of_the_boxes_own(
    gateway: Gateway, server: ScriptedOllama, slow: Slow
) -> None:
    door, asking = asked(gateway, server, limits=Limits(first_token_s=60.0), first_token_s=0.4, ollama_version=NEW)
    assert asking.told().status == 504
    report = door.close()
    assert report.error_class is ErrorClass.STUCK
    assert "0.4 s, the limit that follows from its worker's measured speed" in report.message


def test_headers_are_no_first_token(gateway: Gateway, server: ScriptedOllama, slow: Slow) -> None:
    slow.steps.add("head")
    door, asking = asked(gateway, server, limits=Limits(first_token_s=0.4), prompt_tokens_per_s=1e6)
    assert asking.told().status == 504
    assert door.close().error_class is ErrorClass.STUCK
    eventually(lambda: slow.hung_up_at == ["token"])


def test_the_total_limit_counts_from_the_opening_of_the_door(
    gateway: Gateway, server: ScriptedOllama, slow: Slow
) -> None:
    door = gateway.open("uid", a_plan(limits=Limits(total_s=0.5, total_of=TOTAL_OF_TASK), ollama_version=NEW))
    opened = time.monotonic()
    eventually(lambda: time.monotonic() - opened > 0.3)
    slow.steps |= {"head", "token"}
    asking = Asking(door)
    assert asking.told().status == 504
    assert time.monotonic() - opened < 0.9
    report = door.close()
    assert report.error_class is ErrorClass.TIMEOUT
    assert report.message == "the attempt took longer than 0.5 s, the task's own timeout"


def test_a_model_that_does_not_load_in_time_is_a_load_timeout_and_its_load_goes_on(
    gateway: Gateway, server: ScriptedOllama, slow: Slow
) -> None:
    server.loaded = ()
    door, asking = asked(
        gateway,
        server,
        limits=Limits(load_s=0.7, first_token_s=0.9),
        prompt_tokens_per_s=1e6,
        ollama_version=NEW,
    )
    eventually(lambda: door.progress().phase is Phase.LOADING)
    assert asking.told().status == 504
    assert door.close().error_class is ErrorClass.LOAD_TIMEOUT
    assert gateway.busy == 1
    assert slow.hung_up_at == []
    server.loaded = LOADED  # loaded: now nothing is lost by hanging up
    eventually(lambda: slow.hung_up_at == ["head"])
    eventually(lambda: gateway.busy == 0)


def test_the_clock_of_the_first_token_starts_when_the_model_is_loaded(
    gateway: Gateway, server: ScriptedOllama, slow: Slow
) -> None:
    server.loaded = ()
    door, asking = asked(
        gateway,
        server,
        limits=Limits(load_s=20, first_token_s=0.4),
        prompt_tokens_per_s=1e6,
        ollama_version=NEW,
    )
    started = time.monotonic()
    eventually(lambda: time.monotonic() - started > 0.6)
    assert door.progress().phase is Phase.LOADING
    server.loaded = LOADED
    eventually(lambda: door.progress().phase is Phase.READING)
    assert asking.told().status == 504
    assert time.monotonic() - started > 0.9
    assert door.close().error_class is ErrorClass.STUCK


@pytest.mark.parametrize("version", [OLD, NEW, (), (0, 0, 0)])
def test_an_abort_while_answering_closes_at_once(
    gateway: Gateway, server: ScriptedOllama, slow: Slow, version: tuple[int, ...]
) -> None:
    slow.steps |= {"head", "token"}
    door, asking = asked(gateway, server, ollama_version=version)
    eventually(lambda: door.progress().phase is Phase.ANSWERING)
    door.abort(None, "cancelled by its owner")
    told = asking.told()
    assert (told.status, told.fields["error"]) == (499, "cancelled by its owner")
    eventually(lambda: gateway.busy == 0, timeout_s=1.0)
    assert eventually(lambda: slow.hung_up_at) == ["end"]
    report = door.close()
    assert (report.error_class, report.aborted, report.message) == (None, True, "cancelled by its owner")


@pytest.mark.parametrize("version", [OLD, (), (0, 0, 0)])
def test_an_abort_while_an_old_ollama_reads_the_prompt_keeps_the_slot_until_its_first_byte(
    gateway: Gateway, server: ScriptedOllama, slow: Slow, version: tuple[int, ...]
) -> None:
    door, asking = asked(gateway, server, ollama_version=version)
    door.abort(None, "cancelled")
    assert asking.told().status == 499  # the CLI goes at once
    assert door.progress().phase is Phase.RELEASING
    assert door.close().aborted
    aborted = time.monotonic()
    eventually(lambda: time.monotonic() - aborted > 0.5)
    assert gateway.busy == 1
    assert slow.hung_up_at == []
    slow.steps.add("head")
    eventually(lambda: gateway.busy == 0, timeout_s=1.0)
    assert eventually(lambda: slow.hung_up_at) == ["token"]


def test_an_abort_while_a_new_ollama_reads_the_prompt_closes_once_the_model_is_seen_loaded(
    gateway: Gateway, server: ScriptedOllama, slow: Slow
) -> None:
    door, asking = asked(gateway, server, ollama_version=NEW)
    door.abort(None, "cancelled")
    assert asking.told().status == 499
    eventually(lambda: gateway.busy == 0, timeout_s=2.0)
    assert eventually(lambda: slow.hung_up_at) == ["head"]


def test_an_abort_while_the_model_loads_waits_for_the_load(
    gateway: Gateway, server: ScriptedOllama, slow: Slow
) -> None:
    server.loaded = (("other:latest", 8192), ("stop:latest", 2048))  # the same model with another window is another
    door, asking = asked(gateway, server, ollama_version=NEW)
    door.abort(ErrorClass.DRAIN, "the agent is stopping")
    assert asking.told().status == 499
    assert door.close().error_class is ErrorClass.DRAIN
    aborted = time.monotonic()
    eventually(lambda: time.monotonic() - aborted > 0.6)
    assert gateway.busy == 1
    server.loaded = LOADED
    eventually(lambda: gateway.busy == 0, timeout_s=2.0)
    assert eventually(lambda: slow.hung_up_at) == ["head"]


def test_a_server_that_does_not_even_list_its_models_is_not_waited_for(
    gateway: Gateway, server: ScriptedOllama, slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("koubou_agent.gateway.loaded_models", lambda url, timeout_s: None)
    door, asking = asked(gateway, server, ollama_version=NEW)
    door.abort(None, "cancelled")
    asking.told()
    eventually(lambda: gateway.busy == 0, timeout_s=3.0)


def test_an_aborted_door_lets_no_later_call_through(gateway: Gateway, server: ScriptedOllama) -> None:
    door = gateway.open("uid", a_plan())
    door.abort(ErrorClass.DRAIN, "the agent is stopping")
    assert ask(door).status == 499
    assert server.generated == []
    report = door.close()
    assert (report.error_class, report.message, report.calls) == (ErrorClass.DRAIN, "the agent is stopping", 0)
    assert report.aborted


def test_an_abort_after_the_end_changes_nothing(gateway: Gateway, server: ScriptedOllama, slow: Slow) -> None:
    slow.steps |= {"head", "token", "end"}
    door, asking = asked(gateway, server)
    assert asking.told().status == 200
    door.abort(ErrorClass.DRAIN, "too late")
    report = door.close()
    assert (report.error_class, report.text, report.aborted) == (None, "x", False)


def test_the_first_abort_is_the_one_that_counts(gateway: Gateway, server: ScriptedOllama) -> None:
    door, asking = asked(gateway, server)
    door.abort(ErrorClass.TIMEOUT, "first")
    door.abort(None, "second")
    asking.told()
    report = door.close()
    assert (report.error_class, report.message) == (ErrorClass.TIMEOUT, "first")


def test_closing_a_door_ends_its_call(gateway: Gateway, server: ScriptedOllama, slow: Slow) -> None:
    slow.steps |= {"head", "token"}
    door, asking = asked(gateway, server)
    eventually(lambda: door.progress().phase is Phase.ANSWERING)
    assert door.close().aborted
    assert asking.told().status == 499
    eventually(lambda: gateway.busy == 0)


def test_a_cli_that_dies_ends_its_call(gateway: Gateway, server: ScriptedOllama, slow: Slow) -> None:
    slow.steps |= {"head", "token"}
    door = gateway.open("uid", a_plan())
    host, _, path = door.host_url.removeprefix("http://").partition("/")
    body = b'{"model":"stop","prompt":"x","stream":false}'
    with socket.create_connection((host.split(":")[0], int(host.split(":")[1]))) as cli:
        cli.sendall(f"POST /{path}/api/generate HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        eventually(lambda: door.progress().phase is Phase.ANSWERING)
    eventually(lambda: slow.hung_up_at == ["end"])
    report = door.close()
    assert report.error_class is ErrorClass.CLI_FAILED
    assert "hung up" in report.message


def test_a_second_attempt_waits_for_nobody_while_the_first_is_releasing(
    gateway: Gateway, server: ScriptedOllama, slow: Slow
) -> None:
    door, asking = asked(gateway, server)
    door.close()
    asking.told()
    other = gateway.open("uid2", a_plan())
    second = Asking(other)
    eventually(lambda: gateway.busy == 2)
    slow.steps |= {"head", "token", "end"}
    assert second.told().status == 200
    eventually(lambda: gateway.busy == 0)
