"""/api/generate and /api/chat: from a decoded request to the answer's bytes."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from .asking import Asked, check_format, checked_options
from .engine import Ask
from .errors import NO_CLOUD, RUNNER_DIED, Gone, Refusal, not_found
from .faults import ENDINGS, Fault, FaultKind, Faults
from .gojson import encode, timestamp
from .markers import read_marks
from .models import SimModel, Thinking, is_cloud_name, normal_name
from .runner import Done, Job, Runner
from .scheduler import Scheduler
from .server import Connection
from .settings import SimSettings
from .wire import Reply
from .world import World

_LINES: Final = "application/x-ndjson"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a request, for the log."""

    ended: str
    status: int = 200
    prompt_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True, slots=True)
class _Part:
    """One line of an answer, before it becomes JSON."""

    text: str = ""
    thinking: str = ""
    done: Done | None = None
    null_text: bool = False


Note = Callable[[Outcome], None]


def refuse(reply: Reply, refusal: Refusal, *, stream: bool) -> None:
    """An error: with its status while none was sent, else as a line of the stream."""
    body = encode({"error": refusal.text})
    if reply.chunks:
        reply.chunk(body + b"\n")
        reply.finish()
    elif stream and refusal.late:
        reply.begin(refusal.status, "application/json")
        reply.chunk(body)
        reply.finish()
    else:
        reply.json(refusal.status, body)


class Generation:
    """Answers requests for text; one per server."""

    def __init__(
        self,
        *,
        models: Mapping[str, SimModel],
        world: World,
        settings: SimSettings,
        scheduler: Scheduler,
        faults: Faults,
        seed: int,
    ) -> None:
        self._models = models
        self._world = world
        self._settings = settings
        self._scheduler = scheduler
        self._faults = faults
        self._seed = seed

    def answer(self, asked: Asked, shape: str, reply: Reply, connection: Connection, note: Note) -> None:
        """Raises Gone when the client leaves, Refusal for what Ollama answers with an error.

        `note` gets the outcome before the client can have seen the end.
        """
        began_s = self._world.now_s()
        model = self._model(asked.model)
        prompt = asked.prompt
        writer = _Writer(asked, shape, reply, note)
        if not prompt and asked.keep_alive_s == 0:
            self._scheduler.expire(model)
            writer.only("unload")
            return
        if asked.raw and asked.system:
            raise Refusal(400, "raw mode does not support template, system, or context")
        think = _thinking(asked, model)
        if asked.suffix and not model.inserts:
            raise Refusal(400, f"registry.ollama.ai/library/{model.name} does not support insert")
        options = asked.load_options(self._settings.default_num_ctx)
        lease = self._scheduler.acquire(model, options, asked.keep_alive_s, connection.left)
        try:
            # A client that leaves gives the model back at once, even while its prompt is still being read.
            connection.on_leave(lease.release)
            loaded_s = self._world.now_s()
            if not prompt:
                writer.only("load")
                return
            try:
                work = _Work(asked, model, _rendered(asked, model, prompt), think, lease.runner, connection)
                self._generate(work, writer, _Total(began_s, loaded_s, self._world.now_s))
            except Refusal as refusal:
                writer.fail(refusal)
        finally:
            lease.release()

    def _model(self, name: str) -> SimModel:
        remote = self._faults.holding(FaultKind.CLOUD_MODEL, name) if name else None
        if is_cloud_name(name) or (remote and remote.model and normal_name(remote.model) == normal_name(name)):
            # Without the switch a real one sends the prompt away; this one has nowhere to send it.
            raise Refusal(403, NO_CLOUD) if self._settings.no_cloud else Refusal(502, "[SIMULATED] no cloud here")
        model = self._models.get(normal_name(name).lower()) if name else None
        if model is None:
            raise not_found(name)
        return model

    def _generate(self, work: "_Work", writer: "_Writer", total: "_Total") -> None:
        asked, engine = work.asked, work.model.engine
        seed = checked_options(asked.options).get("seed")
        ask = Ask(
            model=work.model.name,
            prompt=work.prompt,
            tokens=engine.prompt_tokens(work.prompt),
            seed=seed if isinstance(seed, int) else self._seed,
            think=work.think,
            format=check_format(asked.format),
        )
        job = Job(
            ask=ask,
            num_predict=asked.whole_option("num_predict", -1),
            num_keep=asked.whole_option("num_keep", 4),
            stops=asked.stops,
            truncate=asked.truncate,
            shift=asked.shift,
            gone=work.connection.left,
        )
        said: list[str] = []
        output_tokens = 0
        for part in self._parts(job, work, self._ending_fault(work)):
            said += [part.thinking, part.text]
            if part.done is None:
                output_tokens += 1
                writer.part(part, None)
                continue
            context = None if asked.raw else engine.tokenize(work.prompt + "".join(said))
            writer.part(part, total.metrics(part.done, context))
        if not writer.is_done:
            writer.break_off(Outcome("broken off", 200, len(ask.tokens), output_tokens))

    def _ending_fault(self, work: "_Work") -> Fault | None:
        wished = read_marks(work.prompt).fault
        if any(kind == wished for kind in ENDINGS):
            return Fault(FaultKind(wished))
        return self._faults.take(ENDINGS, path="/api/generate", model=work.model.name, prompt=work.prompt)

    def _parts(self, job: Job, work: "_Work", fault: Fault | None) -> Iterator["_Part"]:
        if fault is not None and fault.kind is FaultKind.LENGTH:
            job = replace(job, num_predict=max(fault.after, 1))
        count = 0
        for given in work.runner.answer(job):
            if fault is not None and count >= fault.after and self._strikes(fault, work):
                return
            if isinstance(given, Done):
                yield _Part(done=given, null_text=fault is not None and fault.kind is FaultKind.NULL_RESPONSE)
                return
            count += 1
            if fault is not None and fault.kind in (FaultKind.EMPTY, FaultKind.NULL_RESPONSE):
                continue
            yield _Part(thinking=given.text) if given.thinking else _Part(text=given.text)

    def _strikes(self, fault: Fault, work: "_Work") -> bool:
        """Do what the fault does now; True if the answer breaks off."""
        match fault.kind:
            case FaultKind.DONE_FALSE:
                return True
            case FaultKind.STREAM_ERROR:
                raise Refusal(fault.status or 500, fault.text or RUNNER_DIED, late=True)
            case FaultKind.KILL:
                work.runner.kill()
                raise Refusal(500, RUNNER_DIED, late=True)
            case FaultKind.STALL:
                self._world.wait(work.connection.left)
                raise Gone
            case _:
                return False


