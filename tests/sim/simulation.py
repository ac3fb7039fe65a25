"""One seed: build a world, let it go wrong for a while, heal it, let everything end, and check every promise."""

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from koubou_broker.core import CoreSettings, WorkerSettings
from koubou_broker.core.lifecycle import FLAG_CACHED
from koubou_broker.core_settings import Limits
from koubou_broker.records import Principal
from koubou_common.messages.values import Role, TaskState
from sim.agent_node import AgentNode, Work
from sim.broker_node import BrokerNode, Bugs
from sim.client_node import ClientNode
from sim.curious_node import CuriousNode
from sim.disk import Disk
from sim.faults import Faults
from sim.models import PATIENCE_S, models_of, strategy_of
from sim.operator_node import OperatorNode
from sim.promises import check_end, longest_overtaken_s, turnaround_s
from sim.story import seed_error
from sim.strangers import FromTheFuture, send_nonsense
from sim.world import START_S, World
from support.shelf import Shelf

TROUBLE_S = 900.0  # virtual time in which things go wrong
HEALED_S = 7_200.0  # virtual time in which everything must come to its end
_LATE_S = 60.0  # messages of the bad times arrive first
_WHOLE_EVERY = 4  # one seed in so many runs the whole server around the core


@dataclass(frozen=True, slots=True)
class Figures:
    """What a seed was made of."""

    virtual_s: float
    messages: int
    faults: int
    tasks: int
    attempts: int  # that were begun
    dispatches: int
    successes: int  # tasks
    ollama_s: float  # of attempts that came to their end, also of those that were for nothing
    loads: int  # of models, by all boxes
    overtaken_s: float  # the longest that a task waited while later ones of its priority had begun
    turnaround_s: float  # from each task's submission to its last end, by the wall clock
    cached: int  # tasks that ended with an earlier answer
    explained: int  # answers to those who only ask


@dataclass(slots=True)
class Stage:
    """Who takes part."""

    world: World
    broker: BrokerNode
    work: Work
    agents: list[AgentNode] = field(default_factory=list)
    clients: list[ClientNode] = field(default_factory=list)
    operator: OperatorNode = field(init=False)
    strangers: list[FromTheFuture] = field(default_factory=list)
    curious: list[CuriousNode] = field(default_factory=list)


def simulate(seed: int, bugs: Bugs | None = None, faults: Faults | None = None) -> Figures:
    """Run one seed; SeedError with the story when a promise is broken.

    `faults`: what goes wrong, in the place of what the seed would draw.
    """
    world = World(seed, faults)
    stage = _build(world, bugs or Bugs())
    try:
        with _quietly():
            return _run(stage)
    except AssertionError as error:
        raise seed_error(world, stage.broker.disk.now, error) from error


def seeds(count: int, first: int = 0) -> list[int]:
    """The seeds of a run: the same every time, so that a failing one can be named."""
    return [random.Random(first + index).getrandbits(31) * 10 + (first + index) % 10 for index in range(count)]


@contextmanager
def _quietly() -> Iterator[None]:
    """The broker's log tells of trouble; here trouble is wanted."""
    log = logging.getLogger("koubou_broker")
    before = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        log.setLevel(before)


def _run(stage: Stage) -> Figures:
    world = stage.world
    _begin(stage)
    _plan_trouble(stage)
    world.run(START_S + TROUBLE_S, lambda: False)
    _heal(stage)
    world.run(START_S + TROUBLE_S + _LATE_S, lambda: False)
    stage.operator.heal()  # a late word of the bad times may have undone what it said
    end_s = START_S + TROUBLE_S + HEALED_S
    world.run(end_s, lambda: not _unfinished(stage))
    for client in stage.clients:
        client.ask_again()
    world.run(end_s, lambda: not _unfinished(stage))
    disk = stage.broker.disk.now
    check_end(disk, stage.agents, stage.clients, stage.work)
    assert not _unfinished(stage), f"not finished after {HEALED_S:g} s: {_unfinished(stage)}"
    return Figures(
        virtual_s=world.now_s - START_S,
        messages=world.messages,
        faults=world.fault_count,
        tasks=len(disk.tasks),
        attempts=len(stage.work.started),
        dispatches=len(disk.attempts),
        successes=sum(row.state is TaskState.SUCCEEDED for row in disk.progress.values()),
        ollama_s=stage.work.ollama_s,
        loads=stage.work.loads,
        overtaken_s=longest_overtaken_s(disk),
        turnaround_s=turnaround_s(disk),
        cached=sum(FLAG_CACHED in row.flags for row in disk.progress.values()),
        explained=sum(one.answers for one in stage.curious),
    )


