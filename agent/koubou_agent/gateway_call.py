"""One call of the gateway to Ollama: its clocks, its limits, and when Ollama is free of it again."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from koubou_agent.call_plan import CallPlan, Prepared, notices_hangup
from koubou_agent.upstream import Address, Durations, Upstream
from koubou_agent.verdict import Asked, Observed, Verdict, judge
from koubou_common.errors import ErrorClass

_log = logging.getLogger("koubou_agent")

# A server that fails to list its models this often is not loading one: nothing is aborted by closing.
_PS_FAILURES_MAX = 3


class Phase(StrEnum):
    """What a call is doing."""

    WAITING = "waiting"  # gemini-repo-cli has not asked yet
    CONNECTING = "connecting"
    LOADING = "loading"
    READING = "reading"  # the prompt
    THINKING = "thinking"
    ANSWERING = "answering"
    RELEASING = "releasing"  # over for us, not yet for Ollama
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class LoadedSeen:
    """What /api/ps said last: (model, num_ctx) pairs by normal name; `models` None where it failed."""

    asked_at_mono_s: float
    models: frozenset[tuple[str, int]] | None
    failures: int  # in a row


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a call ended for the attempt; `observed` None where it was aborted."""

    verdict: Verdict
    observed: Observed | None
    aborted: bool


