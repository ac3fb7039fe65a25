"""What one task costs the broker's core, decisions included: by how many wait, and by how many workers there are."""

import gc
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.machine import watched
from koubou_broker.core import Core, CoreSettings, Limits, WorkerSettings
from koubou_broker.effects import Effect, Found, Lookup, Now, Peer, Send, Snapshot, StoredTask
from koubou_broker.records import BodyRef, NewTask, Principal, TaskProgress
from koubou_common.messages import AgentHello, ClientHello, Dispatch, FromAgent, FromClient, Result, Submit
from koubou_common.messages.values import (
    AgentHealth,
    AgentStatus,
    AttemptProgress,
    Body,
    Metrics,
    ModelSeen,
    Role,
    TaskSpec,
    TaskState,
)

FEW_TASKS, MANY_TASKS = 1_000, 1_000_000
FEW_WORKERS, MANY_WORKERS = 4, 400
TARGET_RATIO = 2.0
ROUNDS = 12  # of each side in turn, so that what else the machine does falls on both
TASKS_A_ROUND = 400

_SLOTS = 2
_MODELS = tuple(f"model-{number}:latest" for number in range(5))
_STEP_S = 0.0001  # by the core's clock, for each message: nobody falls silent during a measurement
_PROMPT_BYTES = 2_000
_CLIENT = Peer("c".ljust(40, "0"), "client", Role.CLIENT)
_METRICS = Metrics(prompt_tokens=500, output_tokens=200, prompt_ms=1_000, eval_ms=6_000, total_ms=7_000)


@dataclass(slots=True)
class _Agent:
    """What an agent would remember."""

    peer: Peer
    session: int
    running: dict[str, Dispatch] = field(default_factory=dict)
    last: int = 0


class _House:
    """A core with so many waiting tasks and so many workers; plays the client and all agents."""

    def __init__(self, waiting: int, workers: int) -> None:
        names = [f"worker_{number:03}" for number in range(workers)]
        self._now = Now(1_000.0, 1_700_000_000_000)
        self._draw = random.Random(7)
        self._agents = {session: _Agent(_agent_peer(name), session) for session, name in enumerate(names, 2)}
        self._busy: list[tuple[_Agent, str]] = []
        self._submitted = 0
        limits = Limits(
            queue_tasks=10 * MANY_TASKS,
            queue_per_client=10 * MANY_TASKS,
            files_per_client=10 * MANY_TASKS,
            sessions_max=2 * MANY_WORKERS,
        )
        settings = CoreSettings(workers=tuple(_worker(name) for name in names), limits=limits)
        peers = [_CLIENT, *(agent.peer for agent in self._agents.values())]
        snapshot = Snapshot(
            epoch=1,
            next_task_id=waiting + 1,
            next_batch_id=1,
            next_event_seq=1,
            tasks=tuple(_stored(task_id, self._draw, self._now) for task_id in range(1, waiting + 1)),
            principals=tuple(Principal(one.public_key, one.name, one.role, None, 0, 0, 0, "") for one in peers),
        )
        self._core = Core(settings, snapshot, seed=1, now=self._now)
        self._do(self._core.start())
        self._say(_CLIENT, 1, ClientHello(1, 2, "bench"))
        for agent in self._agents.values():
            seen = tuple(ModelSeen(name) for name in _MODELS)
            health = AgentHealth(ollama_ok=True, models=seen)
            status = AgentStatus(free_slots=_SLOTS)
            self._say(
                agent.peer, agent.session, AgentHello(1, 2, "bench", "", f"{agent.session:032}", 0, status, health)
            )

    @property
    def in_use(self) -> int:
        """Slots taken."""
        return len(self._busy)

    def cost_us(self, tasks: int) -> float:
        """Microseconds of one task, from its submission to its result, with the dispatch that follows."""
        begin_s = time.perf_counter()
        for _ in range(tasks):
            self._submit()
            self._end_one()
        return (time.perf_counter() - begin_s) / tasks * 1e6

    def _submit(self) -> None:
        self._submitted += 1
        spec = TaskSpec(
            prompt=Body(bytes(32), _PROMPT_BYTES),
            model=self._draw.choice(_MODELS),
            priority=self._draw.randint(1, 10),
        )
        name = f"bench-{self._submitted}"
        self._say(_CLIENT, 1, Submit(name, name, (spec,)))

    def _end_one(self) -> None:
        """The box that has been busy for longest is done."""
        agent, uid = self._busy.pop(0)
        done = agent.running.pop(uid)
        status = AgentStatus(
            running=tuple(AttemptProgress(other) for other in agent.running),
            spooled=(uid,),
            free_slots=_SLOTS - len(agent.running),
            last_dispatch=agent.last,
        )
        raw = Body(bytes(32), 100)
        self._say(agent.peer, agent.session, Result(uid, raw, 0, 100, (), done.model, "", _METRICS, "", status))

    def _say(self, peer: Peer, session: int, message: FromAgent | FromClient) -> None:
        self._now = Now(self._now.mono_s + _STEP_S, self._now.wall_ms)
        self._do(self._core.receive(peer, session, message, self._now))

    def _do(self, effects: Sequence[Effect]) -> None:
        self._core.durable(self._core.end_batch(), self._now)
        for effect in effects:
            if isinstance(effect, Send) and isinstance(effect.message, Dispatch):
                agent = self._agents[effect.session]
                agent.running[effect.message.attempt_uid] = effect.message
                agent.last = effect.message.number
                self._busy.append((agent, effect.message.attempt_uid))
            elif isinstance(effect, Lookup):
                self._do(self._core.found(effect.token, Found(), self._now))


