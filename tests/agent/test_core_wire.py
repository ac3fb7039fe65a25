"""The core on a bad wire: seeded loss, doubling, delay, crashes; no outcome is lost, none told too soon."""

import heapq
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import pytest

from koubou_agent.core import AgentCore, CoreSettings
from koubou_agent.effects import (
    Effect,
    Exit,
    Log,
    Outcome,
    Send,
    SpoolDelete,
    SpoolWrite,
    StartAttempt,
    StopAttempt,
    WipeCaches,
)
from koubou_common.errors import Code
from koubou_common.messages import (
    Abort,
    AgentHello,
    Error,
    Failure,
    FromAgent,
    Heartbeat,
    HeartbeatAck,
    Result,
    ResultStored,
    ToAgent,
)
from koubou_common.messages.values import AbortReason, Disposition, WorkerMode
from support.agent_play import HEALTHY, a_dispatch, a_failure, a_success, a_welcome, uid

SEEDS = range(60)
TASKS = 12
SLOTS = 2
LEASE_S = 30.0
HEAL_AT_S = 400.0  # from here on nothing goes wrong any more
END_AT_S = 1200.0

Bug = Literal["", "speak before the spool", "forget without an answer"]


@dataclass
class World:
    """One agent core, its spool, a wire with moods, and a broker that only knows what it was told."""

    seed: int
    bug: Bug = ""
    now: float = 1000.0
    epoch: int = 1
    session: int = 0
    serial: int = 0
    queue: list[tuple[float, int, str, object]] = field(default_factory=list)
    spool: dict[str, Outcome] = field(default_factory=dict)
    running: dict[str, int] = field(default_factory=dict)  # uid -> boot of the agent
    recorded: set[str] = field(default_factory=set)
    starts: list[str] = field(default_factory=list)
    boot: int = 0
    is_connected: bool = False
    is_known: bool = False  # the broker has this session
    next_uid: int = 0
    sent_number: int = 0
    leases: dict[str, float] = field(default_factory=dict)  # dispatched, neither recorded nor given up -> until

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        # Each seed draws its own rates, zero included: frequent faults of one kind hide another's bugs.
        self.loss = self.random.choice([0.0, 0.05, 0.3])
        self.doubling = self.random.choice([0.0, 0.1])
        self.crashes = self.random.choice([0.0, 0.01, 0.05])
        self.latency_s = self.random.choice([0.01, 0.5, 3.0])
        self.full_disk = self.random.choice([0.0, 0.0, 0.3])
        self.start_agent()

    @property
    def is_bad(self) -> bool:
        return self.now - 1000.0 < HEAL_AT_S

    def at(self, delay_s: float, what: str, item: object) -> None:
        self.serial += 1
        heapq.heappush(self.queue, (self.now + delay_s, self.serial, what, item))

    def start_agent(self) -> None:
        """Only what the spool holds survives."""
        self.boot += 1
        self.running.clear()
        settings = CoreSettings("koubou-agent 0.1.0", "sim", uid(self.boot), 0)
        self.core = AgentCore(settings, list(self.spool.values()), HEALTHY, self.now)
        self.hang_up()
        self.at(0.1, "connect", None)

    def hang_up(self) -> None:
        if self.is_connected:
            self.do(self.core.disconnected(self.now))
        self.is_connected = self.is_known = False
        self.epoch_of_wire = object()  # what is under way in the old connection never arrives

    # The agent's side.

    def do(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(message):
                    self.say(message)
                case StartAttempt(dispatch, _):
                    self.starts.append(dispatch.attempt_uid)
                    self.running[dispatch.attempt_uid] = self.boot
                    self.at(self.random.uniform(0.5, 20.0), "end", (dispatch.attempt_uid, self.boot))
                case StopAttempt(stopped, _, _):
                    self.at(0.1, "end", (stopped, self.boot))
                case SpoolWrite(outcome):
                    self.write(outcome)
                case SpoolDelete(gone):
                    assert gone in self.recorded, f"seed {self.seed}: {gone} deleted, not recorded"
                    self.spool.pop(gone, None)
                case Log() | WipeCaches() | Exit():
                    pass
        assert len(self.running) <= SLOTS, f"seed {self.seed}: {len(self.running)} attempts at a time"
        self.core.check()

    def write(self, outcome: Outcome) -> None:
        if self.is_bad and self.random.random() < self.full_disk:
            self.do(self.core.spool_failed(outcome.attempt_uid, "full", self.now))
        else:
            self.spool[outcome.attempt_uid] = outcome
            self.do(self.core.spooled(outcome.attempt_uid, self.now))

    def say(self, message: FromAgent) -> None:
        if isinstance(message, Result | Failure):
            known = message.attempt_uid in self.spool or self.core._deliveries.in_memory
            assert known, f"seed {self.seed}: {message.attempt_uid} was told before it was kept"
        if self.is_connected:
            self.carry("broker", message)

    def carry(self, to: str, message: object) -> None:
        copies = 1
        if self.is_bad:
            copies = 0 if self.random.random() < self.loss else 1 + (self.random.random() < self.doubling)
        for _ in range(copies):
            delay_s = self.random.uniform(0.001, self.latency_s if self.is_bad else 0.01)
            self.at(delay_s, to, (self.epoch_of_wire, self.epoch, message))

    # The broker's side: it dispatches what is open, and believes nothing but what it is told.

    def hear(self, message: FromAgent) -> None:
        if isinstance(message, AgentHello):
            self.is_known = True
            self.session += 1
            self.sent_number = 0
            self.reply(a_welcome(session=self.session, slots=SLOTS))
            held = {item.uid for item in message.status.running} | set(message.status.spooled)
            self.keep_leases(held)  # the rest is requeued under new uids
        elif not self.is_known:
            self.reply(Error(Code.HELLO_REQUIRED, "who are you?"))
            return
        elif isinstance(message, Heartbeat):
            self.reply(HeartbeatAck(message.sent_ms, WorkerMode.ACTIVE))
        elif isinstance(message, Result | Failure):
            self.recorded.add(message.attempt_uid)
            self.leases.pop(message.attempt_uid, None)
            self.reply(ResultStored(message.attempt_uid, Disposition.RECORDED))
        held = {item.uid for item in message.status.running}
        for item in held & set(self.leases):
            self.leases[item] = self.now + LEASE_S
        if message.status.last_dispatch >= self.sent_number:
            self.keep_leases(held | set(message.status.spooled))
        self.keep_leases({item for item, until in self.leases.items() if until > self.now})
        free = message.status.free_slots - len(set(self.leases) - held)
        while free > 0 and self.next_uid < TASKS and len(self.leases) < SLOTS:
            self.next_uid += 1
            self.sent_number += 1
            free -= 1
            self.leases[uid(self.next_uid)] = self.now + LEASE_S
            self.reply(a_dispatch(self.sent_number, session=self.session, attempt_uid=uid(self.next_uid)))
        for item in sorted(held - set(self.leases)):
            self.reply(Abort(item, AbortReason.SUPERSEDED))

    def keep_leases(self, uids: set[str]) -> None:
        self.leases = {item: until for item, until in self.leases.items() if item in uids}

    def reply(self, message: ToAgent) -> None:
        if self.is_connected:
            self.carry("agent", message)

    def run(self) -> None:
        self.at(1.0, "mishap", None)
        while self.queue or self.core.next_deadline is not None:
            deadline = self.core.next_deadline
            next_s = self.queue[0][0] if self.queue else float("inf")
            if deadline is not None and deadline <= next_s:
                self.now = max(self.now, deadline)
                if self.now - 1000.0 > END_AT_S:
                    return
                self.do(self.core.tick(self.now))
                continue
            self.now, _, what, item = heapq.heappop(self.queue)
            if self.now - 1000.0 > END_AT_S:
                return
            self.happen(what, item)

    def happen(self, what: str, item: object) -> None:
        match what, item:
            case "connect", None:
                if not self.is_connected:
                    self.is_connected = True
                    self.do(self.core.connected(self.now))
            case "end", (str(ended), int(boot)):
                if boot == self.boot and self.running.pop(ended, None) is not None:
                    number = int(ended, 16)
                    outcome = a_success(number) if self.random.random() < 0.8 else a_failure(number)
                    self.do(self.core.ended(ended, outcome, self.now))
            case "agent", (wire, int(epoch), message):
                if wire is self.epoch_of_wire and self.is_connected:
                    self.do(self.core.receive(message, epoch, self.now))  # type: ignore[arg-type] # reply() put it there
            case "broker", (wire, int(), message):
                if wire is self.epoch_of_wire:
                    self.hear(message)  # type: ignore[arg-type] # say() put it there
            case "mishap", None:
                self.mishap()
            case _:
                raise AssertionError(what)

    def mishap(self) -> None:
        if not self.is_bad:
            return
        self.at(1.0, "mishap", None)
        if self.random.random() < self.crashes:
            self.start_agent()
        if self.random.random() < self.crashes:  # the connection
            self.hang_up()
            self.at(self.random.uniform(0.1, 20.0), "connect", None)
        if self.random.random() < self.crashes:  # the broker: its sessions are gone, its records are not
            self.epoch += 1
            self.is_known = False
        if self.random.random() < self.crashes:
            self.do(self.core.releasing(self.random.choice([0, 1]), self.now))


def planted(world: World) -> Iterator[None]:
    """The core with one of its laws broken."""
    core_class = AgentCore
    kept = {name: getattr(core_class, name) for name in ("_keep", "receive")}
    if world.bug == "speak before the spool":

        def keep(self: AgentCore, outcome: Outcome, slot_wait_ms: int) -> list[Effect]:
            self._deliveries.add(outcome)
            self._deliveries.written(outcome.attempt_uid)
            return [*self._settle(world.now), SpoolWrite(outcome)]

        setattr(core_class, "_keep", keep)  # noqa: B010 - mypy refuses an assignment to a method
    elif world.bug == "forget without an answer":

        def receive(self: AgentCore, message: ToAgent, epoch: int, now: float) -> list[Effect]:
            effects: list[Effect] = kept["receive"](self, message, epoch, now)
            gone = [e.message.attempt_uid for e in effects if isinstance(e, Send) and isinstance(e.message, Result)]
            return effects + [SpoolDelete(item) for item in gone if self._deliveries.remove(item)]

        setattr(core_class, "receive", receive)  # noqa: B010 - as above
    yield
    for name, method in kept.items():
        setattr(core_class, name, method)


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_the_wire_does_every_outcome_arrives_and_nothing_starts_twice(seed: int) -> None:
    world = World(seed)
    world.run()
    assert world.next_uid == TASKS, f"seed {seed}: the broker could not give all its work away"
    assert world.spool == {}, f"seed {seed}: undelivered {sorted(world.spool)}"
    assert len(world.starts) == len(set(world.starts)) or world.boot > 1, f"seed {seed}: started twice"
    assert world.core.status().running == (), f"seed {seed}: runs for ever"
    assert world.core.status().free_slots == SLOTS - world.core._releasing, f"seed {seed}: a slot is gone"


def test_the_same_seed_is_the_same_run() -> None:
    one, other = World(5), World(5)
    one.run()
    other.run()
    assert (one.starts, one.now, one.serial) == (other.starts, other.now, other.serial)


@pytest.mark.parametrize("bug", ["speak before the spool", "forget without an answer"])
def test_a_planted_bug_is_caught(bug: Bug) -> None:
    caught = 0
    for seed in SEEDS:
        world = World(seed, bug)
        breaking = planted(world)
        next(breaking)
        try:
            world.run()
        except AssertionError:
            caught += 1
        finally:
            next(breaking, None)
        if caught:
            return
    raise AssertionError(f"nobody noticed: {bug}")