@dataclass(frozen=True, slots=True)
class _Work:
    """What an answer is made from."""

    asked: Asked
    model: SimModel
    prompt: str  # as the template renders it
    think: str
    runner: Runner
    connection: Connection


class _Writer:
    """Turns parts into one JSON object or into lines."""

    def __init__(self, asked: Asked, shape: str, reply: Reply, note: Note) -> None:
        self.is_done = False
        self._note = note
        self._asked = asked
        self._shape = shape
        self._reply = reply
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._last: tuple[_Part, Mapping[str, object]] = (_Part(), {})

    def only(self, reason: str) -> None:
        """An answer without generation: loaded, unloaded."""
        self.is_done = True
        self._note(Outcome(reason))
        self._reply.json(200, encode({**self._head(_Part()), "done": True, "done_reason": reason}))

    def part(self, part: _Part, metrics: Mapping[str, object] | None) -> None:
        self.is_done = part.done is not None
        if part.done is not None:
            self._note(Outcome("answered", 200, part.done.prompt_tokens, part.done.output_tokens))
        if self._asked.stream:
            if not self._reply.chunks:
                self._reply.begin(200, _LINES)
            self._reply.chunk(encode(self._object(part, metrics or {})) + b"\n")
        else:
            self._texts.append(part.text)
            self._thoughts.append(part.thinking)
            self._last = (part, metrics or {})
        if self.is_done:
            self._finish()

    def _finish(self) -> None:
        if not self._asked.stream:
            part, metrics = self._last
            whole = replace(part, text="".join(self._texts), thinking="".join(self._thoughts))
            self._reply.json(200, encode(self._object(whole, metrics)))
            return
        if not self._reply.chunks:
            self._reply.begin(200, _LINES)
        self._reply.finish()

    def break_off(self, outcome: Outcome) -> None:
        """No proper end, but a complete reply."""
        self._note(outcome)
        self._finish()

    def fail(self, refusal: Refusal) -> None:
        status = 200 if self._reply.chunks else refusal.status
        self._note(Outcome(f"error {refusal.status}: {refusal.text}", status))
        refuse(self._reply, refusal, stream=self._asked.stream)

    def _object(self, part: _Part, metrics: Mapping[str, object]) -> dict[str, object]:
        ending = {"done_reason": part.done.reason.value} if part.done else {}
        return {**self._head(part), "done": part.done is not None, **ending, **metrics}

    def _head(self, part: _Part) -> dict[str, object]:
        text = None if part.null_text else part.text
        thinking = {"thinking": part.thinking} if part.thinking else {}
        begin = {"model": self._asked.model, "created_at": timestamp(time.time_ns())}
        if self._shape == "chat":
            return {**begin, "message": {"role": "assistant", "content": text, **thinking}}
        return {**begin, "response": text, **thinking}


@dataclass(frozen=True, slots=True)
class _Total:
    """The clock over one request, in simulated time."""

    began_s: float
    loaded_s: float
    now_s: Callable[[], float]

    def metrics(self, done: Done, context: Sequence[int] | None) -> dict[str, object]:
        load_ns = max(round((self.loaded_s - self.began_s) * 1e9), 1)
        measured_ns = round((self.now_s() - self.began_s) * 1e9)
        values: dict[str, object] = {"context": context} if context else {}
        values |= {
            "total_duration": max(measured_ns, load_ns + done.prompt_ns + done.output_ns),
            "load_duration": load_ns,
            "prompt_eval_count": done.prompt_tokens,
            "prompt_eval_duration": done.prompt_ns,
            "eval_count": done.output_tokens,
            "eval_duration": done.output_ns,
        }
        # Go leaves zeros out.
        return {name: value for name, value in values.items() if value != 0}


def _thinking(asked: Asked, model: SimModel) -> str:
    think = asked.think
    if model.thinks is Thinking.NEVER:
        if think:
            raise Refusal(400, f'"{asked.model}" does not support thinking')
        return ""
    level = "high" if think == "max" else think if isinstance(think, str) else "medium"
    if model.thinks is Thinking.ALWAYS:
        return level
    return "" if think is False else level


def _rendered(asked: Asked, model: SimModel, prompt: str) -> str:
    images = "".join(f"[img-{number}]" for number in range(asked.images))
    if asked.system and model.reads_system_text:
        return f"{asked.system}\n\n{images}{prompt}"
    return images + prompt
