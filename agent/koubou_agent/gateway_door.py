"""One attempt's door to Ollama: what gemini-repo-cli may ask through it, and the report of what happened."""

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from koubou_agent.call_plan import CallPlan, Prepared, cannot_stop_thinking, prepare
from koubou_agent.gateway_call import Call, Outcome, Phase
from koubou_agent.verdict import Verdict
from koubou_common.errors import ErrorClass
from koubou_common.models import is_cloud_model, same_model

_POLL_S = 0.2  # how soon a CLI that died is noticed; an outcome is told at once
_MORE_THINKING = 2  # times the allowance, once (design, section 8)
_STATUS_HANG_UP = 499  # nginx's word for a client that left; Ollama uses it too
_TIMEOUTS = {ErrorClass.LOAD_TIMEOUT, ErrorClass.STUCK, ErrorClass.STALLED, ErrorClass.TIMEOUT}


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a call is; the prompt's tokens are an estimate until Ollama has counted them."""

    phase: Phase
    prompt_tokens: int
    output_tokens: int
    thinking_tokens: int
    last_token_at_mono_s: float


@dataclass(frozen=True, slots=True)
class CallReport:
    """What became of the attempt's call; `error_class` None with `aborted` False is success."""

    text: str  # raw and unstripped
    error_class: ErrorClass | None
    message: str
    prompt_tokens: int
    output_tokens: int  # without thinking
    thinking_tokens: int
    load_ms: int
    prompt_ms: int
    eval_ms: int
    total_ms: int
    first_token_ms: int
    done_reason: str
    num_ctx: int
    num_predict: int  # as sent
    calls: int
    wants_more_thinking: bool
    aborted: bool


@dataclass(frozen=True, slots=True)
class Reply:
    """What the CLI is answered."""

    status: int
    fields: Mapping[str, object]


# Makes a call and starts it; given by the gateway, which counts it until Ollama is free of it.
Dial = Callable[[CallPlan, Prepared, float, str], Call]