def measure() -> bool:
    """Print the costs and their ratios; False if one misses the target."""
    with watched() as share:
        by_tasks = _compare(_House(FEW_TASKS, FEW_WORKERS), _House(MANY_TASKS, FEW_WORKERS))
        by_workers = _compare(_House(FEW_TASKS, FEW_WORKERS), _House(FEW_TASKS, MANY_WORKERS))
        by_free = _compare(_House(0, FEW_WORKERS), _House(0, MANY_WORKERS))
    print(
        f"cost of a task in the core: submit, dispatch, result; {len(_MODELS)} models, priorities 1 to 10;"
        f" median of {ROUNDS} rounds of {TASKS_A_ROUND}; {share.text()}"
    )
    is_met = _tell(f"{FEW_TASKS:,} tasks wait", f"{MANY_TASKS:,} wait", by_tasks)
    is_met &= _tell(f"{FEW_WORKERS} workers, all busy", f"{MANY_WORKERS}, all busy", by_workers)
    _tell(f"{FEW_WORKERS} workers, all free", f"{MANY_WORKERS}, all free", by_free, has_target=False)
    return is_met


def _compare(few: _House, many: _House) -> tuple[float, float]:
    gc.collect()
    for house in (few, many):
        house.cost_us(TASKS_A_ROUND)  # not counted: what is remembered is looked up for the first time
    costs: tuple[list[float], list[float]] = [], []
    for _ in range(ROUNDS):
        for house, cost in zip((few, many), costs, strict=True):
            cost.append(house.cost_us(TASKS_A_ROUND))
    return statistics.median(costs[0]), statistics.median(costs[1])


def _tell(few: str, many: str, costs: tuple[float, float], *, has_target: bool = True) -> bool:
    ratio = costs[1] / costs[0]
    is_met = ratio <= TARGET_RATIO
    said = f"; target at most {TARGET_RATIO:g}: {'met' if is_met else 'MISSED'}" if has_target else ""
    print(f"  {few}: {costs[0]:.0f} us; {many}: {costs[1]:.0f} us; ratio {ratio:.2f}{said}")
    return is_met


def _agent_peer(name: str) -> Peer:
    return Peer(name.ljust(40, "0"), name, Role.WORKER)


def _worker(name: str) -> WorkerSettings:
    return WorkerSettings(name, default_model=_MODELS[0], models=_MODELS, slots=_SLOTS)


def _stored(task_id: int, draw: random.Random, now: Now) -> StoredTask:
    """A task that waits, as the database would bring it."""
    task = NewTask(
        task_id=task_id,
        batch_id=0,
        batch_index=0,
        principal=_CLIENT.name,
        custom_id="",
        idempotency_key="",
        prompt=_PROMPT,
        files=(),
        target="",
        repo="",
        model=draw.choice(_MODELS),
        priority=draw.randint(1, 10),
        task_type="general",
        options=(),
        worker="",
        labels=(),
        min_context=0,
        timeout_s=None,
        deadline_ms=0,
        max_attempts=5,
        strict_output=False,
        out_path="",
        out_digest="",
        submitted_ms=now.wall_ms,
    )
    progress = TaskProgress(
        task_id=task_id,
        state=TaskState.QUEUED,
        generation=1,
        attempts=0,
        transient_failures=0,
        infra_failures=0,
        deaths=(),
        excluded=(),
        not_before_ms=0,
        worker_id="",
        error_class=None,
        error_message="",
        started_ms=0,
        finished_ms=0,
        result=None,
        output_offset=0,
        output_length=0,
        flags=(),
        metrics=None,
    )
    return StoredTask(task, progress)


_PROMPT = BodyRef(bytes(32), _PROMPT_BYTES)