def _build(world: World, bugs: Bugs) -> Stage:
    draws = world.draws
    is_whole = draws.randrange(_WHOLE_EVERY) == 0
    workers = tuple(
        WorkerSettings(
            f"w{index}",
            location="local" if index == 0 else "remote",
            default_model="m",
            models=models_of(world.seed),
            slots=world.faults.slots or draws.choice((1, 1, 2, 3)),
            performance_factor=draws.choice((0.5, 1.0)),
            **world.habits.worker(index),
        )
        for index in range(world.faults.workers or draws.choice((1, 2, 3, 4)))
    )
    later = WorkerSettings("w9", location="remote", default_model="x", models=("x",))
    names = [f"client{index}" for index in range(draws.choice((1, 2)))]
    settings = CoreSettings(
        workers=(*workers, later),
        heartbeat_s=5.0,
        lease_s=30.0,
        max_workers=10,
        strategy=strategy_of(world.seed),
        patience_s=PATIENCE_S,
        aging_s=world.habits.aging_s,
        cache_days=world.habits.cache_days,
        limits=_limits(world, len(workers) + len(names)),
    )
    shelf = Shelf(keeps_bodies=is_whole)
    people = [(name, Role.CLIENT) for name in (*names, "client9")] + [("boss", Role.OPERATOR)]
    for name, role in (*((one.worker_id, Role.WORKER) for one in settings.workers), *people):
        shelf.principals[_key(name)] = Principal(_key(name), name, role, None, 1, 0, 0, "")
    broker = BrokerNode(world, settings, Disk(world, bugs, shelf), is_whole, bugs)
    stage = Stage(world, broker, Work())
    broker.on_restore = stage.work.void
    for one in workers:
        stage.agents.append(AgentNode(world, broker, one.worker_id, one.slots, stage.work, _key(one.worker_id)))
    for name in names:
        stage.clients.append(ClientNode(world, broker, name, _key(name), stage.work))
    if world.habits.curious_every_s:
        stage.curious = [CuriousNode(world, broker, stage.clients[0])]
    stage.operator = OperatorNode(world, broker, _key("boss"), stage.agents, stage.clients)
    if world.faults.skew:
        stage.strangers = [
            FromTheFuture(world, broker, "client9", _key("client9"), is_agent=False),
            FromTheFuture(world, broker, "w9", _key("w9"), is_agent=True),
        ]
    return stage


def _limits(world: World, peers: int) -> Limits:
    if not world.faults.small_limits:
        return Limits()
    draws = world.draws
    return Limits(
        queue_per_client=draws.choice((5, 8, 20)),
        sessions_max=peers + draws.choice((1, 2, 4)),
        lookups_per_session=draws.choice((1, 2, 4)),
        staged_per_session=1,
    )


def _begin(stage: Stage) -> None:
    world = stage.world
    stage.broker.start()
    for agent in stage.agents:
        agent.start()
    stage.operator.start()
    for stranger in stage.strangers:
        stranger.start()
    for one in stage.curious:
        one.start()
    for client in stage.clients:
        client.start()
        for _ in range(world.draws.randint(3, 8)):
            world.after(world.draws.uniform(0, TROUBLE_S * 0.8), client.new_submission)
        world.every(world.faults.cancel_every_s, client.cancel_some)
        world.every(world.faults.retry_every_s, client.retry_some)
        world.every(300.0, client.submit_again)


def _plan_trouble(stage: Stage) -> None:
    world, broker, faults = stage.world, stage.broker, stage.world.faults
    world.every(faults.broker_crash_every_s, broker.crash)
    world.every(faults.broker_pause_every_s, broker.pause)
    world.every(faults.takeover_every_s, broker.take_over)
    world.every(faults.power_cut_every_s, lambda: _host_power_cut(stage))
    world.every(faults.restore_every_s, broker.restore)
    world.every(faults.restore_every_s / 2, broker.back_up)
    world.every(faults.operator_every_s, stage.operator.act)
    world.every(faults.outage_every_s, lambda: stage.work.begin_outage(world.now_s))
    for agent in stage.agents:
        world.every(faults.agent_crash_every_s, agent.crash)
        world.every(faults.box_power_cut_every_s, agent.power_cut)
        world.every(faults.agent_pause_every_s, agent.pause)
        world.every(faults.agent_stop_every_s, agent.stop)
        world.every(faults.partition_every_s, agent.cut_off)
    for one in stage.curious:
        world.every(world.habits.curious_every_s, one.act)
    world.every(faults.same_key_every_s, lambda: _start_twin(stage))
    for client in stage.clients:
        world.every(faults.client_crash_every_s, client.crash)
    if broker.is_whole:
        world.every(faults.disk_full_every_s, broker.fill_disk)
        world.every(faults.disk_busy_every_s, broker.lock_database)
        if faults.skew:
            world.every(30.0, lambda: send_nonsense(world, broker))
    if faults.clock_jumps:
        world.every(200.0, world.jump_clock)


def _host_power_cut(stage: Stage) -> None:
    """The broker's host goes dark, with the local agent on it."""
    stage.broker.power_cut()
    stage.agents[0].power_cut()


def _start_twin(stage: Stage) -> None:
    """Another box with the key of one that works, for a while; what it has spooled it delivers."""
    first = stage.world.draws.choice(stage.agents)
    name = f"{first.worker_id}'"
    if any(one.name == name for one in stage.agents):
        return
    twin = AgentNode(stage.world, stage.broker, first.worker_id, first.slots, stage.work, first.public_key, name)
    stage.agents.append(twin)
    twin.start()
    stage.world.after(60.0, lambda: _end_twin(stage, twin))


def _end_twin(stage: Stage, twin: AgentNode) -> None:
    if twin.spool:
        stage.world.after(30.0, lambda: _end_twin(stage, twin))
        return
    twin.is_wanted = False
    twin.crash()


def _heal(stage: Stage) -> None:
    world = stage.world
    world.heal()
    stage.broker.heal()
    stage.operator.heal()


def _unfinished(stage: Stage) -> str:
    """Whoever still waits for something."""
    waiting = [client.name for client in stage.clients if not client.is_content()]
    waiting += [one.name for one in stage.curious if not one.is_idle]
    waiting += [agent.name for agent in stage.agents if agent.spool or (agent.is_removed and agent.is_wanted)]
    return ", ".join(waiting)


def _key(name: str) -> str:
    return name.ljust(40, "k")
