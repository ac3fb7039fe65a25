"""koubou-ctl up: one machine in one command, from its first workers.yaml to a clean end."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from koubou_client.ctl.first_worker import write_first_workers
from koubou_client.where import broker_here
from koubou_common.errors import ConfigError, KoubouError
from koubou_common.home import Home
from koubou_common.settings import WorkersFile, load
from support.broker_play import BROKER
from support.cli import children_of, is_alive
from support.ctl import Ctl
from support.waiting import eventually

START_S = 60.0
TAGS = [
    {"name": "deepseek-v3.1:671b-cloud", "remote_host": "https://ollama.com:443", "details": {"family": "deepseek2"}},
    {"name": "far:latest", "remote_host": "https://ollama.com:443", "details": {}},
    {"name": "nomic-embed-text:latest", "details": {"family": "nomic-bert"}},
    {"name": "tiny:latest", "details": {"family": "llama"}},
    {"name": "other:7b", "details": {"family": "llama"}},
]


@contextmanager
def an_ollama(body: bytes, status: int = 200) -> Iterator[str]:
    """Something that answers every GET so."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Location", "http://192.0.2.1/")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is inherited
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def tags(*entries: object) -> bytes:
    return json.dumps({"models": entries}).encode()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """With a free port and nothing else."""
    home = Home(tmp_path / "home")
    home.create()
    home.config_file("broker").write_text(BROKER)
    return home


@dataclass(slots=True)
class Up:
    """`koubou-ctl up` as people start it, and what it printed."""

    process: "subprocess.Popen[str]"
    out: Path
    err: Path

    def child_running(self, module: str) -> int:
        """The pid of its child of that module; 0 while there is none."""
        for pid in children_of(self.process.pid):
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if module.encode() in arguments:
                return pid
        return 0

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)


@contextmanager
def started(home: Home, folder: Path, *arguments: str) -> Iterator[Up]:
    out, err = folder / "up.out", folder / "up.err"
    with out.open("w") as out_file, err.open("w") as err_file:
        process = subprocess.Popen(
            [sys.executable, "-m", "koubou_client.ctl", "--home", str(home.root), "up", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=out_file,
            stderr=err_file,
            text=True,
            env={**os.environ, "KOUBOU_CLI_PYTHON": "/nowhere/python"},
        )
    try:
        yield Up(process, out, err)
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(60)


def refused(home: Home, *arguments: str) -> str:
    """What `up` says when it does not start."""
    ran = Ctl(home.root)("up", *arguments, "--json")
    assert ran.code == 8, ran
    return f"{ran.error['message']}\n{ran.error['hint']}"


def test_the_first_workers_file_has_a_model_that_writes_text_here(home: Home) -> None:
    path = home.config_file("workers")
    with an_ollama(tags(*TAGS)) as url:
        assert write_first_workers(path, url) == "tiny:latest"
    made = load(path, WorkersFile)
    [worker] = made.all_workers()
    assert (worker.worker_id, worker.model, worker.models) == ("local_001", "tiny:latest", ("*",))
    assert worker.endpoint_url == url
    assert len(made.routing_policy.rules) == 3
    assert "# The model that runs tasks which name none." in path.read_text()


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (tags(), 200, "has no model"),
        (tags(TAGS[0], TAGS[1], TAGS[2]), 200, "has no model"),
        (b"<html>", 200, "no Ollama answers"),
        (b'{"models": {}}', 200, "is not an Ollama"),
        (b"[]", 200, "is not an Ollama"),
        (tags(*TAGS), 302, "is not an Ollama (HTTP status 302)"),
        (tags(17, {"name": 5}, {"name": "../x"}), 200, "has no model"),
    ],
)
def test_without_a_usable_ollama_nothing_is_written_and_the_reason_told(
    home: Home, body: bytes, status: int, said: str
) -> None:
    with an_ollama(body, status) as url, pytest.raises(ConfigError) as error:
        write_first_workers(home.config_file("workers"), url)
    assert said in error.value.message
    assert "by hand" in error.value.hint
    assert not home.config_file("workers").exists()


def test_an_ollama_that_is_down_is_explained(home: Home) -> None:
    with an_ollama(b"") as url:
        pass
    text = refused(home, "--ollama-url", url)
    assert "no Ollama answers" in text
    assert "ollama serve" in text
    assert "leaves this host" in refused(home, "--ollama-url", "http://192.168.1.5:11434")


def test_two_workers_on_one_ollama_are_refused(home: Home) -> None:
    home.config_file("workers").write_text(
        "workers:\n  local_workers:\n"
        "    - {worker_id: a, model: tiny}\n"
        "    - {worker_id: b, model: tiny, server_host: 'http://127.0.0.1:11434'}\n"
    )
    text = refused(home)
    assert "a and b are on one Ollama" in text
    assert "max_concurrent_tasks" in text


def test_settings_at_fault_stop_it_before_anything_is_started(home: Home) -> None:
    home.config_file("workers").write_text("workers: {local_workers: [{worker_id: a, modl: tiny}]}\n")
    assert "did you mean 'model'?" in refused(home)
    home.config_file("workers").write_text("workers: {remote_workers: [{worker_id: a, model: tiny, agent: here}]}\n")
    assert "allow_remote_ollama" in refused(home)
    assert not home.key_file("broker").exists()


@pytest.mark.e2e
def test_one_command_from_an_empty_home_to_a_clean_end(home: Home, tmp_path: Path) -> None:
    with an_ollama(tags(*TAGS)) as url, started(home, tmp_path, "--ollama-url", url, "--stop-timeout", "2s") as up:
        eventually(lambda: "Ctrl-C stops everything" in up.out.read_text(), START_S, "it says where everything is")
        told = up.out.read_text()
        assert told.startswith("Broker  tcp://127.0.0.1:")
        assert f"Agent   local_001   tiny:latest at {url}" in told
        ctl = Ctl(home.root)
        # It invited itself with the operator key.
        eventually(lambda: ctl("workers", "show", "local_001", "--json").data["connected"], START_S, "it is connected")
        children = children_of(up.process.pid)
        assert len(children) == 2
        broker = up.child_running("koubou_broker")
        os.kill(broker, signal.SIGKILL)
        eventually(lambda: up.child_running("koubou_broker") not in (0, broker), START_S, "the broker is back")
        eventually(lambda: "broker died (signal 9)" in up.err.read_text())
        eventually(lambda: ctl("status").code == 0, START_S, "it answers again")
        children = children_of(up.process.pid)
        assert up.end(signal.SIGINT) == 0
        assert not any(is_alive(pid) for pid in children)
        assert "all tasks are kept" in up.err.read_text()
    for name in ("broker.log", "local_001.log"):
        assert (home.log / name).stat().st_mode & 0o777 == 0o600
        assert (home.log / name).read_text()


@pytest.mark.e2e
def test_a_second_one_on_the_same_home_says_that_a_broker_runs_already(home: Home, tmp_path: Path) -> None:
    home.config_file("workers").write_text("workers: {remote_workers: [{worker_id: far, model: tiny}]}\n")
    with started(home, tmp_path) as up:
        eventually(lambda: "Ctrl-C stops everything" in up.out.read_text(), START_S, "the first one runs")
        assert "workers invite far" in up.out.read_text()
        assert "already runs" in refused(home)
        assert up.process.poll() is None
        assert Ctl(home.root)("status").code == 0  # the first one is untouched
        assert up.end(signal.SIGTERM) == 0
        with pytest.raises(KoubouError, match="does not run"):
            broker_here(home)
