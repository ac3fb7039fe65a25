"""A real broker and a real agent at work under the shim: what they did to their disk, and what they promised when."""

import random
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from koubou_client.where import Where, broker_here
from koubou_common.home import Home
from koubou_common.messages.values import Role
from koubou_common.tokens import encode_token
from koubou_simulator.workshop import free_port
from powercut.activity import AWAY, Activity, invited
from powercut.disk import Disk, Tree, found
from powercut.journal import Call, Failure, Watch
from powercut.notes import Joined, Note, Notebook, Up, of_agent
from powercut.process import START_S, Process, await_broker, broker_arguments
from powercut.work import MODEL

WORKER = "box_001"
BROKER_HOME, AGENT_HOME = "broker", "box"  # below the root of the disk

_IDLE_S = 2.0  # a process that was told to kill itself at its next call, and makes none, stands between two calls

_BROKER_YAML = """\
workers_file: {workers}
heartbeat_s: 0.5
lease_s: 5
disk: {{reserve_bytes: 1048576, min_free_bytes: 0}}
"""
_WORKERS_YAML = """\
workers:
  remote_workers:
    - {{worker_id: {worker}, model: {model}, max_concurrent_tasks: 4, options: {{num_ctx: 262144}}}}
    - {{worker_id: {away}, model: {model}, options: {{num_ctx: 262144}}}}
"""


@dataclass(slots=True)
class Recording:
    """What a run has left."""

    config: Path  # broker.yaml, outside the disk
    disk: Disk  # as it was before the first process
    calls: list[Call]
    notes: list[tuple[int, Note]]
    began_ns: int
    ended_ns: int  # when everything was killed
    killed: Tree  # the disk as it was then: a kill without a loss of power
    faults: list[str] = field(default_factory=list)

    def until(self, at_ns: int) -> list[Note]:
        """What had been promised by then."""
        return [note for when_ns, note in self.notes if when_ns <= at_ns]


class Stage:
    """Broker and agent on a disk that is watched; a context manager that kills what is left."""

    def __init__(self, folder: Path, shim: Path, *, broker_module: str = "koubou_broker") -> None:
        self.folder = folder.resolve()
        self.watch = Watch(shim, self.folder / "disk", self.folder / "journal")
        for one in (self.watch.root, self.watch.journal):
            one.mkdir(mode=0o700)
        self.home = Home(self.watch.root / BROKER_HOME)
        self.box = Home(self.watch.root / AGENT_HOME)
        self.config = write_config(self.folder)
        self.disk = Disk(self.watch.root)
        self.notes = Notebook()
        self.processes: list[Process] = []
        self._broker_module = broker_module
        self._address = f"tcp://127.0.0.1:{free_port()}"
        self._agent_notes = self.folder / "agent.notes"
        self._starts = 0

    def __enter__(self) -> "Stage":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            if not process.has_ended():
                process.kill()

    def start_broker(self, failure: Failure | None = None, armed_by: Path | None = None) -> Process:
        """Start it and wait until it listens."""
        self._starts += 1
        environment = self.watch.environment(failure, armed_by=armed_by, killed_by=self.folder / "kill-broker")
        arguments = broker_arguments(self.home.root, self.config, self._address)
        log = self.folder / f"broker-{self._starts}.log"
        process = Process([sys.executable, "-m", self._broker_module, *arguments], log, environment)
        self.processes.append(process)
        await_broker(process)
        self.notes.add(Up(self.where().broker_key, self.where().pair.public))
        return process

    def start_agent(self, failure: Failure | None = None, armed_by: Path | None = None) -> Process:
        """Start the agent; `join_box` must have come before."""
        environment = self.watch.environment(failure, armed_by=armed_by, killed_by=self.folder / "kill-agent")
        arguments = [sys.executable, "-m", "powercut.agent", str(self.box.root), WORKER, str(self._agent_notes)]
        process = Process(arguments, self.folder / "agent.log", environment)
        self.processes.append(process)
        return process

    def join_box(self) -> None:
        """A box joins by the token that an operator made."""
        token = encode_token(invited(self.where(), WORKER, Role.WORKER, self.notes))
        arguments = [sys.executable, "-m", "koubou_agent", "join", token, "--home", str(self.box.root)]
        process = Process(arguments, self.folder / "join.log", self.watch.environment())
        self.processes.append(process)
        assert process.wait(START_S) == 0, process.log()
        self.notes.add(Joined(WORKER))

    def where(self) -> Where:
        """The broker, as its operator reaches it."""
        return broker_here(self.home)

    def kill(self, process: Process, name: str) -> None:
        """kill -9 between two calls of the process: else one could be done and not written down."""
        order = self.folder / f"kill-{name}"
        order.touch()
        try:
            process.wait(_IDLE_S)
        except subprocess.TimeoutExpired:
            process.kill()
        order.unlink()

    def recorded(self, began_ns: int, faults: Sequence[str] = ()) -> Recording:
        """What there is when everything has been killed."""
        notes = self.notes.notes
        if self._agent_notes.exists():
            with self._agent_notes.open() as lines:
                notes = notes + of_agent(lines)
        return Recording(
            self.config,
            self.disk,
            self.watch.calls(),
            sorted(notes, key=lambda one: one[0]),
            began_ns,
            time.monotonic_ns(),
            found(self.watch.root),
            list(faults),
        )


def record(folder: Path, shim: Path, seed: int, span_s: float, *, broker_module: str = "koubou_broker") -> Recording:
    """A home that begins with nothing, `span_s` of work with a broker (and sometimes an agent) that ends midway."""
    dice = random.Random(seed)
    with Stage(folder, shim, broker_module=broker_module) as stage:
        began_ns = time.monotonic_ns()
        broker = stage.start_broker()
        stage.join_box()
        agent = stage.start_agent()
        with Activity(stage.where(), stage.notes, seed) as activity:
            time.sleep(span_s * dice.uniform(0.3, 0.7))
            if dice.random() < 0.5:
                stage.kill(broker, "broker")
            else:
                broker.stop()
            if dice.random() < 0.3:
                stage.kill(agent, "agent")
                agent = stage.start_agent()
            broker = stage.start_broker()
            time.sleep(span_s * dice.uniform(0.3, 0.7))
            stage.kill(broker, "broker")
            stage.kill(agent, "agent")
        return stage.recorded(began_ns, activity.faults)


def write_config(folder: Path) -> Path:
    """Settings, written by people before anything runs: not on the disk that fails."""
    workers = folder / "workers.yaml"
    workers.write_text(_WORKERS_YAML.format(worker=WORKER, away=AWAY, model=MODEL))
    config = folder / "broker.yaml"
    config.write_text(_BROKER_YAML.format(workers=workers))
    return config
