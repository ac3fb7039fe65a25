"""What an agent starts with: agent.yaml, the files of its home, and the command line, made into one record."""

from dataclasses import dataclass
from pathlib import Path

from koubou_common.addresses import DEFAULT_OLLAMA_URL, AddressError, check_ollama_url
from koubou_common.did_you_mean import did_you_mean
from koubou_common.errors import ConfigError
from koubou_common.home import Home
from koubou_common.keys import read_public
from koubou_common.settings import AgentSettings, BrokerSettings, WorkersFile, load
from koubou_common.worker_settings import WorkerSettings

SOFTWARE_NAME = "koubou-agent"
ADDRESS_FILE = "broker.address"  # in state/: written by a broker of this home, one address a line

_JOIN_HINT = (
    "start `koubou-broker` on this host first; on another box run the line that"
    " `koubou-ctl workers invite ID` prints: `koubou-agent join kbj1_...`"
)


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """Everything the agent's parts need, paths whole."""

    worker_id: str
    addresses: tuple[str, ...]
    server_key: str
    key_file: Path
    ollama_url: str
    work_dir: Path
    spool_dir: Path
    cache_dir: Path
    state_dir: Path
    home: Home
    settings: AgentSettings

    @property
    def slots_ceiling(self) -> int:
        """What this box allows at a time, whatever workers.yaml says."""
        parallel = self.settings.ollama_parallel
        return min(parallel, self.settings.slots_ceiling or parallel)


def config_file(home: Home, worker_id: str | None, given: Path | None) -> Path | None:
    """The agent.yaml in force: the one given, that of this worker, or the home's; None where there is none."""
    if given is not None:
        return given
    candidates = [home.config_file(f"agent-{worker_id}")] if worker_id else []
    return next((path for path in (*candidates, home.config_file("agent")) if path.exists()), None)


def agent_config(
    home: Home, *, worker_id: str | None = None, given: Path | None = None, ollama_url: str | None = None
) -> AgentConfig:
    """Put it together; ConfigError says what is missing and how to get it."""
    file = config_file(home, worker_id, given)
    settings = load(file, AgentSettings) if file is not None else AgentSettings()
    entry = _workers_entry(home, worker_id or settings.worker_id)
    name = worker_id or settings.worker_id or (entry.worker_id if entry else None)
    if name is None:
        raise ConfigError(
            "which worker this agent is was not said",
            "give --worker-id ID, or worker_id: in agent.yaml; " + _JOIN_HINT,
        )
    state = home.agent_state(name)
    own_key_is_meant = settings.key_file is not None and settings.worker_id in (None, name)
    return AgentConfig(
        worker_id=name,
        addresses=_addresses(home, settings),
        server_key=settings.broker_public_key or _server_key(home),
        key_file=home.resolve(str(settings.key_file)) if own_key_is_meant else key_file(home, name),
        ollama_url=_ollama_url(home, settings, entry, ollama_url),
        work_dir=home.resolve(str(settings.work_dir or state / "work")),
        spool_dir=home.resolve(str(settings.spool_dir or state / "spool")),
        cache_dir=home.resolve(str(settings.cache_dir or state / "cache")),
        state_dir=state,
        home=home,
        settings=settings,
    )


def key_file(home: Home, worker_id: str) -> Path:
    """Apart from operator.key and broker.key: a worker may be called anything."""
    return home.key_file(f"agents/{worker_id}")


def home_workers(home: Home) -> tuple[WorkerSettings, ...]:
    """The workers of the broker of this home; none where it has no broker."""
    path = _workers_file(home)
    has_broker = path.exists() or home.key_file("operator").exists()
    return load(path, WorkersFile, missing_ok=True).all_workers() if has_broker else ()


def _workers_entry(home: Home, worker_id: str | None) -> WorkerSettings | None:
    """This worker as the workers.yaml beside it says, where the broker is of the same home."""
    workers = home_workers(home)
    if worker_id is None:
        own = [worker for worker in workers if _is_driven_here(worker)]
        return own[0] if len(own) == 1 else None
    return next((worker for worker in workers if worker.worker_id == worker_id), None)


def check_driven_here(home: Home, worker_id: str) -> None:
    """ConfigError unless an agent on the broker's own host may be this worker without an invitation."""
    workers = home_workers(home)
    if not workers:
        return  # the broker itself knows what it accepts
    own = [worker.worker_id for worker in workers if _is_driven_here(worker)]
    if worker_id in own:
        return
    known = [worker.worker_id for worker in workers]
    if worker_id in known:
        raise ConfigError(
            f"{worker_id} is one of remote_workers: its agent runs on its own box",
            f"`koubou-ctl workers invite {worker_id}` prints the line to run there (or set `agent: here`)",
        )
    raise ConfigError(
        f"no worker {worker_id!r} in {_workers_file(home)}",
        did_you_mean(worker_id, known) or f"known are: {', '.join(known)}",
    )


def _is_driven_here(worker: WorkerSettings) -> bool:
    return worker.location == "local" or worker.agent == "here"


def _addresses(home: Home, settings: AgentSettings) -> tuple[str, ...]:
    """What agent.yaml says, else what the broker of this home left, else the default."""
    if "broker_addresses" in settings.model_fields_set:
        return tuple(settings.broker_addresses)
    try:
        lines = (home.state / ADDRESS_FILE).read_text(encoding="utf-8").split()
    except OSError:
        lines = []
    return tuple(lines) or tuple(settings.broker_addresses)


def _server_key(home: Home) -> str:
    path = home.public_key_file("broker")
    if not path.exists():
        raise ConfigError(f"no broker is known here: there is no {path}", _JOIN_HINT)
    return read_public(path)


def _ollama_url(home: Home, settings: AgentSettings, entry: WorkerSettings | None, given: str | None) -> str:
    remote_allowed = settings.allow_remote_ollama
    if given is not None:
        url, source = given, "--ollama-url"
    elif "ollama_url" in settings.model_fields_set or entry is None:
        return settings.ollama_url  # checked when it was read
    else:
        url, source = entry.endpoint_url, str(_workers_file(home))
        if entry.agent == "here":
            remote_allowed = remote_allowed or _broker_settings(home).allow_remote_ollama
    try:
        return check_ollama_url(url, loopback_only=not remote_allowed)
    except AddressError as error:
        hint = error.hint or (
            "run the agent on that box, or set allow_remote_ollama: true (it leaves that Ollama open to the network)"
        )
        raise ConfigError(f"{source}: {url!r} {error.message}", hint or f"usual is {DEFAULT_OLLAMA_URL}") from error


def _workers_file(home: Home) -> Path:
    return home.resolve(_broker_settings(home).workers_file)


def _broker_settings(home: Home) -> BrokerSettings:
    """Of the broker of this home; all defaults where it has none."""
    return load(home.config_file("broker"), BrokerSettings, missing_ok=True)