class Door:
    """Made by `Gateway.open`; its path is a secret, its one call a run is all it lets through."""

    def __init__(
        self,
        host_url: str,
        attempt_uid: str,
        plan: CallPlan,
        *,
        dial: Dial,
        on_close: Callable[[], None],
    ) -> None:
        self.host_url = host_url
        self._attempt_uid = attempt_uid
        self._plan = plan
        self._dial = dial
        self._on_close = on_close
        self._lock = threading.Lock()
        self._deadline_mono_s = time.monotonic() + plan.limits.total_s
        self._allowance = plan.thinking_allowance if cannot_stop_thinking(plan) else 0
        self._calls_allowed = 1
        self._calls = 0
        self._call: Call | None = None
        self._opened_at = time.monotonic()
        self._aborted: Outcome | None = None  # also what a call that comes later is answered
        self._closed = False
        self._refusal = ""

    def progress(self) -> Progress:
        """How far the attempt's call is."""
        call = self._call
        if call is None:
            return Progress(Phase.WAITING, 0, 0, 0, self._opened_at)
        outcome = call.wait(0)
        counted = outcome.observed.prompt_tokens if outcome and outcome.observed else 0
        return Progress(
            phase=call.phase,
            prompt_tokens=counted or call.prepared.prompt_tokens,
            output_tokens=call.output_chunks,
            thinking_tokens=call.thinking_chunks,
            last_token_at_mono_s=call.last_line_at_mono_s,
        )

    def abort(self, error_class: ErrorClass | None, message: str) -> None:
        """End the attempt's call, now or when it comes; from any thread. None means cancelled."""
        with self._lock:
            call = self._call
            if self._aborted is None:
                self._aborted = _aborted(error_class, message)
        if call is not None:
            call.abort(error_class, message)

    def allow_more_thinking(self) -> bool:
        """Whether the CLI may run once more with twice the allowance; if so, the door lets it through."""
        with self._lock:
            if self._aborted is not None or self._closed or self._more_thinking() is None:
                return False
            self._allowance = _MORE_THINKING * self._plan.thinking_allowance
            self._calls_allowed += 1
            return True

    def report(self) -> CallReport:
        """What became of the last call."""
        with self._lock:
            return self._report()

    def close(self) -> CallReport:
        """Shut the door; a call that still runs is aborted. The report is complete."""
        with self._lock:
            self._closed = True
            call = self._call
        if call is not None:
            call.abort(None, "the attempt was closed")
        self._on_close()
        return self.report()

    def answer(self, fields: Mapping[str, object] | None, is_gone: Callable[[], bool]) -> Reply:
        """Serve what the CLI asked (None: no JSON object) until the outcome; `is_gone` sees the CLI die."""
        call = self._begin(fields)
        if isinstance(call, Reply):
            return call
        while (outcome := call.wait(_POLL_S)) is None:
            if is_gone():
                call.abort(ErrorClass.CLI_FAILED, "gemini-repo-cli hung up before the answer was complete")
        return self._reply(call, outcome)

    def refuse(self, status: int, message: str) -> Reply:
        """Answer with an error, kept for the report in case nothing else happens."""
        self._refusal = message
        return Reply(status, {"error": message})

    def _begin(self, fields: Mapping[str, object] | None) -> Call | Reply:
        if fields is None:
            return self.refuse(400, "the request is not an object of JSON")
        model, prompt = fields.get("model"), fields.get("prompt")
        if not isinstance(model, str) or is_cloud_model(model) or not same_model(model, self._plan.model):
            return self.refuse(403, f"this attempt may use {self._plan.model} only")
        if not isinstance(prompt, str) or not prompt:
            return self.refuse(400, "the request has no prompt")
        if fields.get("stream") is not False:
            return self.refuse(400, "the answer is given whole: ask with stream false")
        with self._lock:
            if self._aborted is not None or self._closed:
                why = self._aborted.verdict.message if self._aborted else "the attempt is over"
                return Reply(_STATUS_HANG_UP, {"error": why})
            if self._calls >= self._calls_allowed:
                self._refusal = "gemini-repo-cli asked a second time in one run"
                return Reply(409, {"error": "one call a run is all this attempt may make"})
            prepared = self._prepared(prompt, _temperature(fields))
            self._calls += 1
            self._call = self._dial(self._plan, prepared, self._deadline_mono_s, self._attempt_uid)
            return self._call

    def _prepared(self, prompt: str, temperature: float | None) -> Prepared:
        outcome = self._call.wait(0) if self._call else None
        return prepare(
            self._plan,
            prompt,
            temperature=temperature,
            thinking_allowance=self._allowance,
            known_prompt_tokens=outcome.observed.prompt_tokens if outcome and outcome.observed else 0,
        )

    def _more_thinking(self) -> int | None:
        """The num_predict of one more run, if that would be more than the last one had."""
        call = self._call
        outcome = call.wait(0) if call else None
        if call is None or outcome is None or outcome.observed is None or not outcome.verdict.thought_away:
            return None
        if self._calls_allowed != 1:  # granted already
            return None
        wanted = self._plan.num_predict + _MORE_THINKING * self._plan.thinking_allowance
        room = self._plan.num_ctx - outcome.observed.prompt_tokens
        more = min(wanted, room)
        return more if more > call.prepared.num_predict else None

    def _report(self) -> CallReport:
        call = self._call
        outcome = call.wait(0) if call else self._aborted
        if outcome is None:
            outcome = self._never_asked()
        seen = outcome.observed
        thinking, output = _split(call, outcome)
        durations = call.durations if call else None
        return CallReport(
            text=seen.text if seen else "",
            error_class=outcome.verdict.error_class,
            message=outcome.verdict.message,
            prompt_tokens=seen.prompt_tokens if seen else 0,
            output_tokens=output,
            thinking_tokens=thinking,
            load_ms=durations.load_ms if durations else 0,
            prompt_ms=durations.prompt_ms if durations else 0,
            eval_ms=durations.eval_ms if durations else 0,
            total_ms=durations.total_ms if durations else 0,
            first_token_ms=call.first_token_ms if call else 0,
            done_reason=seen.done_reason if seen else "",
            num_ctx=self._plan.num_ctx,
            num_predict=call.prepared.num_predict if call else 0,
            calls=self._calls,
            wants_more_thinking=self._more_thinking() is not None,
            aborted=outcome.aborted,
        )

    def _never_asked(self) -> Outcome:
        why = self._refusal or "gemini-repo-cli never asked for an answer"
        return Outcome(_aborted(ErrorClass.CLI_FAILED, why).verdict, None, aborted=False)

    def _reply(self, call: Call, outcome: Outcome) -> Reply:
        verdict, seen = outcome.verdict, outcome.observed
        if seen is None or verdict.error_class is not None:
            return Reply(_status(outcome), {"error": verdict.message})
        durations = call.durations
        return Reply(
            200,
            {
                "model": self._plan.model,
                "created_at": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
                "response": seen.text,
                "done": True,
                "done_reason": seen.done_reason,
                "total_duration": durations.total_ms * 1_000_000,
                "load_duration": durations.load_ms * 1_000_000,
                "prompt_eval_count": seen.prompt_tokens,
                "prompt_eval_duration": durations.prompt_ms * 1_000_000,
                "eval_count": seen.eval_tokens,
                "eval_duration": durations.eval_ms * 1_000_000,
            },
        )


def to_json(fields: Mapping[str, object]) -> bytes:
    """The bytes of a reply."""
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _aborted(error_class: ErrorClass | None, message: str) -> Outcome:
    return Outcome(Verdict(error_class, message), None, aborted=True)


def _temperature(fields: Mapping[str, object]) -> float | None:
    options = fields.get("options")
    value = options.get("temperature") if isinstance(options, dict) else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _split(call: Call | None, outcome: Outcome) -> tuple[int, int]:
    """Tokens of thinking and of answer; Ollama counts them together, the pieces heard tell them apart."""
    if call is None:
        return 0, 0
    seen = outcome.observed
    if seen is None or not seen.eval_tokens:
        return call.thinking_chunks, call.output_chunks
    if not seen.text:
        return (seen.eval_tokens, 0) if seen.thinking_chunks else (0, seen.eval_tokens)
    thinking = min(seen.thinking_chunks, seen.eval_tokens)
    return thinking, seen.eval_tokens - thinking


def _status(outcome: Outcome) -> int:
    """What the CLI is told: Ollama's own status where it gave one, else the gateway's."""
    if outcome.verdict.error_class in _TIMEOUTS:
        return 504
    if outcome.aborted:
        return _STATUS_HANG_UP
    seen = outcome.observed
    return seen.status if seen and seen.status >= 400 else 502
