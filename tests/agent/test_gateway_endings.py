"""Every way an answer of Ollama can end, over real sockets: recorded ones byte for byte, broken ones by hand."""

import json
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import cast

import pytest

from koubou_agent.gateway import CallReport
from koubou_common.errors import ErrorClass
from support.gateway_calls import a_gateway, a_plan, ask
from support.scripted_ollama import Peer, ScriptedOllama

DATA = Path(__file__).parent.parent / "data" / "ollama"
OVERFLOW = ErrorClass.CONTEXT_OVERFLOW
# (file, a part of the label, what it must be called); every matching exchange is replayed.
RECORDED: tuple[tuple[str, str, ErrorClass | None], ...] = (
    ("endings", "stop, whole", None),
    ("endings", "stop, stream", None),
    ("endings", "length, ", ErrorClass.CUT_OUTPUT),
    ("endings", "one token over and over", ErrorClass.DEGENERATE),
    ("endings", "empty answer", ErrorClass.EMPTY_OUTPUT),
    ("endings", "text of several bytes a letter, streamed", None),
    ("endings", "cut inside a letter", ErrorClass.CUT_OUTPUT),
    ("endings", "bytes that are no text", None),
    ("endings", "a stop string", None),
    ("endings", "num_predict 0", ErrorClass.CONNECTION_LOST),  # the recorder hung up
    ("endings", "num_predict -1", OVERFLOW),
    ("context", "", OVERFLOW),
    ("errors", "missing model", ErrorClass.MODEL_MISSING),
    ("errors", "no body", ErrorClass.BAD_REQUEST),
    ("errors", "not JSON", ErrorClass.BAD_REQUEST),
    ("errors", "prompt of the wrong type", ErrorClass.BAD_REQUEST),
    ("errors", "option of the wrong type", ErrorClass.BAD_REQUEST),
    ("errors", "temperature as text", ErrorClass.BAD_REQUEST),
    ("errors", "think true on a model that cannot", ErrorClass.BAD_REQUEST),
    ("errors", "think false on a model that cannot", None),
    ("errors", 'think "high" on a model that cannot', ErrorClass.BAD_REQUEST),
    ("errors", "format nonsense", ErrorClass.BAD_REQUEST),
    ("errors", "suffix on a model that cannot", ErrorClass.BAD_REQUEST),
    ("errors", "a cloud model", ErrorClass.CLOUD_MODEL),
    ("errors", "cannot be loaded", ErrorClass.MODEL_UNLOADABLE),
    ("death", "the runner is killed", ErrorClass.RUNNER_KILLED),
    ("death", "the server gets SIGTERM", ErrorClass.CONNECTION_LOST),
)

Exchange = Mapping[str, object]


def exchanges(name: str) -> list[Exchange]:
    return cast(list[Exchange], json.loads((DATA / f"{name}.json").read_text("utf-8"))["exchanges"])


def generating(name: str) -> list[Exchange]:
    return [one for one in exchanges(name) if cast(Exchange, one["request"])["path"] == "/api/generate"]


def cases() -> list[object]:
    found: list[object] = []
    for name, part, expected in RECORDED:
        matching = [one for one in generating(name) if part in cast(str, one["label"])]
        assert matching, f"no exchange of {name} is labelled {part}"
        found += [pytest.param(one, expected, id=f"{name}: {one['label']}") for one in matching]
    found += [
        pytest.param(one, ErrorClass.OLLAMA_BUSY, id=f"evict: {one['label']}")
        for one in generating("evict")
        if one["status"] == 503
    ]
    return found


def replay(exchange: Exchange) -> Callable[[Peer], None]:
    """Send what was recorded; what the recording left out of long lists stays out."""

    def script(peer: Peer) -> None:
        if exchange["status"] is None:
            return
        headers = cast(Mapping[str, str], exchange["headers"])
        content_type = headers.get("Content-Type", "")
        if "body" in exchange:
            body = whole(cast(str, exchange["body"]))
            peer.reply(cast(int, exchange["status"]), body.encode(), content_type)
            return
        peer.raw(f"HTTP/1.1 {exchange['status']} X\r\nContent-Type: {content_type}\r\n".encode())
        peer.raw(b"Transfer-Encoding: chunked\r\n\r\n")
        for chunk in cast(list[str], exchange["chunks"]):
            if not chunk.startswith("<"):
                peer.chunk(whole(chunk).encode())
        if exchange["last_chunk_seen"]:
            peer.close_chunks()

    return script


def whole(text: str) -> str:
    return re.sub(r"\[<\d+ token ids>\]", "[]", text)


