"""A whole workshop of real processes on the loopback, for demo, tests and bench: broker, agents, Ollamas."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

START_TIMEOUT_S = 30.0  # of any one process, on a busy machine
STOP_TIMEOUT_S = 15.0  # then it is killed, and the log says so
_POLL_S = 0.02


class StartError(RuntimeError):
    """A process did not come up; the text ends with its log's last lines."""


@dataclass(slots=True)
class Process:
    """A child of ours and its log file."""

    name: str
    arguments: Sequence[str]
    log_file: Path
    environment: Mapping[str, str]
    popen: "subprocess.Popen[bytes] | None" = None
    starts: int = 0

    def start(self) -> None:
        """Start it, appending to its log."""
        assert self.popen is None or self.popen.poll() is not None, f"{self.name} runs already"
        with self.log_file.open("ab") as log:
            self.popen = subprocess.Popen(
                self.arguments,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(self.environment),
                start_new_session=True,
            )
        self.starts += 1

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self.popen is not None
        return self.popen.pid

    def is_alive(self) -> bool:
        """Whether it runs."""
        return self.popen is not None and self.popen.poll() is None

    @property
    def ended_well(self) -> bool:
        """Whether it was started and has ended with code 0."""
        return self.popen is not None and self.popen.poll() == 0

    def kill(self) -> None:
        """End it as a power cut would."""
        if self.popen is not None:
            self.popen.kill()
            self.popen.wait()

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Ask it to end; returns its exit code (negative: it had to be killed)."""
        self.ask_to_stop()
        return self.finish(timeout_s)

    def ask_to_stop(self) -> None:
        """Ask it to end; asked again it ends at once, and less well."""
        if self.is_alive():
            assert self.popen is not None
            self.popen.send_signal(signal.SIGTERM)

    def finish(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Wait for the end that it was asked for; returns its exit code (negative: it had to be killed)."""
        if self.popen is None:
            return 0
        try:
            return self.popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            return -signal.SIGKILL

    def log(self) -> str:
        """All it has said, over all its starts."""
        return self.log_file.read_text(encoding="utf-8", errors="replace") if self.log_file.exists() else ""


@dataclass(slots=True)
class Worker:
    """A worker of workers.yaml with its simulated (or real) Ollama."""

    worker_id: str
    model: str
    ollama_url: str
    location: str = "local"
    performance_factor: float = 1.0
    slots: int = 1
    options: Mapping[str, object] = field(default_factory=dict)
    models: Sequence[str] = ()
    more: Mapping[str, object] = field(default_factory=dict)  # further settings of workers.yaml


