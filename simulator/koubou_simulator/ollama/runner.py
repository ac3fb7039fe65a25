"""One loaded model: its slots, first come first served, what they remember, and the pace of its answers."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Final

from .decoding import Decoder, Ending
from .engine import Ask, Piece
from .errors import RUNNER_DIED, RUNNER_EXITED, Gone, Refusal
from .models import SimModel
from .settings import CPU_FALLBACK_EVAL, CPU_FALLBACK_PROMPT, Mode, Timing
from .window import fitted
from .world import World

_POLL_S: Final = 1.0  # llama-server looks at its connection this often


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """The options that make a model load again when they change."""

    num_ctx: int
    num_batch: int = 512
    num_gpu: int = -1
    main_gpu: int = 0
    use_mmap: bool | None = None
    num_thread: int = 0


@dataclass(frozen=True, slots=True)
class Job:
    """One answer to give."""

    ask: Ask
    num_predict: int
    num_keep: int
    stops: tuple[str, ...]
    truncate: bool
    shift: bool
    gone: Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Text:
    """A part of the answer."""

    text: str
    thinking: bool


@dataclass(frozen=True, slots=True)
class Done:
    """The proper end, with what was counted; durations in simulated nanoseconds."""

    reason: Ending
    prompt_tokens: int
    prompt_ns: int
    output_tokens: int
    output_ns: int


@dataclass(slots=True)
class Slot:
    remembered: list[int] = field(default_factory=list)
    busy: bool = False


class Runner:
    """The process that Ollama starts for a loaded model. Fields are touched under the world's lock."""

    def __init__(
        self,
        model: SimModel,
        options: LoadOptions,
        *,
        world: World,
        mode: Mode,
        slots: int,
        fallback: Callable[[], bool],
        busy: Callable[[], int],
    ) -> None:
        self.model = model
        self.options = options
        self.num_ctx = min(options.num_ctx, model.train_ctx)
        self.slots = [Slot() for _ in range(slots)]
        self.loading = True
        self.dead = False
        self.refs = 0
        self.session_s = 0.0
        self.expires_at_s: float | None = None  # what /api/ps shows
        self.unload_at_s: float | None = None  # the armed timer
        self.evicting = False
        self.most_active = 0
        self._world = world
        self._mode = mode
        self._fallback = fallback
        self._busy = busy  # answers being made on the whole machine
        self._queue: deque[object] = deque()

    @property
    def active(self) -> int:
        return sum(slot.busy for slot in self.slots)

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def kill(self) -> None:
        with self._world.lock():
            self.dead = True
            self._world.changed()

    def answer(self, job: Job) -> Iterator[Text | Done]:
        """The parts of the answer as they come. Ends without Done where Ollama gives up. Raises Gone, Refusal."""
        slot = self._enter(job)
        try:
            yield from self._run(job, slot)
        finally:
            with self._world.lock():
                slot.busy = False
                self._world.changed()

    def _enter(self, job: Job) -> Slot:
        ticket = object()
        with self._world.lock():
            self._queue.append(ticket)
            try:
                self._world.wait(
                    lambda: job.gone() or self.dead or (self._queue[0] is ticket and self.active < len(self.slots))
                )
                if job.gone():
                    raise Gone
                if self.dead:
                    raise Refusal(500, RUNNER_EXITED, late=True)
                tokens = job.ask.tokens
                slot = max((slot for slot in self.slots if not slot.busy), key=lambda s: _common(s.remembered, tokens))
                slot.busy = True
                self.most_active = max(self.most_active, self.active)
                return slot
            finally:
                self._queue.remove(ticket)
                self._world.changed()

    def _run(self, job: Job, slot: Slot) -> Iterator[Text | Done]:
        tokens = fitted(
            job.ask.tokens,
            num_ctx=self.num_ctx,
            num_keep=job.num_keep,
            truncate=job.truncate,
            shift=job.shift,
            mode=self._mode,
        )
        timing = self._timing()
        cached = min(_common(slot.remembered, tokens), len(tokens) - 1)
        began_s = self._world.now_s()
        prompt_s = (len(tokens) - cached) / timing.prompt_tokens_per_s
        slot.remembered = tokens
        self._read_prompt(job, began_s, prompt_s)
        prompt_ns = max(round(prompt_s * 1e9), 1_000)  # a real one is never zero, and zero would be left out

        limit = job.num_predict
        if limit < 0 or limit > 10 * self.num_ctx:
            limit = 10 * self.num_ctx
        spare = 1 if self._mode is Mode.LEGACY else 0  # the last token need not be kept
        room = None if job.shift else max(self.num_ctx - len(tokens) + spare, 1)
        decoder = Decoder(job.stops, limit, room)
        due_s, output_s = began_s + prompt_s, 0.0
        for piece in _with_end(self.model.engine.reply(replace(job.ask, tokens=tokens))):
            if decoder.eval_count:
                step_s = (1 + timing.contention * max(self._busy() - 1, 0)) / timing.eval_tokens_per_s
                due_s += step_s
                output_s += step_s
                self._pause(job, due_s)
            else:
                self._check(job)
            for said in decoder.take(piece):
                if said.text:
                    yield Text(said.text, said.thinking)
                if said.ending is Ending.LOOP:
                    return
                if said.ending is not None:
                    output_ns = max(round(output_s * 1e9), 1_000 * (decoder.eval_count - 1))
                    yield Done(said.ending, len(tokens), prompt_ns, decoder.eval_count, output_ns)
                    return

    def _read_prompt(self, job: Job, began_s: float, prompt_s: float) -> None:
        ready_s = began_s + prompt_s
        if self._mode is Mode.LEGACY:
            # Nobody looks at the connection before the first token is there.
            if prompt_s:
                self._world.wait(lambda: self.dead, ready_s)
            self._check(job)
            return
        look_s = began_s
        while look_s < ready_s:
            look_s = min(look_s + _POLL_S, ready_s)
            self._world.wait(lambda: self.dead, look_s)
            self._check(job)

    def _pause(self, job: Job, due_s: float) -> None:
        # A wait that is over before it begins costs a lock per token: thousands a second at high speed.
        if self._world.now_s() < due_s:
            self._world.wait(lambda: self.dead or job.gone(), due_s)
        self._check(job)

    def _check(self, job: Job) -> None:
        if job.gone():
            raise Gone
        if self.dead:
            raise Refusal(500, RUNNER_DIED, late=True)

    def _timing(self) -> Timing:
        timing = self.model.timing
        if not (timing.on_gpu and self._fallback()):
            return timing
        return Timing(
            timing.load_s,
            timing.prompt_tokens_per_s * CPU_FALLBACK_PROMPT,
            timing.eval_tokens_per_s * CPU_FALLBACK_EVAL,
            contention=1.0,
            on_gpu=False,
        )


def _with_end(pieces: Iterator[Piece]) -> Iterator[Piece | None]:
    yield from pieces
    yield None


def _common(left: list[int], right: list[int]) -> int:
    count = 0
    for one, other in zip(left, right, strict=False):
        if one != other:
            break
        count += 1
    return count
