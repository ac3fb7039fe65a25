"""Tasks that do nothing, through everything else: how many a second, how long one takes, what the broker uses."""

import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.machine import cpu_s, watched
from bench.stage import client_of, percentile, start_agent, until_ready
from koubou_client.client import Client
from koubou_client.tasks import TaskDraft, draft_task
from koubou_common.messages.values import TaskState
from koubou_simulator.workshop import Process, Worker, Workshop

AGENTS = 4
PROMPT_BYTES = 1024
BATCH_TASKS = 1_000
SINGLE_TASKS = 100  # one after the other: the rest of the system is idle

_MODEL = "no-model"
_OLLAMA_URL = "http://127.0.0.1:11434"  # named because a worker has one; never asked
_TIMEOUT_S = 60.0


@dataclass(slots=True)
class _Figures:
    """Of every round."""

    per_s: list[float] = field(default_factory=list)
    busy_broker_ms: list[float] = field(default_factory=list)
    busy_agents_ms: list[float] = field(default_factory=list)
    busy_client_ms: list[float] = field(default_factory=list)
    idle_broker_ms: list[float] = field(default_factory=list)
    accepted_ms: list[float] = field(default_factory=list)
    ended_ms: list[float] = field(default_factory=list)


def measure(home: Path, rounds: int) -> None:
    """Print it; a first look, there is no target yet."""
    home.mkdir()
    worker_ids = [f"noop_{number}" for number in range(1, AGENTS + 1)]
    figures = _Figures()
    with Workshop(home) as shop:
        shop.configure([Worker(worker_id, _MODEL, _OLLAMA_URL) for worker_id in worker_ids])
        shop.start_broker()
        agents = [
            start_agent(shop, worker_id, "bench.noop_agent", _OLLAMA_URL, KOUBOU_BENCH_MODEL=_MODEL)
            for worker_id in worker_ids
        ]
        with client_of(shop) as client:
            until_ready(shop, client, agents)
            _run_batch(client, _drafts("warm", AGENTS * 10))
            with watched() as share:
                for number in range(rounds):
                    _measure_batch(shop.broker, agents, client, number, figures)
                    _measure_singles(shop.broker, client, number, figures)
    _tell(figures, share.text(), rounds)


def _measure_batch(broker: Process, agents: Sequence[Process], client: Client, number: int, figures: _Figures) -> None:
    drafts = _drafts(f"batch {number}", BATCH_TASKS)
    before_s = [cpu_s(broker.pid), sum(cpu_s(agent.pid) for agent in agents), cpu_s(os.getpid())]
    started_s = time.perf_counter()
    _run_batch(client, drafts)
    figures.per_s.append(len(drafts) / (time.perf_counter() - started_s))
    after_s = [cpu_s(broker.pid), sum(cpu_s(agent.pid) for agent in agents), cpu_s(os.getpid())]
    used_ms = [(after - before) * 1_000 / len(drafts) for before, after in zip(before_s, after_s, strict=True)]
    figures.busy_broker_ms.append(used_ms[0])
    figures.busy_agents_ms.append(used_ms[1])
    figures.busy_client_ms.append(used_ms[2])


def _measure_singles(broker: Process, client: Client, number: int, figures: _Figures) -> None:
    drafts = _drafts(f"single {number}", SINGLE_TASKS)
    before_s = cpu_s(broker.pid)
    for draft in drafts:
        started_s = time.perf_counter()
        accepted = client.submit_drafts([draft])
        figures.accepted_ms.append((time.perf_counter() - started_s) * 1_000)
        client.futures([accepted.tasks[0].task_id])[0].result(_TIMEOUT_S)
        figures.ended_ms.append((time.perf_counter() - started_s) * 1_000)
    figures.idle_broker_ms.append((cpu_s(broker.pid) - before_s) * 1_000 / len(drafts))


def _run_batch(client: Client, drafts: Sequence[TaskDraft]) -> None:
    """Submit all, wait for all, and have every output."""
    accepted = client.submit_drafts(drafts, as_batch=True)
    done = client.wait([ref.task_id for ref in accepted.tasks], timeout_s=_TIMEOUT_S)
    succeeded = sum(future.result(0).task.state is TaskState.SUCCEEDED for future in done)
    if succeeded != len(drafts):
        raise RuntimeError(f"{succeeded} of {len(drafts)} tasks had ended after {_TIMEOUT_S:g} s")


def _drafts(name: str, count: int) -> list[TaskDraft]:
    return [draft_task(f"{name} {number} ".ljust(PROMPT_BYTES, "."), repo="bench") for number in range(count)]


def _tell(figures: _Figures, machine: str, rounds: int) -> None:
    print(
        f"no-op tasks, {PROMPT_BYTES} bytes in and out, {AGENTS} agents with one slot, CURVE, synchronous=FULL;"
        f" {rounds} rounds; {machine}"
    )
    spread = f"{min(figures.per_s):.0f}-{max(figures.per_s):.0f}"
    print(
        f"  submit all, wait for all ({BATCH_TASKS}): {statistics.median(figures.per_s):.0f} tasks/s ({spread});"
        f" CPU a task: broker {statistics.median(figures.busy_broker_ms):.2f} ms,"
        f" agents {statistics.median(figures.busy_agents_ms):.2f} ms,"
        f" client {statistics.median(figures.busy_client_ms):.2f} ms"
    )
    print(
        f"  one after the other ({SINGLE_TASKS}):"
        f" submit to accepted p50 {percentile(figures.accepted_ms, 50):.1f} ms,"
        f" p99 {percentile(figures.accepted_ms, 99):.1f} ms;"
        f" submit to result p50 {percentile(figures.ended_ms, 50):.1f} ms,"
        f" p99 {percentile(figures.ended_ms, 99):.1f} ms;"
        f" CPU a task: broker {statistics.median(figures.idle_broker_ms):.2f} ms"
    )
