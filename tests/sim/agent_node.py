"""An agent of the simulation: the real core, a modelled spool, and work that ends as the seed says."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import assert_never

from koubou_agent.core import AgentCore, CoreSettings
from koubou_agent.effects import (
    Effect,
    Exit,
    Failed,
    Log,
    Outcome,
    Send,
    SpoolDelete,
    SpoolWrite,
    StartAttempt,
    StopAttempt,
    Success,
    WipeCaches,
)
from koubou_broker.effects import Peer
from koubou_common.errors import ErrorClass
from koubou_common.messages import FromBroker
from koubou_common.messages.values import AgentHealth, Body, Metrics, ModelSeen, Role
from sim.broker_node import BrokerNode
from sim.world import World

_ENDINGS = (
    ErrorClass.OLLAMA_ERROR,
    ErrorClass.CONNECTION_LOST,
    ErrorClass.RUNNER_KILLED,
    ErrorClass.STALLED,
    ErrorClass.MODEL_UNLOADABLE,
    ErrorClass.EMPTY_OUTPUT,
)


@dataclass(slots=True)
class Work:
    """What happened anywhere, for the checker: which attempts ran, what they made, which spools let go of."""

    produced: dict[str, bytes] = field(default_factory=dict)  # attempt uid -> sha256 of its output
    started: list[str] = field(default_factory=list)
    forgotten: set[str] = field(default_factory=set)  # outcomes that were in a spool and no longer are
    outcomes: set[str] = field(default_factory=set)


@dataclass(slots=True)
class AgentNode:
    """Crashes lose what runs and what the spool had not written; the spool stays."""

    world: World
    broker: BrokerNode
    worker_id: str
    slots: int
    work: Work
    core: AgentCore | None = None
    spool: dict[str, Outcome] = field(default_factory=dict)
    boots: int = 0
    _running: set[str] = field(default_factory=set)
    _connection: int | None = None
    _tick_at_s: float | None = None

    @property
    def peer(self) -> Peer:
        """Its key and name."""
        return Peer(self.worker_id.ljust(40, "a"), self.worker_id, Role.WORKER)

    def start(self) -> None:
        """A new process on the same box."""
        self.boots += 1
        boot_id = hashlib.md5(f"{self.world.seed}/{self.worker_id}/{self.boots}".encode()).hexdigest()
        settings = CoreSettings("koubou-agent", "simulated", boot_id, 0)
        health = AgentHealth(True, "0.24.0", (ModelSeen("m:latest"),))
        self.core = AgentCore(settings, tuple(self.spool.values()), health, self.world.now_s)
        self._tick_at_s = None
        self._plan_tick()
        self._connect()

    def crash(self) -> None:
        """What ran is gone."""
        if self.core is None:
            return
        self.world.note(f"{self.worker_id} crashes")
        self.core = None
        self._running = set()
        if self._connection is not None:
            self.broker.disconnect(self._connection)
            self._connection = None
        self.world.after(self.world.draws.choice((1.0, 10.0, 100.0)), self.start)

    def cut_off(self) -> None:
        """The network to it is gone; its link notices, and begins again."""
        self.world.partition(self.worker_id)
        self.world.after(4.0, self._break)

    def _break(self) -> None:
        if self._connection is not None:
            self.broker.disconnect(self._connection)
        self._broken()

    def _broken(self) -> None:
        if self.core is None or self._connection is None:
            return
        self._connection = None
        self._take(self.core.disconnected(self.world.now_s))
        self.world.after(self.world.draws.uniform(0.2, 5.0), self._connect)

    def _connect(self) -> None:
        core = self.core
        if core is None or self._connection is not None:
            return
        number = self.broker.connect(self.worker_id, self.peer, self._receiver(core), self._broken)
        if number is None:
            self.world.after(self.world.draws.uniform(0.2, 5.0), self._connect)
            return
        self._connection = number
        self._take(core.connected(self.world.now_s))

    def _receiver(self, core: AgentCore) -> Callable[[FromBroker, int], None]:
        def reaches(message: FromBroker, epoch: int) -> None:
            if self.core is core:
                self._take(core.receive(message, epoch, self.world.now_s))  # type: ignore[arg-type]  # to agents only

        return reaches

    def _take(self, effects: list[Effect]) -> None:
        for effect in effects:
            self._do(effect)
        if self.core is not None:
            self.core.check()
            self._plan_tick()

    def _do(self, effect: Effect) -> None:
        core = self.core
        assert core is not None
        match effect:
            case Send(message):
                number = self._connection
                if number is not None:
                    self.world.deliver(self.worker_id, lambda: self.broker.arrives(number, message))
            case StartAttempt(dispatch):
                self._start(core, dispatch.attempt_uid)
            case StopAttempt(uid):
                self.world.after(self.world.draws.choice((0.01, 0.01, 8.0)), lambda: self._end(core, uid, None))
            case SpoolWrite(outcome):
                self._write(core, outcome)
            case SpoolDelete(uid):
                if self.spool.pop(uid, None) is not None:
                    self.work.forgotten.add(uid)
            case Exit() | WipeCaches():
                raise AssertionError(f"{self.worker_id}: {effect} although nobody removed it")
            case Log():
                pass
            case _:
                assert_never(effect)

    def _start(self, core: AgentCore, uid: str) -> None:
        assert uid not in self.work.started, f"{self.worker_id}: attempt {uid} is begun a second time"
        self._running.add(uid)
        self.work.started.append(uid)
        assert len(self._running) <= self.slots, f"{self.worker_id} runs {len(self._running)} of {self.slots}"
        seconds = self.world.draws.choice((0.5, 5.0, 20.0, 90.0))
        core.progress(uid, "answering", 1)
        self.world.after(seconds, lambda: self._end(core, uid, self._outcome(uid)))

    def _outcome(self, uid: str) -> Outcome:
        if not self.world.healed and self.world.draws.random() < 0.15:
            error_class = self.world.draws.choice(_ENDINGS)
            return Failed(uid, error_class, "simulated failure")
        output = f"output of {uid}".encode()
        sha256 = hashlib.sha256(output).digest()
        self.work.produced[uid] = sha256
        return Success(uid, Body(sha256, len(output)), 0, len(output), (), "m", "", Metrics(output_tokens=3), "")

    def _end(self, core: AgentCore, uid: str, outcome: Outcome | None) -> None:
        if self.core is core and uid in self._running:
            self._running.discard(uid)
            self._take(core.ended(uid, outcome, self.world.now_s))

    def _write(self, core: AgentCore, outcome: Outcome) -> None:
        uid = outcome.attempt_uid
        full = not self.world.healed and self.world.draws.random() < self.world.faults.spool_full

        def written() -> None:
            if self.core is not core:
                return  # the crash came before the fsync
            if full:
                self._take(core.spool_failed(uid, "no space left on device", self.world.now_s))
                return
            self.spool[uid] = outcome
            self.work.outcomes.add(uid)
            self._take(core.spooled(uid, self.world.now_s))

        self.world.after(self.world.draws.expovariate(1 / 0.005), written)

    def _plan_tick(self) -> None:
        core = self.core
        assert core is not None
        deadline = core.next_deadline
        if deadline is None or (self._tick_at_s is not None and self._tick_at_s <= deadline):
            return
        self._tick_at_s = deadline

        def tick() -> None:
            if self.core is core and self._tick_at_s == deadline:
                self._tick_at_s = None
                self._take(core.tick(self.world.now_s))

        self.world.after(max(0.0, deadline - self.world.now_s) + 0.001, tick)