Script = Callable[[Peer], None]
Run = Callable[..., tuple[int, CallReport]]


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Make one call that a script answers; one server and one gateway serve all."""
    with ScriptedOllama(lambda _: None) as server, a_gateway(server.url) as gateway:

        def once(script: Script, **plan: object) -> tuple[int, CallReport]:
            server.script = script
            door = gateway.open("uid", a_plan(**plan))
            told = ask(door)
            report = door.close()
            assert gateway.busy == 0
            assert (told.status == 200) == (report.error_class is None)
            return told.status, report

        yield once


@pytest.mark.parametrize(("exchange", "expected"), cases())
def test_a_recorded_ending_gets_its_right_name(run: Run, exchange: Exchange, expected: ErrorClass | None) -> None:
    body = cast(Exchange, exchange["request"])["body"]
    options = recorded_options(body)
    num_predict = options.get("num_predict", 4096)
    num_ctx = options.get("num_ctx", 4096)
    _, report = run(
        replay(exchange),
        num_ctx=num_ctx,
        num_predict=num_predict if num_predict > 0 else 10 * 64,
    )
    assert report.error_class is expected
    assert "<models>" not in report.message
    if expected is None:
        assert report.text == recorded_text(exchange)
        assert report.done_reason == "stop"
        assert report.prompt_tokens > 0


def recorded_options(body: object) -> Mapping[str, int]:
    options = body.get("options") if isinstance(body, dict) else None
    numbers = options if isinstance(options, dict) else {}
    return {name: value for name, value in numbers.items() if isinstance(value, int)}


def recorded_text(exchange: Exchange) -> str:
    lines = [cast(str, exchange["body"])] if "body" in exchange else cast(list[str], exchange["chunks"])
    return "".join(json.loads(whole(line))["response"] for line in lines)


def test_every_recorded_generation_that_failed_is_in_the_table() -> None:
    named = {(name, cast(str, one["label"])) for name, part, _ in RECORDED for one in generating(name)
             if part in cast(str, one["label"])}  # fmt: skip
    for name in ("endings", "errors", "context", "death"):
        for one in generating(name):
            if one["status"] != 200:
                label = cast(str, one["label"])
                assert (name, label) in named or label == "empty object", (name, label)


LINE = b'{"model":"m","response":"x","done":false}\n'
DONE = b'{"model":"m","response":"","done":true,"done_reason":"stop","prompt_eval_count":6,"eval_count":2}\n'


def redirect(peer: Peer) -> None:
    peer.reply(307, b"", Location="http://127.0.0.1:9/api/generate")


def lines_then(*data: bytes, end: bool = True) -> Callable[[Peer], None]:
    def script(peer: Peer) -> None:
        peer.head()
        for chunk in data:
            peer.chunk(chunk)
        if end:
            peer.close_chunks()

    return script


def lines_then_reset(peer: Peer) -> None:
    peer.head()
    peer.chunk(LINE)
    peer.reset()


def short_of_its_length(peer: Peer) -> None:
    peer.raw(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n" + DONE[:40])


def without_length(data: bytes) -> Callable[[Peer], None]:
    return lambda peer: peer.raw(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n" + data)


BROKEN: Mapping[str, tuple[Callable[[Peer], None], ErrorClass | None]] = {
    "a redirect": (redirect, ErrorClass.REDIRECTED),
    "a page of HTML": (lambda p: p.reply(200, b"<html>hello</html>", "text/html"), ErrorClass.BAD_ANSWER),
    "JSON cut short, whole message": (lambda p: p.reply(200, DONE[:40]), ErrorClass.BAD_ANSWER),
    "JSON cut short, cut message": (short_of_its_length, ErrorClass.CONNECTION_LOST),
    "a list": (lambda p: p.reply(200, b"[1]"), ErrorClass.BAD_ANSWER),
    "an empty body": (lambda p: p.reply(200, b""), ErrorClass.BAD_ANSWER),
    "an empty stream": (lines_then(), ErrorClass.BAD_ANSWER),
    "response null": (lambda p: p.fields(200, response=None, done=True), ErrorClass.BAD_ANSWER),
    "no response": (lambda p: p.fields(200, done=True, done_reason="stop"), ErrorClass.BAD_ANSWER),
    "an error in a 200": (lambda p: p.fields(200, error="boom"), ErrorClass.OLLAMA_ERROR),
    "an error that is no text": (lambda p: p.fields(500, error={"message": "boom"}), ErrorClass.OLLAMA_ERROR),
    "llama-server's own words": (
        lambda p: p.fields(
            400,
            error={
                "code": 400,
                "message": "request (9 tokens) exceeds the available context size (8 tokens)",
                "type": "exceed_context_size_error",
            },
        ),
        OVERFLOW,
    ),
    "a proxy's 502": (lambda p: p.reply(502, b"<html>Bad Gateway</html>", "text/html"), ErrorClass.OLLAMA_ERROR),
    "a proxy's 503": (lambda p: p.reply(503, b"<html>busy</html>", "text/html"), ErrorClass.OLLAMA_BUSY),
    "another server's 404": (lambda p: p.reply(404, b"404 page not found", "text/plain"), ErrorClass.BAD_ANSWER),
    "an error in plain text": (lambda p: p.reply(500, b"unexpected EOF", "text/plain"), ErrorClass.RUNNER_KILLED),
    "a wrong Host": (lambda p: p.reply(403, b""), ErrorClass.OLLAMA_ERROR),
    "no HTTP at all": (lambda p: p.raw(b"SSH-2.0-OpenSSH_9\r\n"), ErrorClass.BAD_ANSWER),
    "closed at once": (lambda _: None, ErrorClass.CONNECTION_LOST),
    "reset at once": (lambda p: p.reset(), ErrorClass.CONNECTION_LOST),
    "reset while answering": (lines_then_reset, ErrorClass.CONNECTION_LOST),
    "closed while answering": (lines_then(LINE, end=False), ErrorClass.CONNECTION_LOST),
    "closed inside a line": (lines_then(LINE, LINE[:9], end=False), ErrorClass.CONNECTION_LOST),
    "a line that is no JSON": (lines_then(LINE, b"nope\n", DONE), ErrorClass.BAD_ANSWER),
    "the last line cut": (lines_then(LINE, DONE[:30]), ErrorClass.BAD_ANSWER),
    "nested beyond reason": (lines_then(b"[" * 100_000), ErrorClass.BAD_ANSWER),
    "an error line after tokens": (
        lines_then(LINE, b'{"error":"an error was encountered while running the model: unexpected EOF"}\n'),
        ErrorClass.RUNNER_KILLED,
    ),
    "closed without a length before done": (without_length(LINE), ErrorClass.CONNECTION_LOST),
    "done without a length": (without_length(LINE + DONE), None),
    "done, then cut": (lines_then(LINE, DONE, end=False), None),
    "lines across chunks": (lines_then(LINE[:7], LINE[7:] + DONE[:50], DONE[50:]), None),
    "many lines in one chunk, blank ones too": (lines_then(LINE + b"\n" + LINE + DONE), None),
    "a last line without its end": (lines_then(LINE, DONE.strip()), None),
    "counts of a wrong type": (
        lines_then(LINE, b'{"response":"","done":true,"done_reason":"stop","eval_count":"7","load_duration":1.5}\n'),
        None,
    ),
    "done that is no yes": (lines_then(LINE, b'{"response":"","done":"true"}\n'), ErrorClass.DEGENERATE),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_answer_gets_its_name_and_never_passes_for_a_good_one(run: Run, name: str) -> None:
    script, expected = BROKEN[name]
    _, report = run(script)
    assert report.error_class is expected, report.message
    assert bool(report.message) == (expected is not None)


def test_a_redirect_is_not_followed(run: Run) -> None:
    with ScriptedOllama(lambda p: p.fields(200, response="x", done=True, done_reason="stop")) as elsewhere:
        where = f"{elsewhere.url}/api/generate"
        _, report = run(lambda peer: peer.reply(302, b"", Location=where))
        assert report.error_class is ErrorClass.REDIRECTED
        assert elsewhere.asked == []


def test_a_failure_keeps_the_text_that_came_before_it(run: Run) -> None:
    _, report = run(lines_then_reset)
    assert report.text in {"x", ""}  # a reset may overtake what was sent
    _, report = run(lines_then(LINE, LINE, end=False))
    assert report.text == "xx"


def test_the_cli_is_told_ollamas_own_status(run: Run) -> None:
    told, report = run(lambda peer: peer.fields(503, error="server busy, please try again."))
    assert told == 503
    assert "overrun" in report.message


def test_nothing_that_listens_is_unreachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as once:
        port = once.getsockname()[1]
    with a_gateway(f"http://127.0.0.1:{port}") as gateway:
        door = gateway.open("uid", a_plan())
        assert ask(door).status == 502
        report = door.close()
        assert report.error_class is ErrorClass.OLLAMA_UNREACHABLE
        assert str(port) in report.message
        assert gateway.busy == 0


def test_the_paths_of_a_models_files_stay_on_their_box(run: Run) -> None:
    text = "llama runner process has terminated: error loading model: /home/u/.ollama/blobs/sha256-x\npanic: more"
    _, report = run(lambda peer: peer.fields(500, error=text))
    assert report.error_class is ErrorClass.MODEL_UNLOADABLE
    assert "/home" not in report.message
    assert "panic" not in report.message
