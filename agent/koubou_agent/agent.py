"""The agent's loop: one thread owns the link and the core, attempts run in threads of their own."""

import contextlib
import logging
import os
import platform
import queue
import secrets
import socket
import threading
import time
import typing
from collections import deque
from dataclasses import dataclass
from typing import assert_never

import zmq

from koubou_agent import room
from koubou_agent.attempt import AttemptRun, Equipment
from koubou_agent.blobs import BlobCache
from koubou_agent.box import UNKNOWN, Box
from koubou_agent.config import SOFTWARE_NAME, AgentConfig
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
    WipeCaches,
)
from koubou_agent.inputs import Forget, Inputs, Want
from koubou_agent.outputs import Outputs
from koubou_agent.spool import Spool, is_uid
from koubou_common import __version__
from koubou_common.codec import DecodeError, EncodeError, decode, encode
from koubou_common.errors import ErrorClass
from koubou_common.keys import KeyPair
from koubou_common.link import Connected, Disconnected, Link, Received
from koubou_common.messages import (
    BlobChunk,
    BlobGet,
    BlobMissing,
    Dispatch,
    Message,
    Result,
    ToAgent,
)
from koubou_common.messages.values import AgentHealth
from koubou_common.notify import sd_notify, watchdog_interval_s

STOP_GRACE_S = 60.0  # after SIGTERM: less than the unit's TimeoutStopSec

_TURN_MOST_S = 1.0  # the loop turns at least this often: progress, watchdog
_TURN_BUSY_S = 0.1  # while a full outgoing queue or a releasing slot is waited for
_TRIM_EVERY_S = 3600.0  # the cache of an agent without work: what is old goes all the same
_OUTGOING_MOST = 256  # messages a connection that takes nothing may hold up before it is given up
_JOIN_S = 10.0
_TO_AGENT = typing.get_args(ToAgent)

_log = logging.getLogger("koubou_agent")


@dataclass(frozen=True, slots=True)
class _Ended:
    uid: str
    outcome: Outcome | None
    raw: bytes


@dataclass(frozen=True, slots=True)
class _Stop:
    grace_s: float


_Event = _Ended | _Stop | AgentHealth | Want | Forget


