"""Every fault, as a client meets it."""

import http.client
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from koubou_simulator.ollama import Fault, FaultKind, SimSettings, SimulatedOllama, model_named
from koubou_simulator.ollama.errors import RUNNER_DIED, RUNNER_GONE
from koubou_simulator.ollama.faults import ANSWERS, ENDINGS, STATES, WIRE
from support.ollama_stage import Stage, a_stage
from support.waiting import eventually

MODEL = "qwen2.5-coder:1.5b"
CLOUD = "gpt-oss:120b-cloud"


@pytest.fixture
def stage() -> Iterator[Stage]:
    with a_stage([model_named(MODEL, "fast"), model_named("qwen3:8b", "fast")]) as made:
        yield made


@pytest.fixture
def sim() -> Iterator[SimulatedOllama]:
    with SimulatedOllama(SimSettings(speed=100), [model_named(MODEL, "fast")]) as made:
        yield made


def lines(stage: Stage, **more: Any) -> list[dict[str, Any]]:
    result = stage.finish(stage.ask(MODEL, "[[sim: length=20]]", stream=True, **more))
    assert result.last_chunk_seen
    return [json.loads(chunk) for chunk in result.chunks]


def test_every_kind_of_fault_is_one_of_the_known_sorts() -> None:
    rest = {FaultKind.SLOW_LOAD, FaultKind.LOAD_FAILURE, FaultKind.FOREIGN_CLIENT, FaultKind.RESTART}
    assert set(FaultKind) == WIRE | ANSWERS | ENDINGS | STATES | rest


@pytest.mark.parametrize(
    ("kind", "status", "text"),
    [
        (FaultKind.NOT_FOUND, 404, f"model '{MODEL}' not found"),
        (FaultKind.CONTEXT, 400, "the input length exceeds the context length"),
        (FaultKind.CANCELED, 499, "request canceled"),
        (FaultKind.BUSY, 503, "server busy, please try again.  maximum pending requests exceeded"),
        (FaultKind.CRASHED, 500, RUNNER_GONE),
        (FaultKind.ERROR, 500, "[SIMULATED] something went wrong"),
    ],
)
def test_an_error_answer_comes_once(stage: Stage, kind: FaultKind, status: int, text: str) -> None:
    stage.sim.faults.add(Fault(kind))
    assert stage.error(stage.ask(MODEL)) == (status, text)
    stage.answer(stage.ask(MODEL))


def test_a_crash_unloads_the_model(stage: Stage) -> None:
    stage.answer(stage.ask(MODEL, ""))
    stage.sim.faults.add(Fault(FaultKind.CRASHED))
    stage.error(stage.ask(MODEL))
    assert stage.get("/api/ps") == {"models": []}


def test_a_fault_meets_only_what_it_matches_and_as_often_as_it_says(stage: Stage) -> None:
    stage.sim.faults.add(Fault(FaultKind.BUSY, model="qwen3", count=None))
    stage.sim.faults.add(Fault(FaultKind.BUSY, model="qwen3:8b", match="secret word", count=2))
    stage.answer(stage.ask(MODEL, "the secret word"))
    stage.answer(stage.ask("qwen3:8b", "another"))
    for _ in range(2):
        assert stage.error(stage.ask("qwen3:8b", "the secret word"))[0] == 503
    stage.answer(stage.ask("qwen3:8b", "the secret word"))


def test_a_fault_of_half_the_requests_meets_about_half_of_them(stage: Stage) -> None:
    stage.sim.faults.add(Fault(FaultKind.BUSY, probability=0.5, count=None))
    met = sum(stage.finish(stage.ask(MODEL, "")).status == 503 for _ in range(60))
    assert 15 < met < 45


def test_a_fault_may_be_wished_for_in_the_prompt(stage: Stage) -> None:
    assert stage.error(stage.ask(MODEL, "[[sim: fault=busy]]"))[0] == 503
    assert stage.answer(stage.ask(MODEL, "[[sim: fault=done_false]]"))["done"] is False
    assert stage.answer(stage.ask(MODEL, "[[sim: fault=nonsense]]"))["done"] is True


