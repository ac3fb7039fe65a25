"""An agent of the simulation: the real core, a modelled spool, and work that ends as the seed says."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import assert_never, get_args

from koubou_agent.core import AgentCore, CoreSettings
from koubou_agent.core.core import EXIT_REMOVED
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
    WipeCaches,
)
from koubou_common.errors import ErrorClass
from koubou_common.messages import BlobChunk, BlobGet, BlobMissing, Dispatch, Message, Result, ToAgent
from sim.bodies import output_of
from sim.broker_node import BrokerNode, Connection
from sim.inputs_node import InputsModel
from sim.life import Life
from sim.models import Ollama
from sim.process import HEARTBEAT_TIMEOUT_S
from sim.spool_node import Kept, SpoolDisk
from sim.work import Work
from sim.world import World

__all__ = ["AgentNode", "Work"]

_ENDINGS = (
    ErrorClass.OLLAMA_ERROR,
    ErrorClass.CONNECTION_LOST,
    ErrorClass.RUNNER_KILLED,
    ErrorClass.STALLED,
    ErrorClass.MODEL_UNLOADABLE,
    ErrorClass.EMPTY_OUTPUT,
)
_SLOW_S = (90.0, 300.0)
_REFUSED_S = 0.2  # an Ollama that is not there says so at once
_PROBE_S = 20.0  # until a probe sees what was pulled
_FETCH_MOST_S = 600.0  # as `koubou_agent.inputs`
_TO_AGENT = get_args(ToAgent)


@dataclass(slots=True)
class AgentNode:
    """A box: what is on its disk stays, processes come and go."""

    world: World
    broker: BrokerNode
    worker_id: str
    slots: int
    work: Work
    public_key: str
    name: str = ""  # of the node; two agents may hold one worker's key
    core: AgentCore | None = None
    boots: int = 0
    is_removed: bool = False  # and waits for an invitation
    is_wanted: bool = True  # False: a process that ends is not started again
    box: SpoolDisk = field(init=False)
    _life: Life = field(init=False)
    _inputs: InputsModel = field(init=False)
    _ollama: Ollama = field(init=False)
    _cache: dict[bytes, bytes] = field(default_factory=dict)
    _fresh: dict[str, bytes] = field(default_factory=dict)  # what was said, before the spool has it
    _running: set[str] = field(default_factory=set)
    _releasing: int = 0  # calls given up that Ollama is still busy with
    _connection: Connection | None = None
    _tick_at_s: float | None = None

    def __post_init__(self) -> None:
        self.name = self.name or self.worker_id
        self.box = SpoolDisk(self.world)
        self._life = Life(self.world, self.name)
        self._life.is_alive = False
        self._inputs = InputsModel(self._cache)
        self._ollama = Ollama(self.world.seed)
        if self.world.habits.pulls_every_s:
            self._pull_models_later()

    @property
    def spool(self) -> dict[str, Outcome]:
        """What is on its disk and not delivered."""
        return {uid: kept.outcome for uid, kept in self.box.files.items()}

    def start(self) -> None:
        """A new process on the same box."""
        if self._life.is_alive or self.is_removed or not self.is_wanted:
            return
        self.boots += 1
        self._life = Life(self.world, self.name)
        self._inputs = InputsModel(self._cache)
        boot_id = hashlib.md5(f"{self.world.seed}/{self.name}/{self.boots}".encode()).hexdigest()
        settings = CoreSettings("koubou-agent", "simulated", boot_id, 0)
        self.core = AgentCore(settings, tuple(self.spool.values()), self._ollama.health(), self._life.clock_s)
        self._tick_at_s = None
        self._plan_tick()
        self._connect()

    def crash(self) -> None:
        """What ran is gone."""
        if self._life.is_alive:
            self.world.note(f"{self.name} crashes")
            self._end_life(unnoticed_s=0.0)
            self._start_later()

    def power_cut(self) -> None:
        """The box goes dark: what its disk was not forced to keep may be gone, and nobody is told."""
        self.world.note(f"the box of {self.name} loses its power")
        self._end_life(unnoticed_s=HEARTBEAT_TIMEOUT_S)
        self.box.power_cut()
        self._start_later()

    def pause(self) -> None:
        """SIGSTOP, or suspend."""
        length_s = self.world.draws.uniform(5.0, 40.0)
        self._life.pause(length_s, is_suspend=self.world.draws.random() < 0.4)
        connection = self._connection
        if connection is not None and length_s > HEARTBEAT_TIMEOUT_S:
            self._life.world.after(HEARTBEAT_TIMEOUT_S, lambda: self._silent(connection))

    def stop(self) -> None:
        """SIGTERM: it drains, ends, and is started again later."""
        core = self.core
        if core is not None and self._life.is_alive and not self._life.is_paused:
            self.world.note(f"{self.name} is asked to stop")
            self._take(core.stop(self.world.draws.choice((0.0, 10.0, 60.0)), self._life.clock_s))

    def take_key(self, public_key: str) -> None:
        """It has joined (again): a process with the new key works on with the same disk."""
        self.public_key = public_key
        self.is_removed = False
        if self._life.is_alive:
            self._end_life(unnoticed_s=0.0)
        self.start()

    def cut_off(self) -> None:
        """The network to it is gone; its link notices, and begins again."""
        self.world.partition(self.name)
        connection = self._connection
        if connection is not None:
            self.world.after(HEARTBEAT_TIMEOUT_S, lambda: self._silent(connection))

    def _silent(self, connection: Connection) -> None:
        if connection.is_open and (self._life.is_paused or self.world.is_cut_off(self.name)):
            connection.close()
            self._broken(connection)

    def _end_life(self, unnoticed_s: float) -> None:
        self._life.is_alive = False
        self.core = None
        self._running = set()
        self._releasing = 0
        self._fresh = {}
        if self.broker.bugs.no_spool:
            self.work.outcomes -= self.box.files.keys()
            self.box.lose_all()
        if self._connection is not None:
            self._connection.close(unnoticed_s=unnoticed_s)
            self._connection = None

    def _start_later(self) -> None:
        self.world.after(self.world.draws.choice((1.0, 10.0, 100.0)), self.start)

    def _broken(self, connection: Connection) -> None:
        life = self._life

        def notice() -> None:
            if self.core is None or self._connection is not connection:
                return
            self._connection = None
            self._inputs.restart()
            self._take(self.core.disconnected(life.clock_s))
            life.after(self.world.draws.uniform(0.2, 5.0), self._connect)

        if life.is_alive:
            life.after(0.0, notice)

    def _connect(self) -> None:
        core = self.core
        if core is None or self._connection is not None:
            return
        connection = self.broker.connect(self.name, self.public_key, self._receiver(core), self._broken)
        if connection is None:
            self._life.after(self.world.draws.uniform(0.2, 5.0), self._connect)
            return
        self._connection = connection
        self._inputs.restart()
        self._take(core.connected(self._life.clock_s))

    def _receiver(self, core: AgentCore) -> Callable[[Message, int, Connection], None]:
        life = self._life

        def read(message: Message, epoch: int, connection: Connection) -> None:
            if self.core is not core:
                return
            if connection is not self._connection and not self.world.happens(self.world.faults.stale):
                return
            if isinstance(message, BlobGet | BlobChunk | BlobMissing):
                if epoch >= core.epoch:
                    self._on_blob(message)
            elif isinstance(message, _TO_AGENT):
                before = core.status()
                self._take(core.receive(message, epoch, life.clock_s))
                if isinstance(message, Dispatch):
                    self.work.given(self.name, message, before, core.status())

        def reaches(message: Message, epoch: int, connection: Connection) -> None:
            life.take_in(lambda: read(message, epoch, connection))

        return reaches

    def _on_blob(self, message: BlobGet | BlobChunk | BlobMissing) -> None:
        match message:
            case BlobGet():
                self._say(self.box.piece(message, self._fresh))
            case BlobChunk():
                self._inputs.chunk(message)
            case BlobMissing(sha256):
                self._inputs.missing(sha256)
        self._pull()

    def _pull(self) -> None:
        core = self.core
        if core is None or core.worker is None:
            return
        asked = self._inputs.due(self._life.clock_s)
        for message in asked:
            self._say(message)
        if asked:
            self._life.after(15.1, self._pull)

    def _say(self, message: Message) -> None:
        if self._connection is not None:
            self._connection.say(message)

    def _take(self, effects: list[Effect]) -> None:
        life = self._life
        for effect in effects:
            if not life.is_alive:
                return
            self._do(effect)
        if self.core is not None:
            self.core.check()
            self._plan_tick()
            self._pull()

    def _do(self, effect: Effect) -> None:
        core = self.core
        assert core is not None
        match effect:
            case Send(message):
                if isinstance(message, Result) and self.broker.is_whole:
                    message = self.box.with_text(message, self._fresh)
                self._say(message)
            case StartAttempt(dispatch):
                self._start(core, dispatch)
            case StopAttempt(uid):
                delay_s = self.world.draws.choice((0.01, 0.01, 8.0))
                self._life.after(delay_s, lambda: self._stopped(core, uid))
            case SpoolWrite(outcome):
                self._write(core, outcome)
            case SpoolDelete(uid):
                if self.box.delete(uid) is not None:
                    # What a broker says whose database was taken back since, was true when it said so.
                    self.work.let_go(uid, counts=core.epoch >= self.broker.restored_epoch)
                self._fresh.pop(uid, None)
            case WipeCaches():
                self._cache.clear()
                self.work.wiped += 1
            case Exit(code):
                self.world.note(f"{self.name} ends with code {code}")
                self.is_removed = code == EXIT_REMOVED
                removed = self.broker.has_removed(self.public_key, core.epoch)
                assert removed or not self.is_removed, f"{self.name} leaves, and nobody removed it"
                self._end_life(unnoticed_s=0.0)
                self._start_later()
            case Log():
                pass
            case _:
                assert_never(effect)

    def _start(self, core: AgentCore, dispatch: Dispatch) -> None:
        uid = dispatch.attempt_uid
        assert uid not in self.work.started, f"{self.name}: attempt {uid} is begun a second time"
        self._running.add(uid)
        self.work.started.append(uid)
        self.work.begun_s[uid] = self.world.now_s
        running = len(self._running) + self._releasing
        self.work.most_at_once[self.name] = max(running, self.work.most_at_once.get(self.name, 0))
        assert running <= self.slots, f"{self.name} runs {running} of {self.slots}"
        if not self.broker.is_whole:
            self._run(core, dispatch)
            return
        core.progress(uid, "fetching", 0)
        life = self._life

        def ready(are_there: bool) -> None:
            if not life.is_alive or uid not in self._running:
                return
            if are_there:
                self._run(core, dispatch)
            else:
                life.after(0.0, lambda: self._end(core, uid, Failed(uid, ErrorClass.INPUTS_UNAVAILABLE, "not there")))

        self._inputs.want(dispatch, ready)
        life.after(_FETCH_MOST_S, lambda: self._inputs.fail(uid))
        life.after(0.0, self._pull)

    def _run(self, core: AgentCore, dispatch: Dispatch) -> None:
        uid, faults = dispatch.attempt_uid, self.world.faults
        core.progress(uid, "answering", 1)
        self.work.answerers[uid] = dispatch.model, self._ollama.digest_of(dispatch.model)
        if self._ollama.load(dispatch.model):
            self.work.loads += 1
            self._life.after(0.0, lambda: self._probe(core))
        seconds = self.world.draws.choice(_SLOW_S if faults.slow_work else (0.5, 5.0, 20.0, 90.0))
        if self._is_outage():
            seconds = _REFUSED_S
        elif not self.world.healed and int.from_bytes(dispatch.prompt.sha256[:4]) < faults.poison * 2**32:
            self._life.after(seconds, self.crash)
            return
        self._life.after(seconds, lambda: self._came_to_its_end(core, uid))

    def _pull_models_later(self) -> None:
        """`ollama pull`, on a healed box too: a task that keeps to one version waits until it is back."""

        def pull() -> None:
            self._ollama.pull()
            core = self.core
            if core is not None:  # which hears of it when it looks the next time
                self._life.after(self.world.draws.uniform(0.0, _PROBE_S), lambda: self._probe(core))
            self._pull_models_later()

        self.world.after(self.world.draw_s(self.world.habits.pulls_every_s), pull)

    def _probe(self, core: AgentCore) -> None:
        if self.core is core:
            self._take(core.health(self._ollama.health(), self._life.clock_s))

    def _came_to_its_end(self, core: AgentCore, uid: str) -> None:
        if self.core is core and uid in self._running:
            self._end(core, uid, self._outcome(uid))

    def _is_outage(self) -> bool:
        return not self.world.healed and self.world.now_s < self.work.outage_until_s

    def _outcome(self, uid: str) -> Outcome:
        if self._is_outage():
            return Failed(uid, ErrorClass.OLLAMA_UNREACHABLE, "no Ollama answers")
        if self.world.happens(self.world.faults.fails):
            error_class = self.world.draws.choice(_ENDINGS)
            return Failed(uid, error_class, "simulated failure")
        raw = output_of(uid, self.world.draws) if self.broker.is_whole else f"output of {uid}".encode()
        self._fresh[uid] = raw
        return self.work.said(uid, raw)

    def _stopped(self, core: AgentCore, uid: str) -> None:
        """The attempt is over; the slot is free once Ollama is."""
        mean_s = 0.0 if self.world.healed else self.world.faults.releasing_s
        if mean_s and self.core is core and uid in self._running:
            self._release(core, 1)
            self._life.after(self.world.draw_s(mean_s), lambda: self._release(core, -1))
        self._end(core, uid, None)

    def _release(self, core: AgentCore, calls: int) -> None:
        self._releasing += calls
        self._take(core.releasing(self._releasing, self._life.clock_s))

    def _end(self, core: AgentCore, uid: str, outcome: Outcome | None) -> None:
        if self.core is core and uid in self._running:
            self._running.discard(uid)
            if all(held.uid != uid for held in core.status().running):
                self.work.produced.pop(uid, None)  # it was handed back, and came to its end before it was stopped
            self.work.ollama_s += self.world.now_s - self.work.begun_s[uid]
            self._inputs.give_up(uid)
            self._take(core.ended(uid, outcome, self._life.clock_s))

    def _write(self, core: AgentCore, outcome: Outcome) -> None:
        """Write, fsync, rename, fsync the folder; it may be killed between any two."""
        uid = outcome.attempt_uid
        life = self._life
        kept = Kept(outcome, self._fresh.get(uid, b""))

        def written() -> None:
            if self.world.happens(self.world.faults.spool_full):
                self._take(core.spool_failed(uid, "no space left on device", life.clock_s))
            elif not self._may_die():
                self.box.rename(kept)
                if self._may_die():
                    return
                life.after(self.world.draw_s(0.002), folder_synced)

        def folder_synced() -> None:
            self.box.sync_folder(uid)
            confirmed()

        def confirmed() -> None:
            self.work.outcomes.add(uid)
            if self._may_die():
                return
            self._take(core.spooled(uid, life.clock_s))

        if self.broker.bugs.spool_unsynced:
            self.box.rename(kept)
            life.after(0.0, confirmed)
        else:
            life.after(self.world.draw_s(0.005), written)

    def _may_die(self) -> bool:
        if self._life.is_alive and self.world.happens(self.world.faults.agent_crash_at_step):
            self.world.fault(f"{self.name} is killed while it writes its spool")
            self.crash()
        return not self._life.is_alive

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
                self._take(core.tick(self._life.clock_s))

        self._life.after(max(0.0, deadline - self._life.clock_s) + 0.001, tick)
