"""What both measurements need: a workshop with this folder's agents in it, and percentiles."""

import statistics
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from koubou_client.client import Client
from koubou_simulator.workshop import Process, Workshop

READY_TIMEOUT_S = 60.0  # until every agent has a session and can work
_REPOSITORY = Path(__file__).resolve().parent.parent


def start_agent(shop: Workshop, worker_id: str, module: str, ollama_url: str, **environment: str) -> Process:
    """Start `module` of this folder as the agent of a worker."""
    process = shop.agent(worker_id, ollama_url)
    process.arguments = [sys.executable, "-m", module, *process.arguments[3:]]
    process.environment = {**process.environment, "PYTHONPATH": str(_REPOSITORY), **environment}
    process.start()
    return process


def until_ready(shop: Workshop, client: Client, agents: Sequence[Process]) -> None:
    """Wait until the broker has every agent as one that can work."""
    for agent in agents:
        shop.until(partial(_is_ready, client, agent.name), agent, READY_TIMEOUT_S)


def client_of(shop: Workshop) -> Client:
    """An operator's client of the broker."""
    return Client(home=shop.home)


def percentile(values: Sequence[float], percent: int) -> float:
    """The percentile, between the two nearest values."""
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def _is_ready(client: Client, worker_id: str) -> bool:
    workers = client.status().workers
    return any(worker.worker_id == worker_id and worker.connected and not worker.issue for worker in workers)