def test_done_false_breaks_an_answer_off(stage: Stage) -> None:
    stage.sim.faults.add(Fault(FaultKind.DONE_FALSE, after=3))
    assert [line["done"] for line in lines(stage)] == [False] * 3


def test_an_answer_may_be_empty_or_null_or_cut(stage: Stage) -> None:
    for kind, expected in ((FaultKind.EMPTY, ""), (FaultKind.NULL_RESPONSE, None)):
        stage.sim.faults.add(Fault(kind))
        answer = stage.answer(stage.ask(MODEL))
        assert (answer["response"], answer["done"], answer["done_reason"]) == (expected, True, "stop")
    stage.sim.faults.add(Fault(FaultKind.LENGTH, after=4))
    answer = stage.answer(stage.ask(MODEL))
    assert (answer["done_reason"], answer["eval_count"]) == ("length", 4)


def test_an_error_in_the_middle_is_a_line_in_a_stream_and_a_status_otherwise(stage: Stage) -> None:
    stage.sim.faults.add(Fault(FaultKind.STREAM_ERROR, after=2, count=2, text="out of luck"))
    assert lines(stage)[-1] == {"error": "out of luck"}
    assert stage.error(stage.ask(MODEL)) == (500, "out of luck")


def test_a_runner_that_dies_is_still_listed_and_loaded_again(stage: Stage) -> None:
    stage.sim.faults.add(Fault(FaultKind.KILL, after=5))
    answer = lines(stage)
    assert len(answer) == 6
    assert answer[-1] == {"error": RUNNER_DIED}
    assert [model["name"] for model in stage.get("/api/ps")["models"]] == [MODEL]
    stage.answer(stage.ask(MODEL))
    assert len(stage.sim.scheduler.loads) == 2


def test_a_stalled_answer_says_nothing_more_and_keeps_its_slot(stage: Stage) -> None:
    stage.sim.faults.add(Fault(FaultKind.STALL, after=2))
    stalled = stage.ask(MODEL, stream=True)
    stage.advance(900)
    behind = stage.ask(MODEL)
    stage.advance(60)
    assert not stalled.is_over
    assert not behind.is_over
    stage.hang_up(stalled)
    stage.answer(behind)
    assert len(stalled.finish().chunks) == 2


@pytest.mark.parametrize("kind", [FaultKind.HANG, FaultKind.HEADERS_HANG])
def test_a_hanging_request_ends_only_with_its_client(stage: Stage, kind: FaultKind) -> None:
    stage.sim.faults.add(Fault(kind))
    call = stage.ask(MODEL)
    stage.advance(3600)
    assert not call.is_over
    stage.hang_up(call)
    result = call.finish()
    assert result.status == (200 if kind is FaultKind.HEADERS_HANG else None)
    assert not result.chunks


def test_a_reply_may_drip(stage: Stage) -> None:
    stage.answer(stage.ask(MODEL, ""))
    stage.sim.faults.add(Fault(FaultKind.DRIP, delay_s=0.1))
    began_s = stage.now_s()
    assert stage.answer(stage.ask(MODEL, "[[sim: raw=x]]"))["response"] == "x"
    assert stage.now_s() - began_s > 25


@pytest.mark.parametrize(("kind", "end"), [(FaultKind.EOF, "closed by server"), (FaultKind.RESET, "reset by server")])
def test_a_reply_may_break_off_at_a_byte(stage: Stage, kind: FaultKind, end: str) -> None:
    whole = stage.finish(stage.ask(MODEL, "[[sim: raw=x]]"))
    stage.sim.faults.add(Fault(kind, after=200))
    result = stage.finish(stage.ask(MODEL, "[[sim: raw=x]]"))
    assert result.end == end
    if kind is FaultKind.EOF:
        assert 0 < len(result.body) < len(whole.body)


