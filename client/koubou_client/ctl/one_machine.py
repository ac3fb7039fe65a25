"""The workshop of one machine: what `up` starts, in which order, and what it tells."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from urllib.parse import urlsplit

from koubou_client.client import Client
from koubou_client.ctl.output import OK, Output
from koubou_client.ctl.supervisor import Child, Supervisor
from koubou_client.ctl.views import worker_state
from koubou_client.where import broker_here
from koubou_common.addresses import AddressError, check_ollama_url, is_loopback
from koubou_common.errors import Code, ConfigError, KoubouError
from koubou_common.home import Home
from koubou_common.keys import fingerprint
from koubou_common.messages import Status
from koubou_common.worker_settings import WorkerSettings

BROKER_START_S = 60.0  # a migration of a large database included
AGENTS_START_S = 20.0  # to be connected, with their gemini-repo-cli loaded; it goes on after that as well
BROKER_STOP_S = 15.0  # one commit and its threads' ends
CHECK_S = 30.0

_POLL_S = 0.1
_KNOCK_S = 2.0
_NEEDED = ("sqlalchemy", "alembic", "pydantic", "requests")
# An agent that was removed, has no right key, or wrong settings, would end so again and again.
_AGENT_FINAL_CODES = (0, 4, 8)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be started."""

    home: Home
    workers: tuple[WorkerSettings, ...]  # each gets an agent here
    elsewhere: tuple[WorkerSettings, ...]  # these join from their own boxes
    written: Path | None  # the workers.yaml that was made on the way


def plan(output: Output, ollama_url: str) -> Plan:
    """Read what is configured, writing a first workers.yaml where there is none; ConfigError says what is wrong."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"broker and agent are not installed here: {', '.join(missing)} is missing",
            "pip install 'koubou-system[broker,agent]'",
        )
    from koubou_client.ctl.first_worker import write_first_workers  # noqa: PLC0415 - pydantic, known to be there now
    from koubou_common.settings import BrokerSettings, WorkersFile, load  # noqa: PLC0415 - the same

    home = Home.from_env(os.environ, output.home)
    home.create()
    broker = load(home.config_file("broker"), BrokerSettings, missing_ok=True)
    workers_file = home.resolve(broker.workers_file)
    written = None
    if not workers_file.exists():
        model = write_first_workers(workers_file, _local_url(ollama_url))
        written = workers_file
        output.note(f"wrote {workers_file}: one worker, whose model is {model}")
    workers = load(workers_file, WorkersFile).all_workers()
    here = tuple(worker for worker in workers if worker.location == "local" or worker.agent == "here")
    _check_ollamas(here, workers_file)
    _check_broker(home)
    return Plan(home, here, tuple(worker for worker in workers if worker not in here), written)


class OneMachine:
    """Starts the plan's processes and keeps them running until a signal comes."""

    def __init__(self, output: Output, made: Plan, stop_s: float) -> None:
        self._output = output
        self._plan = made
        self._stop_s = stop_s
        self._supervisor = Supervisor(output.note)
        self._signals = 0
        home = made.home
        self._broker = Child("broker", _program("koubou_broker", home), home.log / "broker.log", stop_s=BROKER_STOP_S)
        self._agents = [
            Child(
                worker.worker_id,
                [
                    *_program("koubou_agent", home),
                    "--worker-id",
                    worker.worker_id,
                    "--stop-timeout",
                    str(stop_s),
                ],
                home.log / f"{worker.worker_id}.log",
                stop_s=stop_s,
                final_codes=_AGENT_FINAL_CODES,
            )
            for worker in made.workers
        ]

    def run(self) -> int:
        """Until SIGINT, SIGTERM or the terminal's end; everything started is ended again on every way out."""
        numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
        before = [(number, signal.signal(number, self._on_signal)) for number in numbers]
        try:
            self._supervisor.start(self._broker)
            self._await_broker()
            for agent in [] if self._signals else self._agents:
                self._supervisor.start(agent)
            if not self._signals:
                self._tell()
                self._await_agents()
            while not self._signals:
                self._supervisor.tend()
                time.sleep(_POLL_S)
        finally:
            begun_with = self._signals
            if any(child.is_running for child in self._supervisor.children):
                self._output.note(f"stopping; running tasks get up to {self._stop_s:.0f} s (Ctrl-C again: at once)")
            # The broker last: it takes in what the agents finish or hand back.
            self._supervisor.stop([self._agents, [self._broker]], lambda: self._signals > max(1, begun_with))
            for number, handler in before:
                signal.signal(number, handler)
        self._output.note("stopped; all tasks are kept")
        return OK

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._signals += 1

    def _await_broker(self) -> None:
        """Until our broker answers; KoubouError with its last words if it ends instead."""
        deadline_s = time.monotonic() + BROKER_START_S
        reason = KoubouError(Code.BROKER_UNREACHABLE, "the broker did not answer yet")
        while not self._signals:
            if not self._broker.is_running:
                raise KoubouError(
                    Code.BAD_CONFIGURATION,
                    f"the broker did not start:\n{self._broker.last_words()}",
                    f"its log: {self._broker.log_file}",
                )
            if time.monotonic() > deadline_s:
                raise KoubouError(
                    Code.BROKER_UNREACHABLE,
                    f"the broker was not ready within {BROKER_START_S:.0f} s: {reason.message}",
                    f"its log: {self._broker.log_file}",
                )
            try:
                self._ask()
                # The answer may be that of another broker of this home; then ours is about to give up.
                if _broker_pid(self._plan.home) == self._broker.pid:
                    return
            except KoubouError as error:
                reason = error
            time.sleep(_POLL_S)

    def _ask(self) -> Status:
        with Client(where=broker_here(self._plan.home), connect_timeout_s=_KNOCK_S) as client:
            return client.status()

    def _tell(self) -> None:
        home, output = self._plan.home, self._output
        where = broker_here(home)
        if output.as_json:
            output.data(
                {
                    "broker": {
                        "addresses": list(where.addresses),
                        "fingerprint": fingerprint(where.broker_key),
                        "log": str(self._broker.log_file),
                    },
                    "home": str(home.root),
                    "agents": [
                        {"worker": worker.worker_id, "ollama": worker.endpoint_url, "log": str(agent.log_file)}
                        for worker, agent in zip(self._plan.workers, self._agents, strict=True)
                    ],
                    "elsewhere": [worker.worker_id for worker in self._plan.elsewhere],
                    "workers_file_written": str(self._plan.written) if self._plan.written else None,
                }
            )
            return
        lines = [
            ("Broker", f"{' '.join(where.addresses)}   key {fingerprint(where.broker_key)}"),
            ("Home", str(home.root)),
            ("Logs", str(home.log)),
        ]
        lines += [("Agent", f"{one.worker_id}   {one.model} at {one.endpoint_url}") for one in self._plan.workers]
        lines += [
            ("Away", f"{one.worker_id}   joins from its box: koubou-ctl workers invite {one.worker_id}")
            for one in self._plan.elsewhere
        ]
        if not self._plan.workers:
            lines.append(("Agent", "none here: workers.yaml lists no local_workers"))
        for name, value in lines:
            output.say(f"{name:<8}{value}")
        output.say('\nNext    koubou-ctl submit "Say hello" --wait\n        koubou-ctl status')
        output.say("Ctrl-C stops everything; tasks are kept.\n")

    def _await_agents(self) -> None:
        """Say of each agent when it is ready, or what keeps it from work."""
        waited = {worker.worker_id for worker in self._plan.workers}
        deadline_s = time.monotonic() + AGENTS_START_S
        told: dict[str, str] = {}
        while waited and not self._signals and time.monotonic() < deadline_s:
            self._supervisor.tend()
            time.sleep(5 * _POLL_S)
            if not self._broker.is_running:  # asking would hold up its restart
                continue
            try:
                workers = self._ask().workers
            except KoubouError:
                continue
            for worker in workers:
                if worker.worker_id not in waited or not worker.connected:
                    continue
                told[worker.worker_id] = worker.issue
                if not worker.issue:
                    waited.discard(worker.worker_id)
                    self._output.note(f"{worker.worker_id} is {worker_state(worker)}")
        for worker_id in sorted(waited) if not self._signals else ():
            why = told.get(worker_id) or "is not connected yet"
            self._output.note(f"{worker_id}: {why}\n  look: koubou-agent doctor --worker-id {worker_id}")


