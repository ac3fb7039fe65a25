"""The door to Ollama over real sockets: what it sends, what it refuses, what it reports."""

import http.client
import json
import socket
from collections.abc import Iterator
from functools import partial
from urllib.parse import urlsplit

import ollama
import pytest

from koubou_agent.call_plan import SYSTEM_TEXT
from koubou_agent.gateway import Gateway, Limits, Phase
from koubou_common.errors import ErrorClass
from support.gateway_calls import Asking, a_gateway, a_plan, ask, ask_url, cli_body
from support.scripted_ollama import Peer, ScriptedOllama
from support.waiting import eventually


def zebra(peer: Peer) -> None:
    """A good answer in three tokens."""
    peer.head()
    for piece in (" Ze", "br", "a\n"):
        peer.token(piece)
    peer.end(
        prompt=6,
        tokens=4,
        total_duration=9_000_000,
        load_duration=2_000_000,
        prompt_eval_duration=3_000_000,
        eval_duration=4_000_000,
    )


@pytest.fixture
def good() -> Iterator[ScriptedOllama]:
    with ScriptedOllama(zebra) as server:
        yield server


@pytest.fixture
def gateway(good: ScriptedOllama) -> Iterator[Gateway]:
    with a_gateway(good.url) as gateway:
        yield gateway


def test_an_answer_comes_back_whole_as_ollama_would_give_it(gateway: Gateway) -> None:
    door = gateway.open("uid", a_plan())
    told = ask(door)
    assert told.status == 200
    assert told.fields["response"] == " Zebra\n"
    assert (told.fields["done"], told.fields["done_reason"]) == (True, "stop")
    assert (told.fields["prompt_eval_count"], told.fields["eval_count"]) == (6, 4)
    assert told.headers["Content-Type"] == "application/json; charset=utf-8"
    report = door.close()
    assert (report.text, report.error_class, report.aborted) == (" Zebra\n", None, False)
    assert (report.prompt_tokens, report.output_tokens, report.thinking_tokens) == (6, 4, 0)
    assert (report.load_ms, report.prompt_ms, report.eval_ms, report.total_ms) == (2, 3, 4, 9)
    assert (report.done_reason, report.num_ctx, report.num_predict, report.calls) == ("stop", 8192, 4096, 1)
    assert gateway.busy == 0


def test_what_reaches_ollama_is_the_plan_and_the_prompt(gateway: Gateway, good: ScriptedOllama) -> None:
    ask(gateway.open("uid", a_plan()), cli_body(prompt="task 濯", keep_alive="1h", think=True, context=[1], raw=True))
    assert good.generated == [
        {
            "model": "stop",
            "prompt": "task 濯",
            "system": SYSTEM_TEXT,
            "stream": True,
            "truncate": False,
            "shift": False,
            "think": False,
            "options": {"temperature": 0.2, "seed": 7, "num_ctx": 8192, "num_predict": 4096},
        }
    ]


def test_the_real_client_library_reads_the_answer(gateway: Gateway) -> None:
    door = gateway.open("uid", a_plan())
    client = ollama.Client(host=door.host_url, trust_env=False)
    answer = client.generate(model="stop", prompt="hello", stream=False, options={"num_ctx": 4096})
    client._client.close()
    assert answer["response"] == " Zebra\n"
    assert answer["done_reason"] == "stop"


def test_the_real_client_library_fails_on_a_named_failure(gateway: Gateway, good: ScriptedOllama) -> None:
    good.script = lambda peer: peer.fields(404, error="model 'stop' not found")
    client = ollama.Client(host=gateway.open("uid", a_plan()).host_url, trust_env=False)
    with pytest.raises(ollama.ResponseError, match="does not have the model") as raised:
        client.generate(model="stop", prompt="hello", stream=False)
    client._client.close()
    assert raised.value.status_code == 404


def test_the_gateway_listens_on_the_loopback_only(gateway: Gateway) -> None:
    door = gateway.open("uid", a_plan())
    assert urlsplit(door.host_url).hostname == "127.0.0.1"