def test_replies_that_are_not_ollamas(stage: Stage) -> None:
    stage.sim.faults.add(Fault(FaultKind.INVALID_JSON))
    with pytest.raises(json.JSONDecodeError):
        stage.answer(stage.ask(MODEL))
    stage.sim.faults.add(Fault(FaultKind.HTML))
    result = stage.finish(stage.ask(MODEL))
    assert (result.status, result.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert result.body.startswith("<html>")
    assert [(logged.ended, logged.status) for logged in stage.sim.requests] == [
        ("fault invalid_json", 200),
        ("fault html", 200),
    ]
    for status in (302, 307):
        stage.sim.faults.add(Fault(FaultKind.REDIRECT, status=status, text="http://127.0.0.1:1/x"))
        result = stage.finish(stage.ask(MODEL))
        assert (result.status, result.headers["Location"]) == (status, "http://127.0.0.1:1/x")


def test_faults_of_other_paths(stage: Stage) -> None:
    stage.sim.faults.add(Fault(FaultKind.ERROR, path="/api/tags", status=500, text="no disk"))
    stage.answer(stage.ask(MODEL))
    assert stage.error(stage.send("GET", "/api/tags")) == (500, "no disk")
    stage.sim.faults.add(Fault(FaultKind.HTML, path="*", count=2))
    assert stage.finish(stage.send("GET", "/")).body.startswith("<html>")
    assert stage.finish(stage.send("GET", "/api/ps")).body.startswith("<html>")


def test_a_load_may_be_slow_or_fail(stage: Stage) -> None:
    stage.sim.faults.add(Fault(FaultKind.SLOW_LOAD, delay_s=100))
    assert stage.answer(stage.ask(MODEL))["load_duration"] > 100e9
    stage.sim.faults.add(Fault(FaultKind.LOAD_FAILURE, text="error loading model: bad magic"))
    refused = stage.error(stage.ask("qwen3:8b"))
    assert refused == (500, "llama runner process has terminated: error loading model: bad magic")


def test_a_foreign_client_makes_everybody_load_again(stage: Stage) -> None:
    stage.answer(stage.ask(MODEL))
    stage.sim.faults.add(Fault(FaultKind.FOREIGN_CLIENT, model=MODEL, num_ctx=1024))
    stage.until(lambda: len(stage.sim.scheduler.loads) == 2)
    stage.advance(1)
    assert stage.get("/api/ps")["models"][0]["context_length"] == 1024
    stage.answer(stage.ask(MODEL))
    assert [num_ctx for _, num_ctx in stage.sim.scheduler.loads] == [4096, 1024, 4096]


def test_a_card_may_fall_back_to_the_processor(stage: Stage) -> None:
    fast = stage.answer(stage.ask(MODEL, "[[sim: length=50]]"))
    assert stage.get("/api/ps")["models"][0]["size_vram"] > 0
    held = stage.sim.faults.add(Fault(FaultKind.CPU_FALLBACK))
    slow = stage.answer(stage.ask(MODEL, "[[sim: length=50]]"))
    assert slow["eval_duration"] == pytest.approx(2.5 * fast["eval_duration"])
    assert stage.get("/api/ps")["models"][0]["size_vram"] == 0
    stage.sim.faults.remove(held)
    assert stage.get("/api/ps")["models"][0]["size_vram"] > 0


def test_a_wrong_clock_shows_in_ps_only(stage: Stage) -> None:
    stage.answer(stage.ask(MODEL))
    right = stage.get("/api/ps")["models"][0]["expires_at"]
    stage.sim.faults.add(Fault(FaultKind.CLOCK_SKEW, delay_s=-86400))
    assert stage.get("/api/ps")["models"][0]["expires_at"] < right


def test_a_cloud_model_is_listed_with_its_host_and_refused(stage: Stage) -> None:
    stage.sim.faults.add(Fault(FaultKind.CLOUD_MODEL, model=CLOUD))
    entry = stage.get("/api/tags")["models"][0]
    assert (entry["name"], entry["remote_host"]) == (CLOUD, "https://ollama.com:443")
    refused = stage.error(stage.ask(CLOUD))
    assert refused == (403, "ollama cloud is disabled: remote model is unavailable")


def test_nothing_listens_while_refused_and_the_port_stays(sim: SimulatedOllama) -> None:
    number = sim.faults.add(Fault(FaultKind.REFUSE))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", sim.port))
    sim.faults.remove(number)
    socket.create_connection(("127.0.0.1", sim.port)).close()


def test_a_restart_drops_connections_and_models_and_comes_back(sim: SimulatedOllama) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", sim.port)
    body = json.dumps({"model": MODEL, "prompt": "[[sim: length=100000]]", "options": {"num_predict": -1}})
    connection.request("POST", "/api/generate", body)
    reply = connection.getresponse()
    reply.readline()
    sim.faults.add(Fault(FaultKind.RESTART, delay_s=20))
    with pytest.raises(http.client.IncompleteRead):
        reply.read()
    reply.close()
    connection.close()

    def listens() -> bool:
        try:
            socket.create_connection(("127.0.0.1", sim.port)).close()
        except ConnectionRefusedError:
            return False
        return True

    eventually(lambda: not listens(), what="the port closed")
    eventually(listens, what="the port open again")
    assert sim.scheduler.loaded() == []


def control(sim: SimulatedOllama, method: str, path: str, body: object = None) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", sim.port, timeout=10)
    try:
        connection.request(method, path, None if body is None else json.dumps(body))
        reply = connection.getresponse()
        return reply.status, json.loads(reply.read())
    finally:
        connection.close()


def test_everything_can_be_asked_for_over_http(sim: SimulatedOllama) -> None:
    status, added = control(sim, "POST", "/_sim/fault", {"kind": "busy", "count": None, "model": MODEL})
    assert status == 200
    generate = {"model": MODEL, "prompt": "x", "stream": False}
    assert control(sim, "POST", "/api/generate", generate)[0] == 503
    assert list(control(sim, "GET", "/_sim/faults")[1]["faults"]) == [str(added["id"])]
    assert control(sim, "DELETE", "/_sim/fault", {"id": added["id"]})[0] == 200
    assert control(sim, "POST", "/api/generate", generate)[0] == 200
    logged = control(sim, "GET", "/_sim/requests")[1]["requests"]
    assert [(entry["status"], entry["prompt"]) for entry in logged] == [(503, "x"), (200, "x")]
    state = control(sim, "GET", "/_sim/state")[1]
    assert (state["simulated"], state["loaded"][0]["model"]) == (True, MODEL)
    assert control(sim, "POST", "/_sim/kill", {"model": MODEL})[1] == {"killed": True}
    assert control(sim, "POST", "/_sim/kill", {"model": "nope"})[1] == {"killed": False}
    assert control(sim, "POST", "/_sim/speed", {"speed": 500})[0] == 200
    assert sim.clock.speed == 500
    control(sim, "POST", "/_sim/fault", {"kind": "hang", "count": None})
    assert control(sim, "DELETE", "/_sim/faults")[0] == 200
    assert not sim.faults.listed()
    assert control(sim, "POST", "/_sim/restart", {})[0] == 200
    assert control(sim, "GET", "/api/ps")[1] == {"models": []}


@pytest.mark.parametrize(
    ("method", "path", "body", "says"),
    [
        ("POST", "/_sim/fault", {"kind": "nope"}, "unknown kind 'nope'"),
        ("POST", "/_sim/fault", {"kind": "busy", "modle": "x"}, "unknown field 'modle'"),
        ("POST", "/_sim/fault", {"kind": "busy", "count": "two"}, "count must not be 'two'"),
        ("POST", "/_sim/speed", {"speed": 0}, "speed must be above 0"),
        ("POST", "/_sim/speed", {}, "speed must be a number"),
        ("GET", "/_sim/nope", None, "no such control"),
    ],
)
def test_a_mistake_in_a_control_request_is_told(
    sim: SimulatedOllama, method: str, path: str, body: object, says: str
) -> None:
    status, answer = control(sim, method, path, body)
    assert status in (400, 404)
    assert says in answer["error"]


def test_stopping_ends_what_waits_at_once(sim: SimulatedOllama) -> None:
    sim.faults.add(Fault(FaultKind.HANG, count=None))
    connection = http.client.HTTPConnection("127.0.0.1", sim.port)
    connection.request("POST", "/api/generate", json.dumps({"model": MODEL, "prompt": "x"}))
    eventually(lambda: sim.requests)
    began_s = time.monotonic()
    sim.stop()
    assert time.monotonic() - began_s < 3
    with pytest.raises(http.client.RemoteDisconnected):
        connection.getresponse()
    connection.close()
    assert sim.requests[0].ended in ("stopped", "hung up", "fault hang")
