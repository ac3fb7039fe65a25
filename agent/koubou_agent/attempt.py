"""One attempt from its Dispatch to its outcome, in a thread of its own; every way through ends with a name."""

import hashlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from koubou_agent.answer import extract, same_as_printed
from koubou_agent.blobs import InputsMissing, is_body
from koubou_agent.cli_env import CliMissing
from koubou_agent.effects import Failed, Outcome, StartAttempt, Success
from koubou_agent.gateway import CallPlan, CallReport, Door, Gateway, Phase
from koubou_agent.planning import ModelFacts, plan_call
from koubou_agent.preload import Preloader, PreloadReport
from koubou_agent.runner import RunReport, RunRequest
from koubou_common import durable
from koubou_common.errors import ErrorClass, KoubouError, RefusedError
from koubou_common.messages.limits import LOG_BYTES
from koubou_common.messages.values import Body, Metrics, WorkerLimits

RUNNER_MARGIN_S = 30.0  # the gateway's total limit ends the call with a better name; this ends a CLI that hangs
SENTENCE_CHARS = 2_000  # a message's limit on the wire
RATE_TOKENS_LEAST = 200  # a shorter prompt's reading time says little
RATES_KEPT = 10

_PHASES = {  # the gateway's words as a person reads them in `ps`
    Phase.WAITING: "starting",
    Phase.CONNECTING: "starting",
    Phase.LOADING: "loading",
    Phase.READING: "reading",
    Phase.THINKING: "thinking",
    Phase.ANSWERING: "answering",
    Phase.RELEASING: "ending",
    Phase.ENDED: "ending",
}

_log = logging.getLogger("koubou_agent")


class CliRunner(Protocol):
    """What an attempt needs of the runner."""

    def run(self, request: RunRequest, cancel: threading.Event) -> RunReport:
        """Run gemini-repo-cli; blocks."""


class ReadingRates:
    """How fast each model read its prompts lately, for the limit of the next first token."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rates: dict[str, deque[float]] = {}

    def learn(self, model: str, tokens: int, took_ms: int) -> None:
        """Ollama's own numbers of one prompt."""
        if tokens >= RATE_TOKENS_LEAST and took_ms > 0:
            with self._lock:
                kept = self._rates.setdefault(model, deque(maxlen=RATES_KEPT))
                kept.append(tokens * 1000 / took_ms)

    def tokens_per_s(self, model: str) -> float | None:
        """The slowest of the last ones: a prompt found in Ollama's cache looks faster than any reading."""
        with self._lock:
            return min(self._rates.get(model, ()), default=None)


@dataclass(frozen=True, slots=True)
class Equipment:
    """What every attempt works with."""

    gateway: Gateway
    preloader: Preloader
    runner: Callable[[], CliRunner]  # raises CliMissing
    fetch: Callable[[Body, threading.Event], bytes | None]  # None: stopped; raises InputsMissing
    facts: Callable[[str], ModelFacts]
    capped: Callable[[WorkerLimits], WorkerLimits]  # by this box's own ceilings
    rates: ReadingRates


@dataclass(frozen=True, slots=True)
class _Stop:
    error_class: ErrorClass | None
    message: str


class _Ending(Exception):  # noqa: N818 - not always an error: a stop too ends an attempt
    """The attempt is over without a success; no class: nobody wants its outcome."""

    def __init__(self, error_class: ErrorClass | None, message: str) -> None:
        super().__init__(message)
        self.error_class = error_class
        self.message = message