class Call:
    """A call in a thread of its own; it outlives its attempt while Ollama is still busy with it."""

    def __init__(
        self,
        address: Address,
        plan: CallPlan,
        prepared: Prepared,
        *,
        model_key: tuple[str, int],
        deadline_mono_s: float,
        attempt_uid: str,
        on_end: Callable[["Call"], None],
    ) -> None:
        self.prepared = prepared
        self._plan = plan
        self._model_key = model_key
        self._deadline_mono_s = deadline_mono_s
        self._attempt_uid = attempt_uid
        self._on_end = on_end
        self._upstream = Upstream(address, plan.limits.connect_s)
        self._thread = threading.Thread(target=self._run, name="ollama-call", daemon=True)
        self._lock = threading.Lock()
        self._decided = threading.Event()
        self._outcome: Outcome | None = None
        self._ended = False
        self._started_at = time.monotonic()
        self._connected_at = 0.0
        self._first_byte_at = 0.0
        self._first_line_at = 0.0
        self._last_line_at = 0.0
        self._loading_seen = False
        self._reading_since = 0.0

    def start(self) -> None:
        """Connect and ask; returns at once."""
        _log.info("call to Ollama starts attempt=%s model=%s", self._attempt_uid, self._plan.model)
        self._thread.start()

    def wait(self, timeout_s: float) -> Outcome | None:
        """The outcome once it is decided; None after `timeout_s`."""
        self._decided.wait(timeout_s)
        return self._outcome

    def abort(self, error_class: ErrorClass | None, message: str) -> None:
        """Decide the outcome, if it is not decided; the connection closes as soon as that helps Ollama."""
        with self._lock:
            if self._outcome is not None:
                return
            self._outcome = Outcome(Verdict(error_class, message), None, aborted=True)
        _log.info("call to Ollama aborted attempt=%s class=%s: %s", self._attempt_uid, error_class, message)
        self._decided.set()
        self._release(None)

    def kill(self) -> None:
        """Close the connection whatever Ollama is doing: the agent itself is going."""
        self.abort(None, "the gateway was stopped")
        self._upstream.interrupt()

    def join(self, timeout_s: float) -> None:
        """Wait for the thread's end."""
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def check(self, now: float, seen: LoadedSeen | None) -> None:
        """The watchdog's visit: apply the limits, or let go of what is held for Ollama's sake."""
        loaded = self._is_loaded(seen)
        if self._outcome is not None:
            self._release(seen)
            return
        limits = self._plan.limits
        if now > self._deadline_mono_s:
            self.abort(ErrorClass.TIMEOUT, f"the attempt took longer than {limits.total_s:g} s, {limits.total_of}")
        elif self._first_line_at:
            if now - self._last_line_at > limits.idle_s:
                self.abort(ErrorClass.STALLED, f"no token came for {limits.idle_s:g} s")
        elif self._connected_at:
            self._check_first_token(now, loaded)

    def wants_ps(self, now: float, after_s: float) -> bool:
        """Whether it matters if the model is loaded: nothing was heard for a while."""
        return bool(self._connected_at) and not self._first_byte_at and now - self._connected_at > after_s

    @property
    def phase(self) -> Phase:
        """What the call is doing now."""
        heard = self._upstream.heard
        if self._ended:
            return Phase.ENDED
        if self._outcome is not None:
            return Phase.RELEASING
        if not self._connected_at:
            return Phase.CONNECTING
        if not self._first_line_at:
            return Phase.LOADING if self._loading_seen and not self._reading_since else Phase.READING
        return Phase.THINKING if heard.thinking_chunks and not heard.output_chunks else Phase.ANSWERING

    @property
    def output_chunks(self) -> int:
        """Pieces of answer heard: tokens, as near as can be told before the end."""
        return self._upstream.heard.output_chunks

    @property
    def thinking_chunks(self) -> int:
        """Pieces of thinking heard."""
        return self._upstream.heard.thinking_chunks

    @property
    def durations(self) -> Durations:
        """Ollama's own clocks, once it has told them."""
        return self._upstream.heard.durations

    @property
    def first_token_ms(self) -> int:
        """From the start of the call to its first token; 0 while there is none."""
        return int((self._first_line_at - self._started_at) * 1000) if self._first_line_at else 0

    @property
    def last_line_at_mono_s(self) -> float:
        """When the last token came; before the first one, when the call began."""
        return self._last_line_at or self._started_at

    def _run(self) -> None:
        observed = self._upstream.run(
            self.prepared.body,
            output_bytes_max=self._plan.limits.output_bytes,
            on_connected=self._connected,
            on_byte=self._first_byte,
            on_line=self._line,
        )
        with self._lock:
            if self._outcome is None:
                self._outcome = Outcome(judge(observed, self._asked()), observed, aborted=False)
            self._ended = True
            outcome = self._outcome
        # Ollama is free before anybody hears of the outcome: a result names the free slots.
        self._on_end(self)
        self._decided.set()
        if not outcome.aborted:
            name = outcome.verdict.error_class or "ok"
            _log.info("call to Ollama ended attempt=%s class=%s", self._attempt_uid, name)

    def _asked(self) -> Asked:
        return Asked(
            model=self._plan.model,
            num_ctx=self._plan.num_ctx,
            num_predict=self.prepared.num_predict,
            num_predict_wanted=self.prepared.num_predict_wanted,
            prompt_bytes=self.prepared.prompt_bytes,
            bytes_per_token=self._plan.bytes_per_token,
            output_bytes_max=self._plan.limits.output_bytes,
        )

    def _connected(self) -> None:
        self._connected_at = time.monotonic()

    def _first_byte(self) -> None:
        self._first_byte_at = time.monotonic()
        if self._outcome is not None:  # held for this very moment
            self._upstream.interrupt()

    def _line(self) -> None:
        now = time.monotonic()
        self._last_line_at = now
        if not self._first_line_at:
            self._first_line_at = now

    def _check_first_token(self, now: float, loaded: bool | None) -> None:
        if loaded is False and not self._reading_since:
            self._loading_seen = True
            if now - self._connected_at > self._plan.limits.load_s:
                self.abort(
                    ErrorClass.LOAD_TIMEOUT,
                    f"{self._plan.model} did not load within {self._plan.limits.load_s:g} s",
                )
            return
        # The clock of the first token starts when the model is there; what is not known to load, is.
        if not self._loading_seen:
            since = self._connected_at
        else:
            self._reading_since = since = self._reading_since or now
        if now - since > self.prepared.first_token_limit_s:
            self.abort(
                ErrorClass.STUCK,
                f"no first token within {self.prepared.first_token_limit_s:g} s, {self.prepared.first_token_of};"
                " the model is loaded",
            )

    def _is_loaded(self, seen: LoadedSeen | None) -> bool | None:
        """None where it is not known: never asked since the call began, or asked in vain."""
        if seen is None or seen.models is None or seen.asked_at_mono_s < self._connected_at:
            return None
        return self._model_key in seen.models

    def _release(self, seen: LoadedSeen | None) -> None:
        if self._ended:
            return
        if not self._connected_at or self._first_byte_at:
            self._upstream.interrupt()
            return
        if not notices_hangup(self._plan.ollama_version):
            return  # it would read the prompt to its end for nobody, unseen: wait for the first byte
        # From 0.30 on only a load must not be aborted: the next call would start it again.
        if self._is_loaded(seen) or (seen is not None and seen.failures >= _PS_FAILURES_MAX):
            self._upstream.interrupt()
