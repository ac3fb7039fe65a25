"""What could keep this agent from working, looked at one by one, each with the way to mend it."""

import contextlib
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from urllib.parse import urlsplit

from koubou_agent import cli_env
from koubou_agent.agent import software
from koubou_agent.box import cli_python
from koubou_agent.cli_env import CliMissing
from koubou_agent.config import AgentConfig, agent_config
from koubou_agent.planning import ModelFacts, plan_warm_up
from koubou_agent.probe import ModelSeen, Probe
from koubou_common import __version__
from koubou_common.addresses import check_connect, is_loopback
from koubou_common.enrol import look
from koubou_common.errors import KoubouError
from koubou_common.home import Home
from koubou_common.keys import fingerprint, read_key_pair
from koubou_common.link import Diagnosis, Link
from koubou_common.messages.values import WorkerConfig
from koubou_common.models import normal_model
from koubou_common.worker_settings import ANY_MODEL

BROKER_TIMEOUT_S = 8.0  # two rounds over all addresses
FREE_BYTES_LEAST = 512 * 2**20  # room for the spool and the cache of a busy day
CLOCK_SKEW_MS = 5_000  # from here on invitations seem to expire too early or too late

_KNOCK_TIMEOUT_S = 0.5
_ELSEWHERE = "192.0.2.1"  # kept for examples: the way there is the way to the network


