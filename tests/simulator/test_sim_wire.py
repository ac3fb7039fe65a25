"""HTTP as clients really speak it to the simulated Ollama, and the program as people start it."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from koubou_simulator.ollama import SimSettings, SimulatedOllama, model_named, tiny_models
from support.waiting import eventually

MODEL = "qwen2.5-coder:1.5b"


@pytest.fixture
def sim() -> Iterator[SimulatedOllama]:
    with SimulatedOllama(SimSettings(speed=100), [model_named(MODEL, "tiny")]) as made:
        yield made


@pytest.fixture
def connection(sim: SimulatedOllama) -> Iterator[http.client.HTTPConnection]:
    made = http.client.HTTPConnection("127.0.0.1", sim.port, timeout=10)
    yield made
    made.close()


def raw(sim: SimulatedOllama, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", sim.port), timeout=10) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        received = b""
        while more := sock.recv(65536):
            received += more
        return received


def test_one_connection_carries_many_requests(connection: http.client.HTTPConnection, sim: SimulatedOllama) -> None:
    for number in range(3):
        connection.request("POST", "/api/generate", json.dumps({"model": MODEL, "prompt": f"{number}"}))
        sock = connection.sock
        reply = connection.getresponse()
        assert reply.getheader("Connection") is None
        assert json.loads(reply.read().splitlines()[-1])["done"] is True
        connection.request("GET", "/api/ps")
        assert len(json.loads(connection.getresponse().read())["models"]) == 1
        assert connection.sock is sock
    assert [logged.prompt for logged in sim.requests] == ["0", "1", "2"]


def test_a_body_of_16_mib_is_read(connection: http.client.HTTPConnection) -> None:
    connection.timeout = 60  # five million tokens are counted: seconds on a busy machine
    body = json.dumps({"model": MODEL, "prompt": "x" * (16 << 20), "truncate": False, "stream": False})
    connection.request("POST", "/api/generate", body)
    reply = connection.getresponse()
    assert reply.status == 400
    assert json.loads(reply.read())["error"] == "the input length exceeds the context length"


def test_a_request_may_come_in_chunks(connection: http.client.HTTPConnection) -> None:
    body = json.dumps({"model": MODEL, "prompt": "x", "stream": False}).encode()
    parts = (body[start : start + 7] for start in range(0, len(body), 7))
    connection.request("POST", "/api/generate", parts, {"Content-Type": "application/json"}, encode_chunked=True)
    assert json.loads(connection.getresponse().read())["done"] is True


def test_a_client_that_asks_first_is_told_to_go_on(sim: SimulatedOllama) -> None:
    head = b"POST /api/show HTTP/1.1\r\nHost: localhost\r\nContent-Length: 13\r\nExpect: 100-continue\r\n\r\n"
    answer = raw(sim, head + b'{"model":"x"}')
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 ")


@pytest.mark.parametrize(
    "data",
    [b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\nbad header\r\n\r\n", b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n"],
)
def test_what_is_no_request_is_refused(sim: SimulatedOllama, data: bytes) -> None:
    assert raw(sim, data).startswith(b"HTTP/1.1 400 Bad Request\r\n")


def test_a_body_cut_short_starts_nothing(sim: SimulatedOllama) -> None:
    raw(sim, b'POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999\r\n\r\n{"model":')
    assert sim.requests == []


def test_a_short_answer_has_a_length_and_a_long_one_comes_in_chunks(connection: http.client.HTTPConnection) -> None:
    for tokens, has_length in ((10, True), (900, False)):
        body = json.dumps({"model": MODEL, "prompt": f"[[sim: length={tokens}]]", "stream": False})
        connection.request("POST", "/api/generate", body)
        reply = connection.getresponse()
        reply.read()
        assert (reply.getheader("Content-Length") is not None) == has_length
        assert (reply.getheader("Transfer-Encoding") == "chunked") != has_length


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("localhost:1", "", 200),
        ("127.0.0.1", "", 200),
        ("192.168.3.4:11434", "", 200),
        ("box.local", "", 200),
        ("8.8.8.8", "", 403),
        ("evil.example", "", 403),
        ("localhost", "http://localhost:3000", 200),
        ("localhost", "app://x", 200),
        ("localhost", "http://evil.example", 403),
    ],
)
def test_only_local_names_are_served(
    connection: http.client.HTTPConnection, host: str, origin: str, status: int
) -> None:
    connection.request("GET", "/api/version", headers={"Host": host} | ({"Origin": origin} if origin else {}))
    reply = connection.getresponse()
    assert reply.status == status
    assert bool(reply.read()) == (status == 200)


def test_what_is_not_simulated_says_so(connection: http.client.HTTPConnection) -> None:
    connection.request("POST", "/api/pull", "{}")
    reply = connection.getresponse()
    assert reply.status == 501
    assert "[SIMULATED]" in reply.read().decode()


def test_a_hang_up_frees_the_slot_at_once_by_the_wall_clock_too() -> None:
    settings = SimSettings(speed=1)
    with SimulatedOllama(settings, [model_named(MODEL, "fast")]) as sim:
        sock = socket.create_connection(("127.0.0.1", sim.port))
        body = json.dumps({"model": MODEL, "prompt": "[[sim: endless]]"}).encode()
        head = f"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        sock.sendall(head + body)
        sock.recv(100)
        sock.close()
        eventually(lambda: sim.requests[0].ended == "hung up", 5, "the hang-up noticed")
        assert sim.scheduler.loaded()[0].active == 0


@contextmanager
def a_process(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-m", "koubou_simulator.ollama", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        found = re.fullmatch(r"simulated Ollama on (http://127\.0\.0\.1:\d+)\n", process.stdout.readline())
        assert found
        yield process, found[1]
    finally:
        process.kill()
        process.communicate()


def has_begun(url: str) -> bool:
    """Whether a generation loads its model or is past that."""
    with urllib.request.urlopen(f"{url}/_sim/state", timeout=10) as answer:
        state = json.loads(answer.read())
    return bool(state["loads"] or state["loaded"])


@pytest.mark.e2e
def test_the_program_prints_its_address_serves_and_ends_in_the_middle_of_an_answer() -> None:
    models = ("--model", MODEL, "--model", "stop", "--model", "my:7b=cpu")
    with a_process("--preset", "tiny", "--mode", "0.30", *models) as (process, url):
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
        connection.request("GET", "/api/version")
        assert json.loads(connection.getresponse().read()) == {"version": "0.30.0"}
        connection.request("GET", "/api/tags")
        names = {model["name"] for model in json.loads(connection.getresponse().read())["models"]}
        assert names == {MODEL, "stop:latest", "my:7b"}
        connection.request("POST", "/api/generate", json.dumps({"model": "my:7b", "prompt": "x", "stream": False}))
        eventually(lambda: has_begun(url), what="the model loads or answers")
        process.send_signal(signal.SIGTERM)
        with pytest.raises(http.client.RemoteDisconnected):
            connection.getresponse()
        connection.close()
        assert process.wait(5) == 0


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--model", "x=warp"), "unknown preset 'warp'"),
        (("--speed", "0"), "speed must be above 0"),
        (("--mode", "0.1"), "invalid choice"),
    ],
)
def test_a_mistake_on_the_command_line_is_told(arguments: tuple[str, ...], says: str) -> None:
    command = [sys.executable, "-m", "koubou_simulator.ollama", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.e2e
def test_a_taken_port_is_told(sim: SimulatedOllama) -> None:
    command = [sys.executable, "-m", "koubou_simulator.ollama", "--port", str(sim.port)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1 port {sim.port}: {os.strerror(98)}" in done.stderr


def test_the_recorded_models_are_found_by_their_short_names() -> None:
    names = {model.name for model in tiny_models()}
    assert names == {f"{model_named(name).name}" for name in ("stop", "endless:latest", "repeat", "mute")} | {
        f"{name}:latest" for name in ("utf8", "badbytes", "broken", "slow")
    }
