"""The demo's workshop: which workers and Ollamas there are, and how each box is started."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from koubou_common.addresses import DEFAULT_OLLAMA_URL, is_loopback
from koubou_simulator.workshop import Process, Worker, Workshop

LOCAL, REMOTE, LATE = "local_001", "remote_lan_001", "remote_lan_002"  # LATE joins while the others work
SIMULATED_MODEL = "gpt-oss:20b"

_SPEED = "5"  # simulated seconds a second: thirty tasks of a desktop and two laptops in some twenty seconds
_PRESETS = {LOCAL: "rtx", REMOTE: "mac", LATE: "mac"}
_STOP_S = "2"  # at the end nothing runs; after Ctrl-C nobody wants to wait

# Quick leases: the killed agent's task should move while people watch.
_BROKER = "heartbeat_s: 1\nlease_s: 4\nlimits: {max_sessions: 50}\ndisk: {reserve_bytes: 1048576, min_free_bytes: 0}\n"

# As the requirement has them; `koubou-ctl show` repeats the reasons.
_RULES = [
    {"priority_range": [8, 10], "preferred_workers": ["local"], "reason": "高優先度タスクは高速なローカル処理"},
    {"priority_range": [5, 7], "preferred_workers": ["local", "remote"], "reason": "中優先度は負荷分散"},
    {
        "priority_range": [1, 4],
        "preferred_workers": ["remote"],
        "reason": "低優先度はリモート優先でローカルリソース温存",
    },
]


@dataclass(frozen=True, slots=True)
class Ollamas:
    """The Ollama beside each worker; simulated ones can be asked what reached them."""

    urls: Mapping[str, str]
    model: str
    is_simulated: bool


def open_workshop(workshop: Workshop, ollama_url: str, model: str, seed: int) -> Ollamas:
    """Start the Ollamas (or take the one given) and the broker."""
    if ollama_url:
        ollamas = Ollamas(dict.fromkeys(_PRESETS, ollama_url), model, is_simulated=False)
    else:
        urls = {worker_id: _simulated(workshop, worker_id, preset) for worker_id, preset in _PRESETS.items()}
        ollamas = Ollamas(urls, SIMULATED_MODEL, is_simulated=True)
    options = {"seed": seed} if ollamas.is_simulated else {}
    workers = [
        Worker(
            worker_id,
            ollamas.model,
            # A worker of the main host has its Ollama on the loopback; --ollama-url says where the demo's is.
            url if is_loopback(urlsplit(url).hostname or "") else DEFAULT_OLLAMA_URL,
            location="local" if worker_id == LOCAL else "remote",
            performance_factor=1.0 if worker_id == LOCAL else 0.5,
            options=options,
        )
        for worker_id, url in ollamas.urls.items()
    ]
    workshop.configure(workers, rules=_RULES, broker=_BROKER)
    workshop.start_broker()
    return ollamas


def start_local(workshop: Workshop, ollamas: Ollamas) -> Process:
    """The agent of the main host: it needs no invitation."""
    return _start(workshop, ollamas, LOCAL, workshop.home)


def join_and_start(workshop: Workshop, ollamas: Ollamas, worker_id: str) -> Process:
    """A box of its own joins with a token and begins to work."""
    return _start(workshop, ollamas, worker_id, workshop.join_box(worker_id))


def _start(workshop: Workshop, ollamas: Ollamas, worker_id: str, home: Path) -> Process:
    url = ollamas.urls[worker_id]
    if not is_loopback(urlsplit(url).hostname or ""):
        with (home / "config" / "agent.yaml").open("a", encoding="utf-8") as settings:
            settings.write("allow_remote_ollama: true\n")
    agent = workshop.agent(worker_id, url, home, "--stop-timeout", _STOP_S)
    agent.start()
    return agent


def _simulated(workshop: Workshop, worker_id: str, preset: str) -> str:
    return workshop.start_ollama(worker_id, "--speed", _SPEED, "--model", f"{SIMULATED_MODEL}={preset}")
