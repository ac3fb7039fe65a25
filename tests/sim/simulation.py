"""One seed: build a world, let it go wrong for virtual hours, heal it, and check every promise."""

import random
from dataclasses import dataclass

from koubou_broker.core import CoreSettings, WorkerSettings
from koubou_broker.records import Principal
from sim.agent_node import AgentNode, Work
from sim.broker_node import BrokerNode, Bugs
from sim.checker import check_end
from sim.client_node import ClientNode
from sim.world import World
from support.shelf import Shelf

TROUBLE_S = 900.0  # virtual time in which things go wrong
HEALED_S = 7_200.0  # virtual time in which everything must come to its end
START_S = 1_000.0


@dataclass(frozen=True, slots=True)
class Figures:
    """What a seed was made of."""

    virtual_s: float
    messages: int
    faults: int
    tasks: int
    attempts: int


def simulate(seed: int, bugs: Bugs | None = None) -> Figures:
    """Run one seed; AssertionError with seed and trace when a promise is broken."""
    world = World(seed)
    try:
        return _run(world, bugs or Bugs())
    except AssertionError as error:
        tail = "\n".join(world.trace[-60:])
        raise AssertionError(
            f"seed {seed} at {world.now_s - START_S:.3f} s: {error}\n{world.faults}\n{tail}"
        ) from error


def _run(world: World, bugs: Bugs) -> Figures:
    draws = world.draws
    workers = tuple(
        WorkerSettings(
            f"w{index}",
            location="local" if index == 0 else "remote",
            default_model="m",
            models=("m",),
            slots=draws.choice((1, 1, 2, 3)),
            performance_factor=draws.choice((0.5, 1.0)),
        )
        for index in range(draws.choice((1, 2, 3, 4)))
    )
    settings = CoreSettings(workers=workers, heartbeat_s=5.0, lease_s=30.0, max_workers=10)
    disk = Shelf()
    broker = BrokerNode(world, settings, disk, wire=world.seed % 10 == 0, bugs=bugs)
    work = Work()
    agents = [AgentNode(world, broker, one.worker_id, one.slots, work) for one in workers]
    clients = [ClientNode(world, broker, f"client{index}") for index in range(draws.choice((1, 2)))]
    for peer in (*(agent.peer for agent in agents), *(client.peer for client in clients)):
        disk.principals[peer.public_key] = Principal(peer.public_key, peer.name, peer.role, None, 1, 0, 0, "")
    broker.start()
    for agent in agents:
        agent.start()
    for client in clients:
        client.start()
        for _ in range(draws.randint(3, 8)):
            world.after(draws.uniform(0, TROUBLE_S * 0.8), client.new_submission)
        world.every(120.0, client.cancel_some)
        world.every(150.0, client.retry_some)
    _plan_trouble(world, broker, agents, clients)
    world.run(START_S + TROUBLE_S, lambda: False)
    world.heal()
    world.note("healed")
    if broker.core is None:
        broker.start()

    # Late messages of the bad times arrive first.
    world.run(START_S + TROUBLE_S + 60.0, lambda: False)
    for client in clients:
        client.ask_again()

    def is_over() -> bool:
        return all(client.is_content() for client in clients) and not any(agent.spool for agent in agents)

    world.run(START_S + TROUBLE_S + HEALED_S, is_over)
    check_end(disk, agents, clients, work)
    return Figures(world.now_s - START_S, world.messages, world.fault_count, len(disk.tasks), len(work.started))


def _plan_trouble(world: World, broker: BrokerNode, agents: list[AgentNode], clients: list[ClientNode]) -> None:
    faults = world.faults
    world.every(faults.broker_crash_every_s, broker.crash)
    for agent in agents:
        world.every(faults.agent_crash_every_s, agent.crash)
        world.every(faults.partition_every_s, agent.cut_off)
    for client in clients:
        world.every(faults.client_crash_every_s, client.crash)
    if faults.clock_jumps:
        world.every(200.0, world.jump_clock)


def seeds(count: int, first: int = 0) -> list[int]:
    """The seeds of a run: the same every time, so that a failing one can be named."""
    return [random.Random(first + index).getrandbits(31) * 10 + (first + index) % 10 for index in range(count)]