class AttemptRun:
    """Made and stopped by the loop, run by a thread, looked at by anybody."""

    def __init__(self, start: StartAttempt, equipment: Equipment) -> None:
        self._dispatch = start.dispatch
        self._worker = start.worker
        self._equipment = equipment
        self._lock = threading.Lock()
        self._stop: _Stop | None = None
        self._cancel = threading.Event()
        self._door: Door | None = None
        self._phase = "fetching"
        self._loaded = PreloadReport(None, "", 0)
        self._run: RunReport | None = None
        self._call: CallReport | None = None
        self._started_s = time.monotonic()

    @property
    def uid(self) -> str:
        """The attempt's uid."""
        return self._dispatch.attempt_uid

    def progress(self) -> tuple[str, int]:
        """The phase as a word for people, and the tokens answered so far, thinking included."""
        door = self._door
        if door is None:
            return self._phase, 0
        seen = door.progress()
        return _PHASES[seen.phase], seen.output_tokens + seen.thinking_tokens

    @property
    def is_loading(self) -> bool:
        """Whether it waits for its model's load."""
        return self._phase == "loading"

    @property
    def has_call(self) -> bool:
        """Whether one of the gateway's busy calls is this attempt's."""
        door = self._door
        return door is not None and door.progress().phase not in (Phase.WAITING, Phase.ENDED)

    def stop(self, error_class: ErrorClass | None, message: str) -> None:
        """End it early, from any thread; the first reason counts."""
        with self._lock:
            if self._stop is None:
                self._stop = _Stop(error_class, message)
            door = self._door
        self._cancel.set()
        if door is not None:
            door.abort(error_class, message)

    def run(self) -> tuple[Outcome | None, bytes]:
        """Do the work; the outcome (None: stopped, and nobody wants to know) and all the model said."""
        try:
            return self._work()
        except _Ending as ending:
            return self._failed(ending.error_class, ending.message), b""
        except InputsMissing as error:
            return self._failed(ErrorClass.INPUTS_UNAVAILABLE, str(error)), b""
        except CliMissing as error:
            return self._failed(ErrorClass.CLI_MISSING, f"{error.message}; {error.hint}"), b""
        except RefusedError as error:  # a file name that no side should have let through
            return self._failed(ErrorClass.BAD_REQUEST, error.message), b""
        except OSError as error:
            if durable.is_refusal(error):  # no try of the task's: another box may have room
                return self._failed(ErrorClass.INPUTS_UNAVAILABLE, f"the disk of this box is full: {error}"), b""
            return self._failed(ErrorClass.AGENT_ERROR, f"this box: {error}"), b""
        except KoubouError as error:
            return self._failed(ErrorClass.AGENT_ERROR, error.message), b""
        except Exception as error:
            _log.exception("attempt=%s the agent's own fault", self.uid)
            return self._failed(ErrorClass.AGENT_ERROR, f"{type(error).__name__}: {error}"), b""

    def _work(self) -> tuple[Outcome | None, bytes]:
        runner = self._equipment.runner()
        prompt, files = self._inputs()
        facts = self._equipment.facts(self._dispatch.model)
        plan = self._plan(facts)
        self._load(plan)
        report = self._ask(runner, plan, prompt, files)
        return self._success(report, facts)

    def _inputs(self) -> tuple[str, tuple[tuple[str, bytes], ...]]:
        """The prompt and the files, whole and checked."""
        dispatch = self._dispatch
        prompt = self._input(dispatch.prompt, "the prompt")
        files = tuple((file.name, self._input(file.body, file.name)) for file in dispatch.files)
        try:
            return prompt.decode("utf-8"), files
        except UnicodeDecodeError as error:
            raise _Ending(ErrorClass.BAD_REQUEST, f"the prompt is not UTF-8: {error.reason}") from error

    def _input(self, body: Body, what: str) -> bytes:
        data = body.inline if body.inline is not None else self._equipment.fetch(body, self._cancel)
        if data is None:
            self._end_if_stopped()
            raise InputsMissing(f"{what} was not fetched")
        if not is_body(body, data):
            raise InputsMissing(f"{what} arrived damaged: its digest or size is another")
        return data

    def _plan(self, facts: ModelFacts) -> CallPlan:
        dispatch, equipment = self._dispatch, self._equipment
        limits, rate = equipment.capped(self._worker.limits), equipment.rates.tokens_per_s(dispatch.model)
        return plan_call(self._worker, dispatch, facts, limits, rate)

    def _load(self, plan: CallPlan) -> None:
        """Before the attempt's clock starts, and not aborted: a load that is broken off begins anew."""
        self._phase = "loading"
        self._loaded = self._equipment.preloader.ensure(plan)
        self._phase = "starting"
        self._end_if_stopped()
        if self._loaded.error_class is not None:
            raise _Ending(self._loaded.error_class, self._loaded.message)

    def _ask(self, runner: CliRunner, plan: CallPlan, prompt: str, files: tuple[tuple[str, bytes], ...]) -> CallReport:
        """Run gemini-repo-cli, once more where all was thought away; the report of a success, or an ending."""
        door = self._open(plan)
        try:
            request = RunRequest(
                attempt_uid=self.uid,
                repo=self._dispatch.repo,
                target=self._dispatch.target,
                prompt=prompt,
                files=files,
                model=plan.model,
                host_url=door.host_url,
                timeout_s=plan.limits.total_s + RUNNER_MARGIN_S,
            )
            self._run = runner.run(request, self._cancel)
            if not self._cancel.is_set() and door.report().wants_more_thinking and door.allow_more_thinking():
                _log.info("attempt=%s thought all its tokens away: once more with twice the allowance", self.uid)
                self._run = runner.run(request, self._cancel)
        finally:
            self._call = door.close()
            self._door = None
        self._end_if_stopped()
        call, run = self._call, self._run
        self._equipment.rates.learn(plan.model, call.prompt_tokens, call.prompt_ms)
        if call.error_class is not None and call.calls > 0:
            raise _Ending(call.error_class, call.message)
        if run.timed_out:
            limits = plan.limits
            text = f"gemini-repo-cli did not end although its time was over ({limits.total_s:g} s, {limits.total_of})"
            raise _Ending(ErrorClass.TIMEOUT, text)
        if call.error_class is not None or run.exit_code != 0:
            raise _Ending(ErrorClass.CLI_FAILED, _how_it_ended(run, call))
        if not same_as_printed(call.text, run.stdout):
            raise _Ending(
                ErrorClass.OUTPUT_MISMATCH,
                f"gemini-repo-cli printed {len(run.stdout)} bytes that are not the model's answer",
            )
        return call

    def _open(self, plan: CallPlan) -> Door:
        door = self._equipment.gateway.open(self.uid, plan)
        with self._lock:
            self._door = door
            stop = self._stop
        if stop is not None:
            door.abort(stop.error_class, stop.message)
        return door

    def _success(self, call: CallReport, facts: ModelFacts) -> tuple[Outcome, bytes]:
        dispatch = self._dispatch
        raw = call.text.encode("utf-8", "replace")
        most = self._worker.limits.output_bytes
        if len(raw) > most:
            raise _Ending(ErrorClass.OUTPUT_TOO_LARGE, f"the answer has {len(raw)} bytes, at most {most} are kept")
        answer = extract(call.text, dispatch.target)
        if answer.length == 0:
            raise _Ending(ErrorClass.EMPTY_OUTPUT, "the answer is a fence with nothing in it")
        if answer.chatty and dispatch.strict_output:
            raise _Ending(
                ErrorClass.CHATTY_OUTPUT,
                "the answer holds prose or several blocks beside the file, and the task asks for strict output",
            )
        success = Success(
            attempt_uid=self.uid,
            raw=Body(hashlib.sha256(raw).digest(), len(raw)),
            output_offset=answer.offset,
            output_length=answer.length,
            flags=answer.flags,
            model=dispatch.model,
            model_digest=facts.digest,
            metrics=self._metrics(),
            log=self._log_tail(),
        )
        return success, raw

    def _failed(self, error_class: ErrorClass | None, message: str) -> Failed | None:
        if error_class is None:
            return None
        return Failed(self.uid, error_class, message[:SENTENCE_CHARS], self._metrics(), self._log_tail())

    def _metrics(self) -> Metrics:
        total_ms = int((time.monotonic() - self._started_s) * 1000)
        call, load_ms = self._call, self._loaded.load_ms
        if call is None:
            return Metrics(load_ms=load_ms, total_ms=total_ms, overhead_ms=max(0, total_ms - load_ms))
        return Metrics(
            prompt_tokens=call.prompt_tokens,
            thinking_tokens=call.thinking_tokens,
            output_tokens=call.output_tokens,
            load_ms=load_ms + call.load_ms,
            first_token_ms=call.first_token_ms,
            prompt_ms=call.prompt_ms,
            eval_ms=call.eval_ms,
            total_ms=total_ms,
            overhead_ms=max(0, total_ms - load_ms - call.total_ms),
            num_ctx=call.num_ctx,
            num_predict=call.num_predict,
        )

    def _log_tail(self) -> str:
        return self._run.log_tail[-LOG_BYTES:] if self._run is not None else ""

    def _end_if_stopped(self) -> None:
        stop = self._stop
        if stop is not None:
            raise _Ending(stop.error_class, stop.message)


def _how_it_ended(run: RunReport, call: CallReport) -> str:
    how = f"with exit code {run.exit_code}" if run.signal is None else f"by signal {run.signal}"
    if run.exit_code is None and run.signal is None:
        how = "with its environment"
    said = run.log_tail.strip().rsplit("\n", 1)[-1]
    return "; ".join(part for part in (f"gemini-repo-cli ended {how}", call.message, said) if part)