class Workshop:
    """Broker, agents and Ollamas in one temporary home; a context manager that ends every process it started."""

    def __init__(self, home: Path, *, cli_python: str | None = None, python: str = sys.executable) -> None:
        self.home = home
        self.python = python
        self.port = free_port()
        self.processes: list[Process] = []
        self._environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("KOUBOU_")},
            "KOUBOU_HOME": str(home),
            "PYTHONUNBUFFERED": "1",
        }
        if cli_python:
            self._environment["KOUBOU_CLI_PYTHON"] = cli_python
        self.broker = self.program("broker", "koubou_broker", "run", "--home", str(home))
        for folder in ("config", "log"):
            (home / folder).mkdir(parents=True, exist_ok=True, mode=0o700)
        home.chmod(0o700)

    @property
    def address(self) -> str:
        """Where the broker listens."""
        return f"tcp://127.0.0.1:{self.port}"

    def configure(self, workers: Sequence[Worker], *, rules: object = None, broker: str = "") -> None:
        """Write workers.yaml and broker.yaml (`broker`: more lines of it)."""
        document = {
            "workers": {
                "local_workers": [_entry(worker) for worker in workers if worker.location == "local"],
                "remote_workers": [_entry(worker) for worker in workers if worker.location == "remote"],
            },
            "manager": {"max_workers": max(5, len(workers))},
        }
        if rules is not None:
            document["routing_policy"] = {"strategy": "priority_based", "rules": rules}
        # JSON is YAML, and needs no library here.
        (self.home / "config" / "workers.yaml").write_text(json.dumps(document, indent=2, ensure_ascii=False))
        (self.home / "config" / "broker.yaml").write_text(f'bind: "{self.address}"\n{broker}')

    def start_broker(self) -> None:
        """Start the broker and wait until it listens."""
        self.broker.start()
        self.until(self._broker_listens, self.broker)

    def start_ollama(self, name: str, *arguments: str, within: Sequence[str] = ()) -> str:
        """Start a simulated Ollama; returns its URL."""
        process = self.program(f"ollama-{name}", "koubou_simulator.ollama", "--port", "0", *arguments, within=within)
        process.start()
        marker = "http://127.0.0.1:"
        self.until(lambda: marker in process.log(), process)
        return marker + process.log().split(marker)[1].split()[0]

    def agent(
        self,
        worker_id: str,
        ollama_url: str,
        home: Path | None = None,
        *arguments: str,
        within: Sequence[str] = (),
    ) -> Process:
        """An agent of this home (or of another: a box of its own); start it with `.start()`."""
        where = str(home or self.home)
        process = self.program(
            worker_id,
            "koubou_agent",
            "run",
            "--worker-id",
            worker_id,
            "--home",
            where,
            "--ollama-url",
            ollama_url,
            *arguments,
            within=within,
        )
        process.environment = {**process.environment, "KOUBOU_HOME": where}
        return process

    def ctl(
        self, *arguments: str, timeout_s: float = 60.0, cwd: Path | None = None, home: Path | None = None
    ) -> "subprocess.CompletedProcess[str]":
        """Run koubou-ctl to its end."""
        return subprocess.run(
            [self.python, "-m", "koubou_client.ctl", *arguments],
            env={**self._environment, "KOUBOU_HOME": str(home or self.home)},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def join_box(self, worker_id: str) -> Path:
        """Invite a worker and let a box of its own join with the token; returns the box's home."""
        box = self.home / "boxes" / worker_id
        box.mkdir(parents=True, exist_ok=True, mode=0o700)
        invited = self.ctl("workers", "invite", worker_id, "--quiet")
        if invited.returncode != 0:
            raise StartError(f"{worker_id} could not be invited: {invited.stderr.strip()}")
        joined = subprocess.run(
            [self.python, "-m", "koubou_agent", "join", "-", "--home", str(box)],
            env={**self._environment, "KOUBOU_HOME": str(box)},
            input=invited.stdout,
            capture_output=True,
            text=True,
            timeout=START_TIMEOUT_S,
            check=False,
        )
        if joined.returncode != 0:
            raise StartError(f"{worker_id} could not join: {joined.stderr.strip()}")
        return box

    def program(self, name: str, module: str, *arguments: str, within: Sequence[str] = ()) -> Process:
        """Any module as a process of this workshop, not started yet; `within`: a command that runs it elsewhere."""
        command = [*within, self.python, "-m", module, *arguments]
        process = Process(name, command, self.home / "log" / f"{name}.log", self._environment)
        self.processes.append(process)
        return process

    def until(
        self, holds: Callable[[], object], process: Process | None = None, timeout_s: float = START_TIMEOUT_S
    ) -> None:
        """Wait until `holds`; StartError with the log's end when it does not, or when `process` ends before."""
        deadline = time.monotonic() + timeout_s
        while not holds():
            ended = process is not None and not process.is_alive()
            if ended or time.monotonic() > deadline:
                what = process.name if process else "workshop"
                why = "ended" if ended else f"was not ready within {timeout_s:.0f} s"
                tail = "\n".join(process.log().splitlines()[-15:]) if process else ""
                raise StartError(f"{what} {why}\n{tail}")
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """End everything: agents first, so that they can hand back, then the rest."""
        alive = [process for process in self.processes if process.is_alive()]
        agents = [one for one in alive if one is not self.broker and not one.name.startswith("ollama-")]
        rest = [one for one in alive if one not in agents]
        for process in agents:
            process.ask_to_stop()
        for process in agents:
            process.stop()  # asked twice, it waits for no task: nobody wants one any more
        for process in rest:
            process.ask_to_stop()
        for process in rest:
            process.finish()

    def __enter__(self) -> "Workshop":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _broker_listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1.0).close()
        except OSError:
            return False
        return (self.home / "state" / "broker.address").exists()


def free_port() -> int:
    """A loopback port that nobody has at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _entry(worker: Worker) -> dict[str, object]:
    entry: dict[str, object] = {
        "worker_id": worker.worker_id,
        "worker_type": worker.location,
        "model": worker.model,
        "performance_factor": worker.performance_factor,
        "max_concurrent_tasks": worker.slots,
    }
    if worker.models:
        entry["models"] = list(worker.models)
    if worker.options:
        entry["options"] = dict(worker.options)
    if worker.location == "local":
        entry["server_host"] = worker.ollama_url
    return {**entry, **worker.more}