class Agent:
    """One worker; `run` blocks until it is asked to stop or removed."""

    def __init__(self, config: AgentConfig, pair: KeyPair) -> None:
        self._config = config
        self._inbox: queue.SimpleQueue[_Event] = queue.SimpleQueue()
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._spool = Spool(config.spool_dir)
        self._cache = BlobCache(config.cache_dir, config.settings.cache_bytes, float(config.settings.cache_days))
        self._inputs = Inputs(self._cache, self._post)
        self._outputs = Outputs(self._spool)
        self._box = Box(config, self._post, self._cache.give_way)
        self._equipment = Equipment(
            gateway=self._box.gateway,
            preloader=self._box.preloader,
            runner=self._box.runner,
            fetch=self._inputs.fetch,
            facts=self._box.facts,
            capped=config.settings.limits.capped,
            rates=self._box.rates,
        )
        self._runs: dict[str, AttemptRun] = {}
        self._threads: dict[str, threading.Thread] = {}
        self._outgoing: deque[bytes] = deque()
        self._exit: Exit | None = None
        self._releasing = 0
        self._wipe = False
        self._told = ""  # the service manager, of how we stand
        self._pinged_s = 0.0
        self._trimmed_s = time.monotonic()
        spooled = self._spool.load()
        self._outputs.loaded(spooled)
        self._core = AgentCore(
            CoreSettings(software(), _platform(), secrets.token_hex(16), config.slots_ceiling),
            spooled,
            UNKNOWN,
            time.monotonic(),
        )
        self._link = Link(config.addresses, config.server_key, pair)

    def stop(self, grace_s: float = STOP_GRACE_S) -> None:
        """Finish what runs within `grace_s`, hand back the rest, end; from any thread or signal handler."""
        self._post(_Stop(grace_s))

    def run(self) -> Exit:
        """Work until stopped."""
        self._box.start()
        sd_notify("READY=1")
        try:
            while self._exit is None:
                self._wait()
                self._turn()
            _log.info("%s", self._exit.message)
            return self._exit
        finally:
            self._shut_down()

    def _post(self, event: _Event) -> None:
        self._inbox.put(event)
        with contextlib.suppress(OSError):  # full: it wakes already; closed: nobody is left to wake
            self._wake_in.send(b"\0")

    def _wait(self) -> None:
        now = time.monotonic()
        deadlines = [self._core.next_deadline, self._link.next_deadline, self._inputs.next_deadline()]
        wait_s = min([_TURN_MOST_S, *(at_s - now for at_s in deadlines if at_s is not None)])
        if self._outgoing or self._releasing:
            wait_s = min(wait_s, _TURN_BUSY_S)
        poller = zmq.Poller()
        poller.register(self._wake_out, zmq.POLLIN)
        for door in self._link.sockets():
            poller.register(door, zmq.POLLIN)
        poller.poll(max(0, int(wait_s * 1000) + 1) if wait_s > 0 else 0)
        with contextlib.suppress(BlockingIOError):
            while self._wake_out.recv(4096):
                pass

    def _turn(self) -> None:
        for event in self._link.pump(time.monotonic()):
            match event:
                case Connected():
                    _log.info("connected to the broker")
                    self._outgoing.clear()
                    self._inputs.restart()
                    self._do(self._core.connected(time.monotonic()))
                case Disconnected(_, text):
                    _log.warning("no broker: %s; %s", text, self._link.explain().hint)
                    self._outgoing.clear()
                    self._inputs.restart()
                    self._do(self._core.disconnected(time.monotonic()))
                case Received(data):
                    self._receive(data)
                case _:
                    assert_never(event)
        while not self._inbox.empty():
            self._happen(self._inbox.get())
        for run in self._runs.values():
            self._core.progress(run.uid, *run.progress())
        self._look_at_slots()
        now = time.monotonic()
        self._do(self._core.tick(now))
        if self._core.worker is not None:
            for message in self._inputs.due(now):
                self._send(message)
        self._flush()
        self._tell_manager(now)
        if now - self._trimmed_s >= _TRIM_EVERY_S:
            self._trimmed_s = now
            self._cache.trim()

    def _receive(self, data: bytes) -> None:
        try:
            envelope = decode(data)
        except DecodeError as error:
            _log.warning("a message of the broker was not understood: %s", error)
            return
        message = envelope.message
        if isinstance(message, BlobGet | BlobChunk | BlobMissing):
            if envelope.epoch >= self._core.epoch:
                self._blob(message)
        elif isinstance(message, Dispatch) and not is_uid(message.attempt_uid):
            _log.error("task=%d was dispatched under a uid that is none", message.task_id)
        elif isinstance(message, _TO_AGENT):
            self._do(self._core.receive(typing.cast(ToAgent, message), envelope.epoch, time.monotonic()))
            if self._core.worker is not None:
                self._box.warm_up(self._core.worker)

    def _blob(self, message: BlobGet | BlobChunk | BlobMissing) -> None:
        match message:
            case BlobGet():
                self._send(self._outputs.chunk(message))
            case BlobChunk():
                self._inputs.chunk(message)
            case BlobMissing(sha256):
                self._inputs.missing(sha256)
            case _:
                assert_never(message)

    def _happen(self, event: _Event) -> None:
        now = time.monotonic()
        match event:
            case _Ended(uid, outcome, raw):
                self._runs.pop(uid, None)
                self._threads.pop(uid, None)
                self._outputs.take(uid, raw)
                self._look_at_slots()
                if isinstance(outcome, Failed) and outcome.error_class is ErrorClass.OLLAMA_UNREACHABLE:
                    # Before the failure is told: the slot it names must not bring the next task to the same end.
                    self._do(self._core.health(self._box.doubt(), now))
                self._do(self._core.ended(uid, outcome, now))
                self._outputs.settle(uid)
            case _Stop(grace_s):
                _log.info("asked to stop: finishing within %g s", grace_s)
                sd_notify("STOPPING=1")
                self._do(self._core.stop(grace_s, now))
            case AgentHealth():
                self._do(self._core.health(event, now))
            case Want():
                self._inputs.want(event)
            case Forget():
                self._inputs.forget(event)
            case _:
                assert_never(event)

    def _look_at_slots(self) -> None:
        self._releasing = self._box.releasing(self._runs.values())
        self._do(self._core.releasing(self._releasing, time.monotonic()))

    def _do(self, effects: list[Effect]) -> None:
        waiting = deque(effects)
        while waiting:
            effect = waiting.popleft()
            match effect:
                case Send(message):
                    self._send(message)
                case StartAttempt():
                    self._start(effect)
                case StopAttempt(uid, error_class, message):
                    if uid in self._runs:
                        self._runs[uid].stop(error_class, message)
                case SpoolWrite(outcome):
                    waiting.extend(self._keep(outcome))
                case SpoolDelete(uid):
                    self._outputs.delete(uid)
                case WipeCaches():
                    self._wipe = True
                    self._cache.wipe()
                case Log(level, text):
                    _log.log(level, "%s", text)
                case Exit():
                    self._exit = effect
                case _:
                    assert_never(effect)

    def _keep(self, outcome: Outcome) -> list[Effect]:
        uid = outcome.attempt_uid
        problem = self._outputs.keep(outcome)
        if problem and self._cache.give_way(room.LEAST_BYTES):
            problem = self._outputs.keep(outcome)
        now = time.monotonic()
        return self._core.spool_failed(uid, problem, now) if problem else self._core.spooled(uid, now)

    def _start(self, effect: StartAttempt) -> None:
        self._inputs.keep(effect.dispatch)
        run = AttemptRun(effect, self._equipment)
        thread = threading.Thread(target=self._attempt, args=(run,), name=f"attempt-{run.uid[:8]}", daemon=True)
        self._runs[run.uid] = run
        self._threads[run.uid] = thread
        thread.start()

    def _attempt(self, run: AttemptRun) -> None:
        outcome, raw = run.run()
        name = getattr(outcome, "error_class", "ok" if outcome is not None else "stopped")
        _log.info("attempt=%s ended: %s", run.uid, name)
        self._post(_Ended(run.uid, outcome, raw))

    def _send(self, message: Message) -> None:
        if isinstance(message, Result):
            message = self._outputs.attach(message)
        try:
            self._outgoing.append(encode(message))
        except EncodeError as error:
            _log.error("a message of ours is too large and was not sent: %s", error)
        if len(self._outgoing) > _OUTGOING_MOST:
            self._outgoing.clear()
            self._link.drop("the broker takes no messages")
        self._flush()

    def _flush(self) -> None:
        while self._outgoing and self._link.send(self._outgoing[0]):
            self._outgoing.popleft()

    def _tell_manager(self, now: float) -> None:
        if self._core.summary != self._told:
            self._told = self._core.summary
            sd_notify(f"STATUS={self._told}")
        interval_s = watchdog_interval_s()
        if interval_s is not None and now - self._pinged_s >= interval_s:
            self._pinged_s = now
            sd_notify("WATCHDOG=1")

    def _shut_down(self) -> None:
        self._flush()
        for run in self._runs.values():
            run.stop(None, "the agent ends")
        self._inputs.close()
        self._box.stop()
        deadline_s = time.monotonic() + _JOIN_S
        for thread in self._threads.values():
            thread.join(max(0.0, deadline_s - time.monotonic()))
        if self._wipe:  # an attempt may have put its last input there meanwhile
            self._cache.wipe()
        self._link.close()
        self._wake_in.close()
        self._wake_out.close()


def software() -> str:
    """Name and version as the broker and `workers show` see them."""
    return f"{SOFTWARE_NAME} {__version__}"


def _platform() -> str:
    return f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, pid {os.getpid()}"
