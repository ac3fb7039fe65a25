"""What could keep this agent from working, looked at one by one, each with the way to mend it."""

import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from urllib.parse import urlsplit

from koubou_agent import cli_env
from koubou_agent.box import cli_python
from koubou_agent.cli_env import CliMissing
from koubou_agent.config import AgentConfig, agent_config
from koubou_agent.probe import Probe
from koubou_common.addresses import is_loopback
from koubou_common.errors import KoubouError
from koubou_common.home import Home
from koubou_common.keys import fingerprint, read_key_pair
from koubou_common.link import Diagnosis, Link

BROKER_TIMEOUT_S = 8.0  # two rounds over all addresses
FREE_BYTES_LEAST = 512 * 2**20  # room for the spool and the cache of a busy day

_KNOCK_TIMEOUT_S = 0.5


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
    return [
        Check("settings", Finding.OK, f"worker {config.worker_id}, broker at {', '.join(config.addresses)}"),
        *_slots(config),
        *_broker(config),
        *_ollama(config),
        *_cli(config, home),
        *_disk(config),
    ]


def _slots(config: AgentConfig) -> Iterator[Check]:
    if "ollama_parallel" not in config.settings.model_fields_set:
        yield Check(
            "slots",
            Finding.WARNING,
            "one task at a time, as ollama_parallel is not set: Ollama does not tell its own",
            "where OLLAMA_NUM_PARALLEL is more, say so: ollama_parallel: N in agent.yaml",
        )


def _broker(config: AgentConfig) -> Iterator[Check]:
    if not config.key_file.exists() and config.home.key_file("operator").exists():
        yield Check("key", Finding.OK, "not made yet: the first start of the agent does it on this host")
        return
    try:
        pair = read_key_pair(config.key_file)
    except KoubouError as error:
        yield Check("key", Finding.FAULT, error.message, error.hint)
        return
    yield Check("key", Finding.OK, f"{fingerprint(pair.public)} in {config.key_file}")
    link = Link(config.addresses, config.server_key, pair)
    try:
        deadline_s = time.monotonic() + BROKER_TIMEOUT_S
        while time.monotonic() < deadline_s and not link.is_connected:
            link.pump(time.monotonic())
            if link.diagnosis not in (Diagnosis.CONNECTING, Diagnosis.CONNECTED):
                break
            link.poll(min(0.2, deadline_s - time.monotonic()))
        if link.is_connected:
            yield Check("broker", Finding.OK, "reached, its key is the right one, and it knows ours")
        else:
            reason = link.explain()
            yield Check("broker", Finding.FAULT, reason.message, reason.hint)
    finally:
        link.close(0.0)


def _ollama(config: AgentConfig) -> Iterator[Check]:
    health = Probe(config.ollama_url).check()
    if not health.ok:
        yield Check("ollama", Finding.FAULT, health.issue, "start it (`ollama serve`), or set ollama_url")
        return
    yield Check("ollama", Finding.OK, f"{health.version} at {config.ollama_url}, {health.latency_ms} ms")
    if health.models:
        yield Check("models", Finding.OK, ", ".join(model.name for model in health.models))
    else:
        yield Check("models", Finding.FAULT, "this Ollama has no model", "ollama pull NAME")
    for model in health.models:
        if model.loaded and 0 < model.vram_bytes < model.size_bytes // 2:
            yield Check(
                "gpu",
                Finding.WARNING,
                f"{model.name} is mostly outside of GPU memory: slow",
                "a smaller model or num_ctx fits; `ollama ps` shows the split",
            )
    yield from _exposure(config)


def _exposure(config: AgentConfig) -> Iterator[Check]:
    """An Ollama open to the network lets anybody use, pull and delete models: Koubou does not need it."""
    parts = urlsplit(config.ollama_url)
    if not is_loopback(parts.hostname or ""):
        yield Check(
            "exposure",
            Finding.WARNING,
            f"Ollama is used over the network ({config.ollama_url}): without a password, in the clear",
            "run an agent on that box and bind its Ollama to 127.0.0.1",
        )
        return
    for address in _own_addresses():
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


def _own_addresses() -> list[str]:
    try:
        found = socket.getaddrinfo(socket.gethostname(), None, family=socket.AF_INET)
    except OSError:
        return []
    return sorted({str(item[4][0]) for item in found if not is_loopback(str(item[4][0]))})


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
