"""Loads a model before an attempt's clock starts; a load is never aborted, and never two at a time."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from koubou_agent.call_plan import CallPlan, request_options
from koubou_agent.probe import loaded_models
from koubou_agent.upstream import Address, Upstream
from koubou_agent.verdict import Asked, Verdict, judge
from koubou_common.errors import ErrorClass
from koubou_common.models import is_cloud_model, normal_model

_log = logging.getLogger("koubou_agent")

_PS_TIMEOUT_S = 2.0  # answers take a millisecond, also under load
_JOIN_S = 5.0
_OUTPUT_BYTES_MAX = 1024  # an empty prompt has an empty answer


@dataclass(frozen=True, slots=True)
class PreloadReport:
    """`error_class` None: the model is loaded with the plan's window; `load_ms` is 0 where it was already."""

    error_class: ErrorClass | None
    message: str
    load_ms: int


class Preloader:
    """Loads models into one Ollama, one after the other; any thread may ask."""

    def __init__(self, ollama_url: str) -> None:
        self._address = Address.of(ollama_url)
        self._turn = threading.Lock()  # released by the load's own thread, at Ollama's answer
        self._load: _Load | None = None
        self._stopped = False

    def ensure(self, plan: CallPlan) -> PreloadReport:
        """Wait until the model is loaded with the plan's window, at most `limits.load_s`.

        After LOAD_TIMEOUT the load goes on in Ollama, and so does the wait of the next caller.
        """
        if is_cloud_model(plan.model):
            return PreloadReport(ErrorClass.CLOUD_MODEL, f"{plan.model} runs on somebody else's servers", 0)
        deadline = time.monotonic() + plan.limits.load_s
        if self._is_loaded(plan):
            return PreloadReport(None, "", 0)
        if not self._turn.acquire(timeout=plan.limits.load_s):
            return _late(plan, "another model is still loading")
        if self._stopped or self._is_loaded(plan):
            self._turn.release()
            stopped = ErrorClass.DRAIN if self._stopped else None
            return PreloadReport(stopped, "the agent is stopping" if stopped else "", 0)
        load = _Load(self._address, plan, self._turn.release)
        self._load = load
        load.start()
        report = load.wait(max(0.0, deadline - time.monotonic()))
        return report or _late(plan, "it goes on loading")

    @property
    def loading(self) -> bool:
        """Whether Ollama is loading a model for us, be anybody waiting or not."""
        return self._turn.locked()

    def stop(self) -> None:
        """The agent is going: end what is under way."""
        self._stopped = True
        if self._load is not None:
            self._load.stop()

    def _is_loaded(self, plan: CallPlan) -> bool:
        models = loaded_models(self._address.url, _PS_TIMEOUT_S)
        return models is not None and (normal_model(plan.model), plan.num_ctx) in models


class _Load:
    """One load in a thread of its own: whoever waits may give up, the load does not."""

    def __init__(self, address: Address, plan: CallPlan, on_end: Callable[[], None]) -> None:
        self._plan = plan
        self._on_end = on_end
        self._upstream = Upstream(address, plan.limits.connect_s)
        self._thread = threading.Thread(target=self._run, name="preload", daemon=True)
        self._done = threading.Event()
        self._report: PreloadReport | None = None

    def start(self) -> None:
        """Ask Ollama; returns at once."""
        _log.info("preload starts model=%s num_ctx=%d", self._plan.model, self._plan.num_ctx)
        self._thread.start()

    def wait(self, timeout_s: float) -> PreloadReport | None:
        """The report; None after `timeout_s`."""
        self._done.wait(timeout_s)
        return self._report

    def stop(self) -> None:
        """Hang up."""
        self._upstream.interrupt()
        self._thread.join(_JOIN_S)

    def _run(self) -> None:
        started = time.monotonic()
        plan = self._plan
        try:
            seen = self._upstream.run(
                # No keep_alive: it could undo an eviction that Ollama waits for (#17408).
                {
                    "model": plan.model,
                    "prompt": "",
                    "stream": False,
                    "options": request_options(plan, plan.num_predict),
                },
                output_bytes_max=_OUTPUT_BYTES_MAX,
                on_connected=_nothing,
                on_byte=_nothing,
                on_line=_nothing,
            )
            verdict = Verdict(None) if seen.done else judge(seen, _asked(plan))
            load_ms = int((time.monotonic() - started) * 1000)
            self._report = PreloadReport(verdict.error_class, verdict.message, load_ms)
        finally:
            self._on_end()
            self._done.set()
        _log.info("preload ended model=%s class=%s", plan.model, verdict.error_class or "ok")


def _late(plan: CallPlan, why: str) -> PreloadReport:
    message = f"{plan.model} did not load within {plan.limits.load_s:g} s: {why}"
    return PreloadReport(ErrorClass.LOAD_TIMEOUT, message, 0)


def _nothing() -> None:
    """A load has no progress to tell."""


def _asked(plan: CallPlan) -> Asked:
    return Asked(plan.model, plan.num_ctx, plan.num_predict, plan.num_predict, 0, None, _OUTPUT_BYTES_MAX)
