"""The workshop of a chaos run: broker, boxes with agents and Ollamas, clients, and a bad network between them."""

import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from chaos.jobs import TOKENS_PER_S
from chaos.netns import Box
from chaos.proxy import FaultProxy, Told
from chaos.weather import Climate
from e2e.site import Ollama
from koubou_simulator.ollama.settings import PRESETS
from koubou_simulator.workshop import Process, StartError, Worker, Workshop
from support.waiting import eventually

MODEL, PRESET = "llama3.2:3b", "fast"
NUM_CTX = 131_072  # room for the large inputs
SLOTS = 2  # of each worker, as by default
BOXED = "boxed"  # the agent with a network namespace of its own
AGENT_GRACE_S = 3.0  # after SIGTERM

# Said in the output: the poison limit and the totals are out of the way, as kills come here by the hundred and
# mean nothing; leases and pauses are shorter, so that ten minutes hold more recoveries.
SETTINGS = (
    "heartbeat_s: 1\n"
    "lease_s: 10\n"
    "retry: {poison_deaths: 100, transient_attempts: 20, total_attempts: 1000, backoff_base_s: 0.2, backoff_cap_s: 2}\n"
    "breaker: {failures: 5, cooldown_s: 5}\n"
    "disk: {reserve_bytes: 1048576, min_free_bytes: 0}\n"
)
_GONE_S = 10.0  # for the last children of what was killed
_TESTS = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class AgentBox:
    """A box: its home, its agent, its Ollama."""

    worker_id: str
    home: Path
    agent: Process
    ollama: Ollama
    ollama_process: Process

    @property
    def spool(self) -> Path:
        """Where its outcomes wait."""
        return self.home / "state" / "agents" / self.worker_id / "spool"


@dataclass(frozen=True, slots=True)
class ClientHome:
    """A person's home and the program that runs there."""

    name: str
    home: Path
    program: Process

    @property
    def journal(self) -> Path:
        """What it was told."""
        return self.home / "journal.jsonl"


class Grounds:
    """A context manager that ends every process, and the proxy; `told` hears of the proxy's faults, on its thread."""

    def __init__(self, home: Path, cli_python: Path, seed: int, climate: Climate, told: Told) -> None:
        self.workshop = Workshop(home, cli_python=str(cli_python))
        self.home = home
        self.seed = seed
        self.boxes: list[AgentBox] = []
        self.clients: list[ClientHome] = []
        self.proxy = FaultProxy(("127.0.0.1", self.workshop.port), seed=seed, climate=climate, told=told)

    @property
    def database(self) -> Path:
        """What the broker keeps."""
        return self.home / "state" / "koubou.db"

    def open(self, *, agents: int, clients: int, window: int, box: Box | None = None) -> None:
        """Start the broker and the Ollamas; join everybody through a door of the proxy each. Agents wait."""
        names = [*(f"box_{number}" for number in range(1, agents + 1 - bool(box))), *([BOXED] if box else [])]
        workers = [
            Worker(name, MODEL, "", location="remote", slots=SLOTS, options={"num_ctx": NUM_CTX}) for name in names
        ]
        self.workshop.configure(workers, broker=SETTINGS)
        self.workshop.start_broker()
        for name in names:
            self.boxes.append(self._box(name, box if name == BOXED else None))
        for number in range(1, clients + 1):
            self.clients.append(self._client(f"client_{number}", window))
        self.proxy.start()

    def start(self) -> None:
        """Start agents and clients."""
        for box in self.boxes:
            box.agent.start()
        for client in self.clients:
            client.program.start()

    def leftovers(self) -> list[str]:
        """Processes of this home that outlived everything; waits for those that are just ending."""
        with suppress(AssertionError):
            eventually(lambda: not self._processes(), _GONE_S)
        return self._processes()

    def _box(self, worker_id: str, box: Box | None) -> AgentBox:
        within = box.command() if box else ()
        speed = TOKENS_PER_S / PRESETS[PRESET].eval_tokens_per_s
        options = ("--model", f"{MODEL}={PRESET}", "--speed", str(speed), "--num-parallel", str(SLOTS))
        url = self.workshop.start_ollama(worker_id, *options, "--seed", str(self.seed), within=within)
        ollama_process = self.workshop.processes[-1]
        home = self.workshop.join_box(worker_id)
        settings = home / "config" / "agent.yaml"
        self._through_a_door(settings, worker_id, box.outside if box else "127.0.0.1")
        settings.write_text(f"{settings.read_text()}ollama_parallel: {SLOTS}\n")
        agent = self.workshop.agent(worker_id, url, home, "--stop-timeout", f"{AGENT_GRACE_S:g}", within=within)
        return AgentBox(worker_id, home, agent, Ollama(url), ollama_process)

    def _client(self, name: str, window: int) -> ClientHome:
        home = self.home / "clients" / name
        home.mkdir(parents=True, mode=0o700)
        invited = self.workshop.ctl("keys", "invite", name, "--role", "client", "--quiet")
        joined = self.workshop.ctl("join", invited.stdout.strip(), home=home)
        if joined.returncode != 0:
            raise StartError(f"{name} could not join: {invited.stderr}{joined.stderr}")
        self._through_a_door(home / "config" / "client.yaml", name, "127.0.0.1")
        options = ("--home", str(home), "--name", name, "--seed", str(self.seed), "--window", str(window))
        program = self.workshop.program(name, "chaos.client", *options)
        program.environment = {**program.environment, "KOUBOU_HOME": str(home), "PYTHONPATH": _python_path()}
        return ClientHome(name, home, program)

    def _through_a_door(self, settings: Path, name: str, host: str) -> None:
        """Let the settings name the proxy's door instead of the broker."""
        door = f"tcp://{host}:{self.proxy.open_door(name, host)}"
        text = settings.read_text()
        assert self.workshop.address in text, text
        settings.write_text(text.replace(self.workshop.address, door))

    def _processes(self) -> list[str]:
        """Processes that work in this home or name it, ours and zombies left out."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                place = str((folder / "cwd").readlink())
            except OSError:
                continue  # it has just ended, or is not ours to see
            if int(folder.name) != os.getpid() and str(self.home) in words + place:
                found.append(f"{folder.name}: {words[:200]}")
        return found

    def __enter__(self) -> "Grounds":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.wake_all()
        self.workshop.stop()
        self.proxy.close()

    def wake_all(self) -> None:
        """Let whatever is stopped go on."""
        for process in self.workshop.processes:
            if process.is_alive():
                os.kill(process.pid, signal.SIGCONT)


def _python_path(before: Sequence[str] = (str(_TESTS),)) -> str:
    return os.pathsep.join([*before, *filter(None, [os.environ.get("PYTHONPATH")])])
