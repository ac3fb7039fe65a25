"""Does what the timetable says: kills, stops, restarts, faults; starts again what fell, notes every incident."""

import os
import signal
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto

from chaos.grounds import BOXED, Grounds
from chaos.netns import Box
from chaos.timetable import Act, Cast, Deed
from koubou_simulator.workshop import Process

BROKER = "broker"
_TURN_S = 0.01
_END_MOST_S = 30.0  # from SIGTERM; the agents' own grace is shorter
_AGAIN_S = 1.0  # pause before what ended by itself is started again


@dataclass(frozen=True, slots=True)
class Incident:
    """Something that was done, in wall-clock milliseconds as the broker's events have them."""

    at_ms: int
    what: str
    victim: str
    lasts_s: float = 0.0
    detail: str = ""

    def __str__(self) -> str:
        lasts = f" for {self.lasts_s:.1f} s" if self.lasts_s else ""
        return f"{self.what} {self.victim}{lasts}{f' ({self.detail})' if self.detail else ''}"


class _State(Enum):
    UP = auto()
    FROZEN = auto()
    DOWN = auto()
    ENDING = auto()


@dataclass(slots=True)
class _Actor:
    process: Process
    state: _State = _State.UP
    until_s: float = 0.0
    pause_s: float = 0.0


class Storm:
    """One run's troublemaker; `incidents`, which the proxy adds to as well, and `troubles` are its report."""

    def __init__(self, grounds: Grounds, incidents: list[Incident], box: Box | None = None) -> None:
        self.incidents = incidents
        self.troubles: list[str] = []  # what a product that works would not do
        self._grounds = grounds
        self._box = box
        self._link_until_s: float | None = None
        self._actors = {
            BROKER: _Actor(grounds.workshop.broker),
            **{one.worker_id: _Actor(one.agent) for one in grounds.boxes},
            **{f"ollama {one.worker_id}": _Actor(one.ollama_process) for one in grounds.boxes},
            **{one.name: _Actor(one.program) for one in grounds.clients},
        }
        self._ollamas = {f"ollama {one.worker_id}": one.ollama for one in grounds.boxes}

    @property
    def cast(self) -> Cast:
        """Who can be hit; the control interface of an Ollama in a namespace cannot be reached from here."""
        workers = tuple(one.worker_id for one in self._grounds.boxes)
        return Cast(
            broker=BROKER,
            agents=workers,
            clients=tuple(one.name for one in self._grounds.clients),
            ollamas=tuple(f"ollama {worker}" for worker in workers if worker != BOXED),
            boxed=(BOXED,) if self._box else (),
        )

    def blow(self, acts: Sequence[Act]) -> None:
        """Do it all, each act in its time."""
        began_s = time.monotonic()
        with ThreadPoolExecutor(1, "ollama-faults") as pool:
            for act in acts:
                while time.monotonic() < began_s + act.at_s:
                    self._look_after()
                    time.sleep(_TURN_S)
                self._do(act, pool)

    def calm(self) -> None:
        """Undo everything that lasts, and have everybody up again."""
        if self._box and self._link_until_s is not None:
            self._box.link(up=True)
            self._link_until_s = None
        self._grounds.proxy.heal()
        for actor in self._actors.values():
            if actor.state in (_State.FROZEN, _State.DOWN):
                actor.until_s = 0.0
        while any(actor.state is not _State.UP for actor in self._actors.values()):
            self._look_after()
            time.sleep(_TURN_S)
        for name in self.cast.ollamas:
            self._ollamas[name].no_faults()

    def watch(self) -> None:
        """In calm weather too, whatever ends by itself is trouble; clients may end well, their work is done."""
        self._look_after(clients_may_end=True)

    def _do(self, act: Act, pool: ThreadPoolExecutor) -> None:
        if act.deed is Deed.LINK_DOWN:
            self._pull_link(act)
            return
        actor = self._actors[act.victim]
        if actor.state is not _State.UP or not actor.process.is_alive():
            return  # it is down or stopped: left alone until it is up
        now_s = time.monotonic()
        match act.deed:
            case Deed.KILL:
                self._note(act.deed, act.victim)
                actor.process.kill()
                actor.state, actor.until_s = _State.DOWN, now_s + act.lasts_s
            case Deed.FREEZE:
                self._note(act.deed, act.victim, act.lasts_s)
                os.kill(actor.process.pid, signal.SIGSTOP)
                actor.state, actor.until_s = _State.FROZEN, now_s + act.lasts_s
            case Deed.RESTART:
                self._note(act.deed, act.victim)
                os.kill(actor.process.pid, signal.SIGTERM)
                actor.state, actor.until_s, actor.pause_s = _State.ENDING, now_s + _END_MOST_S, act.lasts_s
            case Deed.OLLAMA_FAULT:
                pool.submit(self._spoil, act)

    def _spoil(self, act: Act) -> None:
        with suppress(OSError):  # it was stopped meanwhile
            detail = {name: value for name, value in act.detail.items() if name != "kind"}
            self._ollamas[act.victim].fault(str(act.detail["kind"]), **detail)
            self._note(act.deed, act.victim, detail=str(act.detail["kind"]))

    def _pull_link(self, act: Act) -> None:
        assert self._box is not None
        if self._link_until_s is not None:
            return
        self._note(act.deed, act.victim, act.lasts_s)
        self._box.link(up=False)
        self._link_until_s = time.monotonic() + act.lasts_s

    def _look_after(self, *, clients_may_end: bool = False) -> None:
        now_s = time.monotonic()
        if self._box and self._link_until_s is not None and now_s >= self._link_until_s:
            self._box.link(up=True)
            self._link_until_s = None
        clients = {one.name for one in self._grounds.clients} if clients_may_end else set()
        for name, actor in self._actors.items():
            match actor.state:
                case _State.UP if not actor.process.is_alive() and not (name in clients and actor.process.ended_well):
                    self._ended_by_itself(name, actor)
                    actor.state, actor.until_s = _State.DOWN, now_s + _AGAIN_S
                case _State.DOWN if now_s >= actor.until_s:
                    actor.process.start()
                    actor.state = _State.UP
                case _State.FROZEN if now_s >= actor.until_s:
                    os.kill(actor.process.pid, signal.SIGCONT)
                    actor.state = _State.UP
                case _State.ENDING:
                    self._ending(name, actor, now_s)
                case _:
                    pass

    def _ended_by_itself(self, name: str, actor: _Actor) -> None:
        assert actor.process.popen is not None
        code = actor.process.popen.returncode
        if code == -signal.SIGKILL and name.startswith("client_"):
            self._note(Deed.KILL, name, detail="by itself, between an answer and its note")
        else:
            self.troubles.append(f"{name} ended by itself with code {code}")

    def _ending(self, name: str, actor: _Actor, now_s: float) -> None:
        if actor.process.is_alive():
            if now_s < actor.until_s:
                return
            self.troubles.append(f"{name} did not end within {_END_MOST_S:.0f} s of SIGTERM")
            actor.process.kill()
        assert actor.process.popen is not None
        if (code := actor.process.popen.wait()) not in (0, -signal.SIGTERM):  # the latter: it was just starting
            self.troubles.append(f"{name} ended with code {code} upon SIGTERM")
        actor.state, actor.until_s = _State.DOWN, now_s + actor.pause_s

    def _note(self, what: str, victim: str, lasts_s: float = 0.0, detail: str = "") -> None:
        self.incidents.append(Incident(now_ms(), what, victim, lasts_s, detail))


def now_ms() -> int:
    """The wall clock as the broker's events have it."""
    return time.time_ns() // 1_000_000