class Finding(StrEnum):
    """How one check ended."""

    OK = "ok"
    WARNING = "warning"
    FAULT = "fault"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at."""

    name: str
    finding: Finding
    detail: str
    fix: str = ""


def examine(home: Home, *, worker_id: str | None, given: Path | None, ollama_url: str | None) -> list[Check]:
    """Every check that can be made; what needs settings is left out when these cannot be read."""
    try:
        config = agent_config(home, worker_id=worker_id, given=given, ollama_url=ollama_url)
    except KoubouError as error:
        return [Check("settings", Finding.FAULT, error.message, error.hint), *_cli(None, home)]
    broker, worker = _broker(config)
    return [
        Check("settings", Finding.OK, f"worker {config.worker_id}, broker at {', '.join(config.addresses)}"),
        *broker,
        *_slots(config, worker),
        *_ollama(config, worker),
        *_cli(config, home),
        *_disk(config),
    ]


def _broker(config: AgentConfig) -> tuple[list[Check], WorkerConfig | None]:
    """The way to the broker, and the worker as it describes it."""
    if not config.key_file.exists() and config.home.key_file("operator").exists():
        return [Check("key", Finding.OK, "not made yet: the first start of the agent does it on this host")], None
    try:
        pair = read_key_pair(config.key_file)
    except KoubouError as error:
        return [Check("key", Finding.FAULT, error.message, error.hint)], None
    checks = [Check("key", Finding.OK, f"{fingerprint(pair.public)} in {config.key_file}")]
    link = Link(config.addresses, config.server_key, pair)
    try:
        deadline_s = time.monotonic() + BROKER_TIMEOUT_S
        while time.monotonic() < deadline_s and not link.is_connected:
            link.pump(time.monotonic())
            if link.diagnosis not in (Diagnosis.CONNECTING, Diagnosis.CONNECTED):
                break
            link.poll(min(0.2, deadline_s - time.monotonic()))
        if not link.is_connected:
            raise link.explain()
        asked_ms = time.time() * 1000
        welcome = look(link, software=software(), timeout_s=BROKER_TIMEOUT_S)
        took_ms = time.time() * 1000 - asked_ms
    except KoubouError as error:
        return [*checks, Check("broker", Finding.FAULT, error.message, error.hint)], None
    finally:
        link.close(0.0)
    checks.append(Check("broker", Finding.OK, "reached, its key is the right one, and it knows ours"))
    if welcome.software:
        checks.append(_version(welcome.software))
    if welcome.now_ms:
        checks.append(_clock(welcome.now_ms - asked_ms - took_ms / 2, took_ms / 2))
    return checks, welcome.worker


def _version(broker: str) -> Check:
    version = broker.rpartition(" ")[2]
    if version == __version__:
        return Check("version", Finding.OK, f"{version} on both sides")
    return Check(
        "version",
        Finding.WARNING,
        f"the broker has {version}, this agent {__version__}",
        "neighbouring versions work together; bring both to the same one when you can",
    )


def _clock(skew_ms: float, uncertain_ms: float) -> Check:
    if abs(skew_ms) <= CLOCK_SKEW_MS + uncertain_ms:
        return Check("clock", Finding.OK, "agrees with the broker's")
    ahead = "ahead of" if skew_ms > 0 else "behind"
    return Check(
        "clock",
        Finding.WARNING,
        f"the broker's clock is {abs(skew_ms) / 1000:.0f} s {ahead} ours: invitations expire at the wrong time",
        "let both hosts keep their time: timedatectl set-ntp true",
    )


def _slots(config: AgentConfig, worker: WorkerConfig | None) -> Iterator[Check]:
    parallel = config.slots_ceiling
    if worker is not None and worker.slots > parallel:
        yield Check(
            "slots",
            Finding.WARNING,
            f"workers.yaml allows {worker.slots} tasks at a time, this box {parallel}",
            "where OLLAMA_NUM_PARALLEL is more, say so: ollama_parallel: N in agent.yaml",
        )
    elif "ollama_parallel" not in config.settings.model_fields_set:
        yield Check(
            "slots",
            Finding.WARNING,
            "one task at a time, as ollama_parallel is not set: Ollama does not tell its own",
            "where OLLAMA_NUM_PARALLEL is more, say so: ollama_parallel: N in agent.yaml",
        )


def _ollama(config: AgentConfig, worker: WorkerConfig | None) -> Iterator[Check]:
    health = Probe(config.ollama_url).check()
    if not health.ok:
        yield Check("ollama", Finding.FAULT, health.issue, "start it (`ollama serve`), or set ollama_url")
        return
    yield Check("ollama", Finding.OK, f"{health.version} at {config.ollama_url}, {health.latency_ms} ms")
    yield from _models(health.models, worker)
    for model in health.models:
        if model.loaded and 0 < model.vram_bytes < model.size_bytes // 2:
            yield Check(
                "gpu",
                Finding.WARNING,
                f"{model.name} is mostly outside of GPU memory: slow",
                "a smaller model or num_ctx fits; `ollama ps` shows the split",
            )
    yield from exposure(config.ollama_url, _own_addresses(config.addresses))


def _models(there: Sequence[ModelSeen], worker: WorkerConfig | None) -> Iterator[Check]:
    if not there:
        yield Check("models", Finding.FAULT, "this Ollama has no model", "ollama pull NAME")
        return
    yield Check("models", Finding.OK, ", ".join(model.name for model in there))
    if worker is None:
        return
    by_name = {model.name: model for model in there}
    for name in dict.fromkeys((worker.default_model, *worker.models)):
        if not name or name == ANY_MODEL or normal_model(name) in by_name:
            continue
        is_default = name == worker.default_model
        what = "the default model" if is_default else "a model"
        finding = Finding.FAULT if is_default else Finding.WARNING
        text = f"{name}, {what} of {worker.worker_id}, is not in this Ollama"
        yield Check("model", finding, text, f"ollama pull {name}")
    default = by_name.get(normal_model(worker.default_model)) if worker.default_model else None
    num_ctx = plan_warm_up(worker, ModelFacts(), worker.limits).num_ctx
    if default is not None and 0 < default.context_length < num_ctx:
        yield Check(
            "window",
            Finding.WARNING,
            f"{default.name} was trained for {default.context_length} tokens: its window is that, not {num_ctx}",
            f"num_ctx: {default.context_length} in the worker's options says what is true",
        )


def exposure(ollama_url: str, own_addresses: Sequence[str]) -> Iterator[Check]:
    """An Ollama open to the network lets anybody use, pull and delete models: Koubou does not need it."""
    parts = urlsplit(ollama_url)
    if not is_loopback(parts.hostname or ""):
        yield Check(
            "exposure",
            Finding.WARNING,
            f"Ollama is used over the network ({ollama_url}): without a password, in the clear",
            "run an agent on that box and bind its Ollama to 127.0.0.1",
        )
        return
    for address in own_addresses:
        try:
            socket.create_connection((address, parts.port or 80), timeout=_KNOCK_TIMEOUT_S).close()
        except OSError:
            continue
        yield Check(
            "exposure",
            Finding.WARNING,
            f"Ollama listens on {address} too: everybody on that network can use and delete its models",
            "Koubou does not need that: unset OLLAMA_HOST (or 127.0.0.1) and restart Ollama",
        )
        return


def _own_addresses(broker_addresses: Sequence[str]) -> list[str]:
    """Where others may reach this box; its name alone often leads to the loopback only."""
    found = set()
    with contextlib.suppress(OSError):
        found = {str(item[4][0]) for item in socket.getaddrinfo(socket.gethostname(), None, family=socket.AF_INET)}
    for host in (*(check_connect(address).host for address in broker_addresses), _ELSEWHERE):
        # Nothing is sent: connecting a datagram socket only asks which way it would go.
        with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
            way.connect((host, 9))
            found.add(str(way.getsockname()[0]))
    return sorted(address for address in found if not is_loopback(address))


def _cli(config: AgentConfig | None, home: Home) -> Iterator[Check]:
    try:
        python = cli_python(config) if config is not None else cli_env.locate(home.root)
    except CliMissing as error:
        yield Check("gemini-repo-cli", Finding.FAULT, error.message, error.hint)
        return
    found = cli_env.check(python, imports=True)
    for problem in found.problems:
        yield Check("gemini-repo-cli", Finding.FAULT, problem, f"install it with: {cli_env.INSTALL_COMMAND}")
    for warning in found.warnings:
        yield Check("gemini-repo-cli", Finding.WARNING, warning)
    if found.info is not None and not found.problems:
        commit = f", commit {found.info.commit[:12]}" if found.info.commit else ""
        finding = Finding.OK if found.info.kind == "gemini-repo-cli" else Finding.WARNING
        yield Check("gemini-repo-cli", finding, f"{found.info.kind} {found.info.version}{commit} in {python}")


def _disk(config: AgentConfig) -> Iterator[Check]:
    folder = config.spool_dir
    while not folder.exists():
        folder = folder.parent
    free_bytes = shutil.disk_usage(folder).free
    detail = f"{free_bytes // 2**20:,} MiB free for {config.spool_dir}"
    if free_bytes < FREE_BYTES_LEAST:
        yield Check("disk", Finding.FAULT, detail, "make room: without it results are held in memory only")
    else:
        yield Check("disk", Finding.OK, detail)
