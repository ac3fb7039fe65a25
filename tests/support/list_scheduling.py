"""A house of boxes in virtual time under a strategy of the broker: jobs in a line, makespan at the end."""

import heapq
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from koubou_broker.core_settings import CoreSettings, WorkerSettings
from koubou_broker.routing.placing import Held
from koubou_broker.routing.queue import Need
from koubou_broker.routing.router import TaskRouter
from koubou_broker.routing.strategies import Strategy
from koubou_broker.routing.workers import LiveWorker
from koubou_common.messages.values import AgentHealth, ModelSeen
from koubou_common.reasons import Reason

MODEL = "gpt-oss:20b"
# What `Performance` assumes of a box of factor 1.0 where nothing was measured: here it is the truth.
PROMPT_TOKENS_PER_S = 400.0
OUTPUT_TOKENS_PER_S = 30.0
OUTPUT_TOKENS = 500
BYTES_PER_TOKEN = 3.5
LOOK_AGAIN_S = 5.0


@dataclass(frozen=True, slots=True)
class Job:
    """What the broker can know of a task, and what it cannot."""

    prompt_tokens: int
    output_tokens: float

    @property
    def work_s(self) -> float:
        """What it takes at factor 1.0."""
        return self.prompt_tokens / PROMPT_TOKENS_PER_S + self.output_tokens / OUTPUT_TOKENS_PER_S

    @property
    def expected_s(self) -> float:
        """What the broker expects it to take at factor 1.0."""
        return self.prompt_tokens / PROMPT_TOKENS_PER_S + OUTPUT_TOKENS / OUTPUT_TOKENS_PER_S


def some_jobs(seed: int, count: int, *, prompt_sigma: float = 1.0, output_sigma: float = 0.7) -> list[Job]:
    """Prompts around 2,000 tokens and answers around 500, both lognormal."""
    draw = random.Random(seed)

    def lognormal(mean: float, sigma: float) -> float:
        return mean * draw.lognormvariate(-sigma * sigma / 2, sigma)

    return [Job(round(lognormal(2_000, prompt_sigma)), lognormal(OUTPUT_TOKENS, output_sigma)) for _ in range(count)]


def least_makespan_s(jobs: Sequence[Job], speeds: Sequence[float]) -> float:
    """What no order and no placing can beat."""
    work_s = [job.work_s for job in jobs]
    return max(sum(work_s) / sum(speeds), max(work_s) / max(speeds))


def makespan_s(jobs: Sequence[Job], speeds: Sequence[float], strategy: Strategy) -> float:
    """How long the house needs, each box one job at a time, its model loaded."""
    settings = tuple(
        WorkerSettings(f"w{nth}", default_model=MODEL, models=(MODEL,), slots=1, performance_factor=speed)
        for nth, speed in enumerate(speeds)
    )
    workers = {one.worker_id: LiveWorker(one) for one in settings}
    for nth, worker in enumerate(workers.values(), 1):
        worker.connect(nth, "b1", 0.0, 0)
        worker.reported_health(AgentHealth(ollama_ok=True, models=(ModelSeen(MODEL, loaded=True),)))
        worker.heard(0.0, 0)
        worker.report([], 1, 0, 0.0)
    router = TaskRouter(CoreSettings(workers=settings), workers, strategy)
    line = deque(enumerate(jobs))
    waiting_s = sum(job.expected_s for job in jobs)
    ends: list[tuple[float, str]] = []  # of jobs; without a worker: time to look again
    now_s = ended_s = 0.0
    while line or any(worker_id for _, worker_id in ends):
        while line:
            nth, job = line[0]
            need = Need(MODEL, -1, "", "", frozenset(), prompt_bytes=round(job.prompt_tokens * BYTES_PER_TOKEN))
            router.roster.refresh(now_s)
            placed = router.place(need, now_s, 0.0, partial(float, waiting_s))
            if isinstance(placed, Held):
                if placed.reason is Reason.FASTER_ELSEWHERE and all(worker_id for _, worker_id in ends):
                    heapq.heappush(ends, (now_s + LOOK_AGAIN_S, ""))
                break
            line.popleft()
            waiting_s -= job.expected_s
            worker = placed.worker
            worker.dispatched(f"u{nth}", MODEL, "", now_s + placed.choice.finish_s)
            router.roster.touch(worker.worker_id)
            heapq.heappush(ends, (now_s + job.work_s / worker.settings.performance_factor, worker.worker_id))
        now_s, worker_id = heapq.heappop(ends)
        for worker in workers.values():
            worker.heard(now_s, 0)
            router.roster.touch(worker.worker_id)
        if worker_id:
            ended_s = now_s
            worker = workers[worker_id]
            worker.note_success()
            worker.attempts.clear()
            worker.report([], 1, worker.dispatches, now_s)
    return ended_s