def _program(module: str, home: Home) -> list[str]:
    return [sys.executable, "-m", module, "run", "--home", str(home.root)]


def _broker_pid(home: Home) -> int:
    """Who holds the lock of this home's broker; 0 where nobody has yet."""
    try:
        return int((home.state / "broker.lock").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0


def _local_url(url: str) -> str:
    try:
        return check_ollama_url(url, loopback_only=True)
    except AddressError as error:
        raise ConfigError(f"--ollama-url {url!r} {error.message}", error.hint) from error


def _check_ollamas(workers: Sequence[WorkerSettings], workers_file: Path) -> None:
    """Two workers on one Ollama would take its memory from each other, switching models back and forth."""
    seen: dict[tuple[str, int | None], str] = {}
    for worker in workers:
        parts = urlsplit(worker.endpoint_url)
        host = parts.hostname or ""
        place = ("localhost" if is_loopback(host) else host, parts.port)
        if place in seen:
            raise ConfigError(
                f"{workers_file}: {seen[place]} and {worker.worker_id} are on one Ollama ({worker.endpoint_url})",
                f"keep {seen[place]} and raise its max_concurrent_tasks; its `models` may be several",
            )
        seen[place] = worker.worker_id


def _check_broker(home: Home) -> None:
    """Let the broker itself read its settings, before anything is started."""
    ran = subprocess.run(
        [sys.executable, "-m", "koubou_broker", "check-config", "--home", str(home.root)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=CHECK_S,
        check=False,
    )
    if ran.returncode != 0:
        told, _, hint = ran.stderr.strip().removeprefix("error: ").partition("\nhint: ")
        raise ConfigError(told or "the broker cannot read its settings", hint)