@pytest.mark.parametrize("path", ["/", "/api/generate", "/t/", "/t/x/api/generate", "/t//api/generate", "/x/y/z"])
@pytest.mark.parametrize("method", ["POST", "GET", "DELETE"])
def test_a_stranger_is_told_nothing(gateway: Gateway, good: ScriptedOllama, path: str, method: str) -> None:
    base = gateway.open("uid", a_plan()).host_url.split("/t/")[0]
    told = ask_url(base + path, json.dumps(cli_body()).encode(), method=method)
    assert (told.status, told.fields) == (403, {"error": "forbidden"})
    assert good.asked == []


def test_a_closed_door_knows_its_secret_no_more(gateway: Gateway, good: ScriptedOllama) -> None:
    door = gateway.open("uid", a_plan())
    door.close()
    assert ask(door).status == 403
    assert good.asked == []


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/api/tags", None),
        ("POST", "/api/chat", None),
        ("POST", "/api/pull", None),
        ("DELETE", "/api/delete", None),
        ("GET", "/api/generate", None),
        ("POST", "/api/generate/", None),
        ("POST", "/api/generate", b"{nope"),
        ("POST", "/api/generate", b"[]"),
        ("POST", "/api/generate", b"[" * 100_000),
        ("POST", "/api/generate", cli_body(model="other")),
        ("POST", "/api/generate", cli_body(model="stop:8b")),
        ("POST", "/api/generate", cli_body(model="gpt-oss:120b-cloud")),
        ("POST", "/api/generate", cli_body(prompt="")),
        ("POST", "/api/generate", cli_body(stream=True)),
        ("POST", "/api/generate", {"model": "stop", "prompt": 5, "stream": False}),
        ("POST", "/api/generate", {}),
    ],
)
def test_anything_but_the_one_call_is_refused_before_ollama(
    gateway: Gateway, good: ScriptedOllama, method: str, path: str, body: object
) -> None:
    door = gateway.open("uid", a_plan())
    told = ask(door, body, method=method, path=path)
    assert 400 <= told.status < 500
    assert told.fields["error"]
    assert good.asked == []
    report = door.close()
    assert report.error_class is ErrorClass.CLI_FAILED
    assert report.message == told.fields["error"]
    assert report.calls == 0


def test_latest_is_the_model_without_a_tag(gateway: Gateway) -> None:
    assert ask(gateway.open("uid", a_plan(model="stop:latest")), cli_body(model="stop")).status == 200


def test_a_cloud_model_is_refused_even_where_the_plan_names_it(gateway: Gateway, good: ScriptedOllama) -> None:
    door = gateway.open("uid", a_plan(model="kimi:cloud"))
    assert ask(door, cli_body(model="kimi:cloud")).status == 403
    assert good.asked == []


def test_a_request_over_the_limit_is_refused_unread(gateway: Gateway) -> None:
    parts = urlsplit(gateway.open("uid", a_plan()).host_url)
    head = f"POST {parts.path}/api/generate HTTP/1.1\r\nHost: x\r\nContent-Length: {20 * 2**20 + 1}\r\n\r\n"
    assert said(parts.port, head.encode()).startswith(b"HTTP/1.0 413")


@pytest.mark.parametrize("length", ["", "-1", "1e3", "٣", "9" * 30])
def test_a_request_without_a_length_is_refused(gateway: Gateway, length: str) -> None:
    parts = urlsplit(gateway.open("uid", a_plan()).host_url)
    head = f"POST {parts.path}/api/generate HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n"
    assert said(parts.port, head.encode()).startswith(b"HTTP/1.0 411")


def test_headers_without_end_are_refused(gateway: Gateway) -> None:
    parts = urlsplit(gateway.open("uid", a_plan()).host_url)
    head = b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: y\r\n" % number for number in range(200)) + b"\r\n"
    answer = said(parts.port, head)
    assert answer.startswith(b"HTTP/1.0 431")
    assert b"Python" not in answer


def said(port: int | None, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port or 0), timeout=10) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while data := connection.recv(4096):
            answer += data
        return answer


def test_one_call_a_run_is_all_a_door_lets_through(gateway: Gateway, good: ScriptedOllama) -> None:
    door = gateway.open("uid", a_plan())
    assert ask(door).status == 200
    assert ask(door).status == 409
    assert len(good.generated) == 1
    assert door.close().text == " Zebra\n"


def test_a_second_call_beside_the_first_is_refused(gateway: Gateway, good: ScriptedOllama) -> None:
    good.script = lambda peer: peer.hold()
    door = gateway.open("uid", a_plan())
    first = Asking(door)
    eventually(lambda: good.generated)
    assert ask(door).status == 409
    door.abort(None, "over")
    assert first.told().status == 499


