"""A workshop for tests: broker, agents and simulated Ollamas as processes, koubou-ctl beside them."""

import json
import subprocess
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from koubou_simulator.workshop import Process, Worker, Workshop
from support.ctl import Ctl, Ran
from support.waiting import eventually

MODEL = "qwen2.5-coder:1.5b"

READY_S = 40.0  # for an agent on a busy machine
ASK_S = 10.0
QUICK = "heartbeat_s: 0.5\nlease_s: 2\nretry: {backoff_base_s: 0.1, backoff_cap_s: 0.2}\n"
ROOMY = "disk: {reserve_bytes: 1048576, min_free_bytes: 0}\n"  # a test machine's disk may be nearly full


@dataclass(frozen=True, slots=True)
class Ollama:
    """A simulated Ollama and its control path."""

    url: str

    def fault(self, kind: str, **more: object) -> None:
        """Let something go wrong for the next request (simulator: faults.py)."""
        self._control("POST", "/_sim/fault", {"kind": kind, **more})

    def no_faults(self) -> None:
        self._control("DELETE", "/_sim/faults", {})

    def speed(self, speed: float) -> None:
        """Simulated seconds a second."""
        self._control("POST", "/_sim/speed", {"speed": speed})

    def restart(self) -> None:
        """As if the server were started anew: every connection ends."""
        self._control("POST", "/_sim/restart", {})

    def requests(self) -> list[dict[str, Any]]:
        """Every request for text that arrived, loads of the model left out."""
        asked: list[dict[str, Any]] = self._control("GET", "/_sim/requests", None)["requests"]
        return [request for request in asked if request["prompt"]]

    def _control(self, method: str, path: str, body: dict[str, object] | None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, method=method)
        with urllib.request.urlopen(request, timeout=ASK_S) as answer:
            return json.load(answer)


class Site:
    """One workshop; a context manager that ends every process."""

    def __init__(self, home: Path, cli_python: Path) -> None:
        self.workshop = Workshop(home, cli_python=str(cli_python))
        self.home = home
        self.ctl = Ctl(home)

    def ollama(self, name: str, *arguments: str, model: str = MODEL, preset: str = "fast") -> Ollama:
        """Start a simulated Ollama with one model."""
        return Ollama(self.workshop.start_ollama(name, "--model", f"{model}={preset}", *arguments))

    def open(self, workers: Sequence[Worker], broker: str = QUICK + ROOMY) -> None:
        """Write the settings and start the broker."""
        self.workshop.configure(workers, broker=broker)
        self.workshop.start_broker()

    def start_agent(self, worker_id: str, ollama: Ollama, home: Path | None = None, *arguments: str) -> Process:
        """Start an agent and wait until it would take work."""
        agent = self.workshop.agent(worker_id, ollama.url, home, "--stop-timeout", "0.5", *arguments)
        agent.start()
        self.await_ready(worker_id, agent)
        return agent

    def await_ready(self, worker_id: str, agent: Process) -> None:
        """Until the broker would give it a task."""
        self.workshop.until(
            lambda: self.worker(worker_id)["state"] == "ready" and not self.issue(worker_id), agent, READY_S
        )

    def worker(self, worker_id: str) -> dict[str, Any]:
        """A worker as `workers list --json` shows it."""
        listed: list[dict[str, Any]] = self.ctl("workers", "list", "--json").data
        return next((worker for worker in listed if worker["id"] == worker_id), {"state": "unknown"})

    def issue(self, worker_id: str) -> str | None:
        """What keeps it from work, in its agent's words."""
        issue: str | None = self.worker(worker_id).get("issue")
        return issue

    def story(self, task_id: int) -> dict[str, Any]:
        """A task, its attempts and its events, as `show --json` tells them."""
        shown: dict[str, Any] = self.ctl("show", str(task_id), "--json").data
        return shown

    def task(self, task_id: int) -> dict[str, Any]:
        """A task as `show --json` shows it."""
        shown: dict[str, Any] = self.story(task_id)["task"]
        return shown

    def submit(self, *arguments: str) -> int:
        """Submit without waiting; its id."""
        ran = self.ctl("submit", *arguments)
        assert ran.code == 0, ran.err
        return int(ran.out)

    def await_state(self, task_id: int, state: str, timeout_s: float = 30.0) -> dict[str, Any]:
        """Until the task is in that state."""

        def reached() -> dict[str, Any] | None:
            task = self.task(task_id)
            return task if task["state"] == state else None

        found = eventually(reached, timeout_s, f"task {task_id} {state}")
        assert found is not None
        return found

    def run_ctl(self, *arguments: str, cwd: Path, timeout_s: float = 60.0) -> "subprocess.CompletedProcess[str]":
        """koubou-ctl as a process of its own."""
        return self.workshop.ctl(*arguments, cwd=cwd, timeout_s=timeout_s)

    def __enter__(self) -> "Site":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.workshop.stop()


def slug(ran: Ran) -> str:
    """The error's name as people see it."""
    return ran.err.partition("error[")[2].partition("]")[0]
