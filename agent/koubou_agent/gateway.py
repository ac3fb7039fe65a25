"""The loopback server through which gemini-repo-cli, and nothing else, reaches Ollama's generate endpoint."""

import logging
import secrets
import threading
import time

from koubou_agent.call_plan import CallPlan, Limits, Prepared
from koubou_agent.gateway_call import Call, LoadedSeen, Phase
from koubou_agent.gateway_door import CallReport, Door, Progress
from koubou_agent.gateway_http import GatewayServer
from koubou_agent.probe import loaded_models
from koubou_agent.upstream import Address
from koubou_common.models import normal_model

__all__ = ["CallPlan", "CallReport", "Door", "Gateway", "Limits", "Phase", "Progress"]

_log = logging.getLogger("koubou_agent")

_SECRET_BYTES = 24
_TICK_S = 0.1  # how exactly limits are kept
_PS_EVERY_S = 1.0  # and how long a call must be silent before /api/ps is asked at all
_PS_TIMEOUT_S = 2.0  # answers take a millisecond, also under load
_JOIN_S = 5.0


class Gateway:
    """One Ollama's doors. Start it once; open a door for each attempt."""

    def __init__(self, ollama_url: str, *, ps_every_s: float = _PS_EVERY_S) -> None:
        self._address = Address.of(ollama_url)
        self._ps_every_s = ps_every_s
        self._lock = threading.Lock()
        self._doors: dict[str, Door] = {}
        self._calls: set[Call] = set()
        self._seen: LoadedSeen | None = None
        self._stopping = threading.Event()
        self._wake = threading.Event()  # there are calls to watch
        self._server: GatewayServer | None = None
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Listen on a free port of 127.0.0.1."""
        assert self._server is None, "a gateway is started once"
        server = GatewayServer(self._find)
        self._server = server
        for name, target in (
            ("gateway", server.serve_forever),
            ("gateway-limits", self._watch),
            ("gateway-ps", self._watch_ps),
        ):
            thread = threading.Thread(target=target, name=name, daemon=True)
            thread.start()
            self._threads.append(thread)
        _log.info("gateway listens on 127.0.0.1:%d for %s", server.port, self._address.url)

    def stop(self) -> None:
        """Close every connection, also those held until Ollama is done, and stop listening."""
        self._stopping.set()
        self._wake.set()
        with self._lock:
            calls = list(self._calls)
        for call in calls:
            call.kill()
        for call in calls:
            call.join(_JOIN_S)
        if self._server is not None:
            self._server.stop()
        for thread in self._threads:
            thread.join(_JOIN_S)

    def open(self, attempt_uid: str, plan: CallPlan) -> Door:
        """A door for one attempt; its limits run from now."""
        assert self._server is not None, "start() comes before open()"
        secret = secrets.token_urlsafe(_SECRET_BYTES)
        door = Door(
            f"http://127.0.0.1:{self._server.port}/t/{secret}",
            attempt_uid,
            plan,
            dial=self._dial,
            on_close=lambda: self._forget(secret),
        )
        with self._lock:
            self._doors[secret] = door
        return door

    @property
    def busy(self) -> int:
        """Calls that Ollama has not been seen to end, those of ended attempts included."""
        with self._lock:
            return len(self._calls)

    def _find(self, secret: str) -> Door | None:
        with self._lock:
            return self._doors.get(secret)

    def _forget(self, secret: str) -> None:
        with self._lock:
            self._doors.pop(secret, None)

    def _dial(self, plan: CallPlan, prepared: Prepared, deadline_mono_s: float, attempt_uid: str) -> Call:
        call = Call(
            self._address,
            plan,
            prepared,
            model_key=(normal_model(plan.model), plan.num_ctx),
            deadline_mono_s=deadline_mono_s,
            attempt_uid=attempt_uid,
            on_end=self._ended,
        )
        with self._lock:
            self._calls.add(call)
            self._wake.set()
        call.start()
        return call

    def _ended(self, call: Call) -> None:
        with self._lock:
            self._calls.discard(call)
            if not self._calls and not self._stopping.is_set():
                self._wake.clear()

    def _watched(self) -> list[Call]:
        with self._lock:
            return list(self._calls)

    def _watch(self) -> None:
        while not self._stopping.is_set():
            self._wake.wait()
            now = time.monotonic()
            for call in self._watched():
                call.check(now, self._seen)
            self._stopping.wait(_TICK_S)

    def _watch_ps(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            self._wake.wait()
            asked_at = time.monotonic()
            if any(call.wants_ps(asked_at, self._ps_every_s) for call in self._watched()):
                models = loaded_models(self._address.url, _PS_TIMEOUT_S)
                failures = 0 if models is not None else failures + 1
                self._seen = LoadedSeen(asked_at, models, failures)
            self._stopping.wait(self._ps_every_s)