def test_doors_do_not_mix(gateway: Gateway, good: ScriptedOllama) -> None:
    def echo(peer: Peer) -> None:
        peer.head()
        peer.token(f"answer to {peer.asked.body['prompt']}")
        peer.end()

    good.script = echo
    doors = {number: gateway.open(f"uid{number}", a_plan()) for number in range(8)}
    asking = {number: Asking(door, cli_body(prompt=f"p{number}")) for number, door in doors.items()}
    for number, door in doors.items():
        assert asking[number].told().fields["response"] == f"answer to p{number}"
        assert door.close().text == f"answer to p{number}"
    assert gateway.busy == 0


def test_a_door_nobody_asked_through_reports_that(gateway: Gateway) -> None:
    report = gateway.open("uid", a_plan()).close()
    assert report.error_class is ErrorClass.CLI_FAILED
    assert "never asked" in report.message
    assert (report.calls, report.aborted) == (0, False)


def test_progress_shows_the_phases_and_the_counts(gateway: Gateway, good: ScriptedOllama) -> None:
    steps: list[str] = []

    def slowly(peer: Peer) -> None:
        for step in ("head", "thought", "token", "end"):
            eventually(partial(steps.__contains__, step))
            match step:
                case "head":
                    peer.head()
                case "thought":
                    peer.thought("hm")
                case "token":
                    peer.token("x")
                case "end":
                    peer.end(prompt=77)

    good.script = slowly
    door = gateway.open("uid", a_plan())
    assert door.progress().phase is Phase.WAITING
    asking = Asking(door)
    eventually(lambda: door.progress().phase is Phase.READING)
    assert gateway.busy == 1
    before = door.progress()
    assert before.prompt_tokens > 0
    steps += ["head", "thought"]
    eventually(lambda: door.progress().phase is Phase.THINKING)
    assert door.progress().last_token_at_mono_s > before.last_token_at_mono_s
    steps.append("token")
    eventually(lambda: door.progress().phase is Phase.ANSWERING)
    assert (door.progress().thinking_tokens, door.progress().output_tokens) == (1, 1)
    steps.append("end")
    asking.told()
    assert door.progress().phase is Phase.ENDED
    assert door.progress().prompt_tokens == 77


def test_stop_leaves_no_connection_and_no_thread(good: ScriptedOllama) -> None:
    good.script = lambda peer: peer.hold()
    gateway = Gateway(good.url)
    gateway.start()
    door = gateway.open("uid", a_plan())
    asking = Asking(door)
    eventually(lambda: good.generated)
    gateway.stop()
    assert asking.told().status == 499
    assert gateway.busy == 0
    with pytest.raises((OSError, http.client.HTTPException)):
        ask(door)


def test_proxy_variables_lead_nowhere(good: ScriptedOllama, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with a_gateway(good.url) as gateway:
        assert ask(gateway.open("uid", a_plan())).status == 200


def test_output_over_the_limit_is_not_read_on(gateway: Gateway, good: ScriptedOllama) -> None:
    hung_up: list[bool] = []

    def flood(peer: Peer) -> None:
        peer.head()
        try:
            while True:
                peer.token("x" * 1000)
        except OSError:
            hung_up.append(True)

    good.script = flood
    door = gateway.open("uid", a_plan(limits=Limits(output_bytes=10_000)))
    assert ask(door).status == 502
    report = door.close()
    assert report.error_class is ErrorClass.OUTPUT_TOO_LARGE
    assert "10000 bytes" in report.message
    assert 10_000 < len(report.text) <= 200_000
    eventually(lambda: hung_up)


def test_half_a_surrogate_pair_becomes_a_replacement_and_a_whole_one_its_letter(
    gateway: Gateway, good: ScriptedOllama
) -> None:
    def odd(peer: Peer) -> None:
        peer.head()
        peer.chunk(b'{"response":"a\\ud83d","done":false}\n{"response":"\\ude00b\\ud800","done":false}\n')
        peer.end()

    good.script = odd
    door = gateway.open("uid", a_plan())
    assert ask(door).fields["response"] == "a😀b\ufffd"
    assert door.close().error_class is None
