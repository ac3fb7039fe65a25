"""The door of the agent's core: what happens goes in, what to do about it comes out."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import assert_never

from koubou_agent.core.attempts import Attempts, Held
from koubou_agent.core.deliveries import Deliveries, to_message
from koubou_agent.core.session import Session
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
from koubou_common.errors import Code, ErrorClass
from koubou_common.messages import (
    PROTO_MAX,
    PROTO_MIN,
    Abort,
    AgentHello,
    Dispatch,
    Error,
    Goodbye,
    Heartbeat,
    HeartbeatAck,
    Removed,
    ResultStored,
    ToAgent,
    Welcome,
)
from koubou_common.messages.values import (
    AbortReason,
    AgentHealth,
    AgentStatus,
    WorkerConfig,
    WorkerMode,
)

VERSION_AGAIN_S = 60.0  # a broker without a common protocol version changes by an upgrade only
FAREWELL_S = 3.0  # what a stopping agent waits for the broker to store its last outcomes
SLOTS_UNKNOWN = 256  # free slots said before the first Welcome: the broker's own count is the smaller one
SPOOLED_MOST = 5_000  # outcomes kept before no more work is taken; a status lists at most 10,000
DISK_DOUBT_S = 10.0  # after the broker took what the disk refused: the probe has looked at the disk twice meanwhile
EXIT_REMOVED = 4  # not authorised any more

_FEWER_SLOTS = (
    "the workshop allows this worker {} tasks at a time, this box {}: if OLLAMA_NUM_PARALLEL of its Ollama is more,"
    " say so with ollama_parallel in agent.yaml"
)
_HANDED_BACK = "handed back: the agent is stopping"
_DRAINED = "handed back: the worker is draining and had not begun"


@dataclass(frozen=True, slots=True)
class CoreSettings:
    """What the core knows of its own process."""

    software: str
    platform: str
    boot_id: str  # 32 hex digits, new at each start
    slots_ceiling: int  # 0: none


class AgentCore:
    """Holds attempts and outcomes, and decides what the broker hears; `now` is monotonic, in seconds."""

    def __init__(self, settings: CoreSettings, spooled: Iterable[Outcome], health: AgentHealth, now: float) -> None:
        self._settings = settings
        self._attempts = Attempts()
        self._deliveries = Deliveries(spooled)
        self._probe = health
        self._said_health: AgentHealth | None = None  # in this session
        self._news_ms: int | None = None  # when it was first said by heartbeat; None: known to have arrived
        self._spool_problem = ""
        self._doubt_until_s = 0.0  # after the spool's disk refused something: no work before it is looked at again
        self._releasing = 0
        self._sequence = 0  # of the last status said, over all sessions: the broker starts anew with each
        self._session = Session(now)
        self._worker: WorkerConfig | None = None
        self._mode = WorkerMode.ACTIVE
        self._stop_at_s: float | None = None
        self._farewell_at_s: float | None = None
        self._over = False

    # What happens on the wire.

    def connected(self, now: float) -> list[Effect]:
        """The link has a new connection to the broker."""
        if self._over:
            return []
        self._session.connected()
        return self._hello(now)

    def disconnected(self, now: float) -> list[Effect]:
        """The connection is gone; what runs goes on running."""
        self._session.disconnected()
        return self._settle(now)

    def receive(self, message: ToAgent, epoch: int, now: float) -> list[Effect]:
        """A message of the broker's term `epoch`; those of an earlier term are ignored."""
        session = self._session
        if self._over or not session.is_connected or epoch < session.epoch:
            return []
        effects: list[Effect] = []
        if epoch > session.epoch:
            session.epoch = epoch
            if session.is_open and not isinstance(message, Welcome | Removed):
                session.forgotten(now)  # another broker process: it does not know this session
                effects += self._hello(now)
        session.heard(now)
        match message:
            case Welcome():
                effects += self._welcome(message, now)
            case Dispatch():
                effects += self._dispatch(message, now)
            case Abort():
                effects += self._abort(message, now)
            case ResultStored(uid, disposition):
                if self._deliveries.remove(uid):
                    effects.append(SpoolDelete(uid))
                    effects.append(Log(logging.INFO, f"attempt={uid} outcome stored: {disposition}"))
            case HeartbeatAck(sent_ms, mode):
                session.echoed(sent_ms, now)
                if self._news_ms is not None and sent_ms >= self._news_ms:
                    self._news_ms = None
                effects += self._set_mode(mode, now)
            case Removed():
                return effects + self._removed()
            case Error():
                effects += self._error(message, now)
            case _:
                assert_never(message)
        return effects + self._settle(now)

    # What happens on this box.

    def progress(self, uid: str, phase: str, tokens: int) -> None:
        """How far an attempt is; the next heartbeat says so."""
        held = self._attempts.get(uid)
        if held is not None:
            held.phase, held.tokens = phase, tokens

    def ended(self, uid: str, outcome: Outcome | None, now: float) -> list[Effect]:
        """An attempt is over; None where it was stopped and has nothing to say."""
        held = self._attempts.end(uid)
        if held is None or self._over:
            return []
        if held.aborted is not None and not _wanted_although_aborted(held.aborted, outcome):
            self._session.heartbeat_at_s = now  # the broker learns by its absence that the slot is free
            return self._settle(now)
        if outcome is None:
            outcome = Failed(uid, ErrorClass.AGENT_ERROR, "the attempt ended without an outcome")
        return self._keep(outcome, held.slot_wait_ms) + self._settle(now)

    def spooled(self, uid: str, now: float) -> list[Effect]:
        """An outcome is durable here."""
        if not self._deliveries.in_memory_but(uid):
            self._spool_problem = ""
        if not self._deliveries.written(uid):
            return [SpoolDelete(uid)]  # the broker stored it while it was held in memory
        return self._settle(now)

    def spool_failed(self, uid: str, problem: str, now: float) -> list[Effect]:
        """The disk refused an outcome: it is kept in memory and sent, and no more work is taken."""
        self._deliveries.refused(uid, now)
        self._spool_problem = problem
        self._doubt_until_s = now + DISK_DOUBT_S
        return [Log(logging.ERROR, f"attempt={uid} kept in memory only: {problem}"), *self._settle(now)]

    def health(self, health: AgentHealth, now: float) -> list[Effect]:
        """What the probe saw."""
        self._probe = health
        return self._settle(now)

    def releasing(self, calls: int, now: float) -> list[Effect]:
        """How many calls of ended attempts still keep Ollama busy: their slots are not free yet."""
        if calls < self._releasing:
            self._session.heartbeat_at_s = now
        self._releasing = calls
        return self._settle(now)

    def stop(self, grace_s: float, now: float) -> list[Effect]:
        """Asked to end: finish within `grace_s`, then hand back; asked again, `grace_s` bounds all of it."""
        if self._over:
            return []
        end_s = now + grace_s
        if self._stop_at_s is None:
            self._stop_at_s = end_s
        else:
            self._stop_at_s = min(end_s, self._stop_at_s)
            self._farewell_at_s = end_s if self._farewell_at_s is None else min(end_s, self._farewell_at_s)
        self._session.heartbeat_at_s = now
        return self._hand_back_waiting(_HANDED_BACK, now) + self._settle(now)

    def tick(self, now: float) -> list[Effect]:
        """Time passed."""
        return self._settle(now)

    @property
    def next_deadline(self) -> float | None:
        """When `tick` has something to do; None: only when something happens."""
        if self._over:
            return None
        times = [self._session.next_deadline(), self._deliveries.next_write_s()]
        if self._session.is_open:
            times.append(self._deliveries.next_send_s())
        if self._spool_problem and not self._deliveries.in_memory:
            times.append(self._doubt_until_s)
        times.append(self._stop_at_s if len(self._attempts) else self._farewell_at_s)
        return min((time for time in times if time is not None), default=None)

    @property
    def epoch(self) -> int:
        """The broker's term; what comes from an earlier one is ignored."""
        return self._session.epoch

    @property
    def worker(self) -> WorkerConfig | None:
        """The worker's settings, while there is a session."""
        return self._worker if self._session.is_open else None

    @property
    def summary(self) -> str:
        """One line for the service manager and the log."""
        broker = "connected" if self._session.is_open else "no broker"
        state = "stopping" if self._stop_at_s is not None else str(self._mode)
        return f"{broker}, {state}, {len(self._attempts)} running, {len(self._deliveries)} to deliver"

    def status(self) -> AgentStatus:
        """What is held, as every message that matters says it; its number is that of the last one said."""
        return AgentStatus(
            running=self._attempts.progress(),
            spooled=tuple(self._deliveries),
            free_slots=self._free_slots(),
            last_dispatch=self._session.last_dispatch,
            releasing=self._releasing,
            sequence=self._sequence,
        )

    def check(self) -> None:
        """Assert what must hold between any two calls."""
        held = {item.dispatch.attempt_uid for item in self._attempts}
        assert not held & set(self._deliveries), "an attempt both runs and has ended"
        assert self._session.is_connected or not self._session.is_open, "a session without a connection"
        assert self._free_slots() >= 0, "negative free slots"
        assert not (self._stop_at_s is not None and self._attempts.waiting()), "waits although stopping"
        if self._stop_at_s is not None or self._deliveries.in_memory:
            assert self._free_slots() == 0, "offers slots it must not offer"
        if self._worker is not None and not self._over:
            room = self._slots() - self._attempts.started - self._releasing
            assert room <= 0 or not self._attempts.waiting(), "waits beside a free slot"

    # Messages, one by one.

    def _welcome(self, message: Welcome, now: float) -> list[Effect]:
        effects: list[Effect] = []
        if not self._session.is_open:
            self._deliveries.restart(now)
            effects.append(Log(logging.INFO, f"agent={message.worker.worker_id} welcome, session={message.session}"))
        ceiling = self._settings.slots_ceiling
        if 0 < ceiling < message.worker.slots and (self._worker is None or self._worker.slots != message.worker.slots):
            effects.append(Log(logging.WARNING, _FEWER_SLOTS.format(message.worker.slots, ceiling)))
        self._session.welcome(message, now)
        self._worker = message.worker
        return effects + self._set_mode(message.mode, now)

    def _dispatch(self, message: Dispatch, now: float) -> list[Effect]:
        if message.session != self._session.number:
            return []  # of a session that is over: the broker took it back when the next one began
        uid = message.attempt_uid
        self._session.last_dispatch = max(self._session.last_dispatch, message.number)
        if self._attempts.was_here(uid) or uid in self._deliveries:
            return []
        self._attempts.add(message, now)
        if self._stop_at_s is not None:
            return self._hand_back_waiting(_HANDED_BACK, now)
        return [Log(logging.INFO, f"task={message.task_id} attempt={uid} received")]

    def _abort(self, message: Abort, now: float) -> list[Effect]:
        held = self._attempts.get(message.attempt_uid)
        if held is None or held.aborted is not None:
            return []  # a spooled outcome stays until ResultStored, whatever became of the task
        effects: list[Effect] = [
            Log(logging.INFO, f"attempt={message.attempt_uid} aborted by the broker: {message.reason}")
        ]
        if held.started:
            held.aborted = message.reason
            return [*effects, StopAttempt(message.attempt_uid, None, str(message.reason))]
        self._attempts.end(message.attempt_uid)
        self._session.heartbeat_at_s = now
        return effects

    def _set_mode(self, mode: WorkerMode, now: float) -> list[Effect]:
        self._mode = mode
        return self._hand_back_waiting(_DRAINED, now) if mode is WorkerMode.DRAINING else []

    def _removed(self) -> list[Effect]:
        effects: list[Effect] = []
        for held in self._attempts:
            if held.started and held.aborted is None:
                held.aborted = AbortReason.OVER
                effects.append(StopAttempt(held.dispatch.attempt_uid, None, "this worker was removed"))
        self._over = True
        text = "this worker was removed from the workshop by an operator; to come back, join with a new token"
        return [*effects, WipeCaches(), Exit(EXIT_REMOVED, text)]

    def _error(self, message: Error, now: float) -> list[Effect]:
        if message.code is Code.HELLO_REQUIRED:
            self._session.forgotten(now)
            return []
        if message.code is Code.VERSION:
            self._session.forgotten(now + VERSION_AGAIN_S)
        return [Log(logging.WARNING, f"the broker says: {message.message} {message.hint}".rstrip())]

    # What follows from whatever happened.

    def _settle(self, now: float) -> list[Effect]:
        """Start what fits, say what is due, end when nothing is left."""
        if self._over:
            return []
        effects = self._start_waiting(now)
        effects += self._hand_back_running(now)
        if not self._deliveries.in_memory and now >= self._doubt_until_s:
            self._spool_problem = ""
        effects += [SpoolWrite(outcome) for outcome in self._deliveries.to_write(now)]
        if self._session.is_silent(now):
            self._session.forgotten(now)  # connected, yet silent: ask who is there
        if self._session.is_open:
            effects += [Send(to_message(outcome, self._next_status())) for outcome in self._deliveries.to_send(now)]
            if now >= self._session.heartbeat_at_s or self._said_health != self._health():
                effects.append(Send(self._heartbeat(now)))
        elif self._session.is_connected and now >= self._session.hello_at_s:
            effects += self._hello(now)
        return effects + self._finish(now)

    def _hello(self, now: float) -> list[Effect]:
        self._session.hello_said(now)
        self._said_health = self._health()
        self._news_ms = int(now * 1000)
        settings = self._settings
        return [
            Send(
                AgentHello(
                    proto_min=PROTO_MIN,
                    proto_max=PROTO_MAX,
                    software=settings.software,
                    platform=settings.platform,
                    boot_id=settings.boot_id,
                    slots_ceiling=settings.slots_ceiling,
                    status=self._next_status(),
                    health=self._said_health,
                )
            )
        ]

    def _heartbeat(self, now: float) -> Heartbeat:
        health, now_ms = self._health(), int(now * 1000)
        if health != self._said_health:
            self._said_health, self._news_ms = health, now_ms
        # Said again until it is known to have arrived: a worker that seems unfit would get nothing for ever.
        news = health if self._news_ms is not None else None
        self._session.heartbeat_said(now)
        return Heartbeat(now_ms, self._session.latency_ms, self._next_status(), news)

    def _next_status(self) -> AgentStatus:
        """To be said now: whoever hears it after a later one knows."""
        self._sequence += 1
        return self.status()

    def _keep(self, outcome: Outcome, slot_wait_ms: int) -> list[Effect]:
        outcome = replace(outcome, metrics=replace(outcome.metrics, slot_wait_ms=slot_wait_ms))
        self._deliveries.add(outcome)
        return [SpoolWrite(outcome)]

    def _start_waiting(self, now: float) -> list[Effect]:
        if self._worker is None:
            return []
        room = self._slots() - self._attempts.started - self._releasing
        effects: list[Effect] = []
        for held in self._attempts.waiting()[: max(0, room)]:
            held.start(now)
            effects.append(StartAttempt(held.dispatch, self._worker))
        return effects

    def _hand_back_waiting(self, why: str, now: float) -> list[Effect]:
        return [effect for held in self._attempts.waiting() for effect in self._hand_back(held, why, now)]

    def _hand_back_running(self, now: float) -> list[Effect]:
        """The grace is over: what still runs is stopped and given back, its own outcome is not waited for."""
        if self._stop_at_s is None or now < self._stop_at_s:
            return []
        effects: list[Effect] = []
        for held in list(self._attempts):
            uid = held.dispatch.attempt_uid
            effects.append(StopAttempt(uid, ErrorClass.DRAIN, _HANDED_BACK))
            if held.aborted is None:
                effects += self._hand_back(held, _HANDED_BACK, now)
            else:
                self._attempts.end(uid)
        return effects

    def _hand_back(self, held: Held, why: str, now: float) -> list[Effect]:
        uid = held.dispatch.attempt_uid
        self._attempts.end(uid)
        return self._keep(Failed(uid, ErrorClass.DRAIN, why), held.waited_ms(now))

    def _finish(self, now: float) -> list[Effect]:
        if self._stop_at_s is None or len(self._attempts) or self._deliveries.is_writing():
            return []
        if self._farewell_at_s is None:
            self._farewell_at_s = now + FAREWELL_S
        if len(self._deliveries) and self._session.is_connected and now < self._farewell_at_s:
            return []
        effects: list[Effect] = [Send(Goodbye(self._next_status()))] if self._session.is_open else []
        self._over = True
        left = len(self._deliveries)
        lost = self._deliveries.in_memory
        text = f"; {left - lost} outcome(s) wait in the spool for the next start" if left > lost else ""
        text += f"; {lost} outcome(s) are lost, their disk is full and the broker away" if lost else ""
        return [*effects, Exit(0, f"stopped{text}")]

    def _slots(self) -> int:
        offered = self._worker.slots if self._worker is not None else SLOTS_UNKNOWN
        return min(offered, self._settings.slots_ceiling or offered)

    def _free_slots(self) -> int:
        refuses = (
            self._stop_at_s is not None
            or bool(self._spool_problem)
            or len(self._deliveries) >= SPOOLED_MOST
            or not self._probe.can_work
        )
        return 0 if refuses else max(0, self._slots() - len(self._attempts) - self._releasing)

    def _health(self) -> AgentHealth:
        if not self._spool_problem:
            return self._probe
        return replace(self._probe, issue=self._spool_problem, can_work=False)


def _wanted_although_aborted(reason: AbortReason, outcome: Outcome | None) -> bool:
    """A broker that does not know an attempt cannot say that its success is worthless."""
    return reason is AbortReason.UNKNOWN and isinstance(outcome, Success)
