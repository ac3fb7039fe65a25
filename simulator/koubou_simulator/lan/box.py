"""A simulated box: slots that share one GPU, models that displace each other, the last prompts' beginnings kept.

Ollama's own behaviour, simplified: requests are served in the order in which they came, one that needs a model
which is not loaded holds back those behind it, a model is displaced only when nothing runs on it any more.
"""

import math
from dataclasses import dataclass, field
from random import Random

from koubou_simulator.lan.things import (
    OUTPUT_TOKENS_PER_S,
    OVERHEAD_S,
    PROMPT_TOKENS_PER_S,
    SLOWED_BY,
    BoxSpec,
    Job,
)

_NEARLY_S = 1e-9  # of work: sums of floats do not end at exactly 0


@dataclass(slots=True)
class Run:
    """An attempt on a box."""

    uid: str
    task_id: int
    job: Job
    lane: int  # which of the box's slots draws it
    came_s: float
    began_s: float = math.inf  # its model is there, it has its part of the GPU
    load_s: float = 0.0
    read_s: float = 0.0  # of speed 1.0, still to be done
    answer_s: float = 0.0
    reading_took_s: float = 0.0
    answering_took_s: float = 0.0

    @property
    def is_running(self) -> bool:
        """Whether it uses the GPU."""
        return self.began_s < math.inf

    @property
    def is_done(self) -> bool:
        """Whether nothing of it is left to do."""
        return self.is_running and self.answer_s <= _NEARLY_S


@dataclass(frozen=True, slots=True)
class Load:
    """A model was loaded; `displaced` names what had to go for it."""

    model: str
    displaced: str
    from_s: float
    until_s: float


@dataclass(slots=True)
class Box:
    """The machine while it is there. Time only goes on by `go_on`."""

    spec: BoxSpec
    now_s: float = 0.0
    runs: list[Run] = field(default_factory=list)  # in the order in which they came
    loaded: dict[str, float] = field(default_factory=dict)  # model -> when it was last used
    loads: list[Load] = field(default_factory=list)
    busy_s: float = 0.0  # time in which the GPU answered or read
    _loading: Load | None = None
    _read_before: dict[int, tuple[str, str]] = field(default_factory=dict)  # slot -> (model, prefix)
    _rng: Random = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._rng = Random(self.spec.box_id)
        if self.spec.starts_loaded:
            self.loaded[self.spec.models[0]] = 0.0

    @property
    def next_s(self) -> float:
        """When something changes by itself; infinity: never."""
        due_s = math.inf
        if self._loading is not None:
            due_s = self._loading.until_s
        rate = self._rate()
        for run in self.runs:
            if self.spec.fails_after_s:
                due_s = min(due_s, run.came_s + self.spec.fails_after_s)
            elif run.is_running:
                due_s = min(due_s, self.now_s + max(0.0, run.read_s + run.answer_s) / rate)
            elif run.came_s + OVERHEAD_S > self.now_s:
                due_s = min(due_s, run.came_s + OVERHEAD_S)
        return due_s

    def take(self, uid: str, task_id: int, job: Job, now_s: float) -> None:
        """A dispatch arrived."""
        self.go_on(now_s)
        taken = {run.lane for run in self.runs}
        free = [lane for lane in range(max(self.spec.slots, len(taken) + 1)) if lane not in taken]
        wanted = (job.model, job.prefix)
        lane = next((one for one in free if self._read_before.get(one) == wanted), free[0])
        self.runs.append(Run(uid, task_id, job, lane, now_s))

    def drop(self, uid: str, now_s: float) -> None:
        """An attempt is to stop."""
        self.go_on(now_s)
        self.runs = [run for run in self.runs if run.uid != uid]
        self._settle()

    def crash(self) -> None:
        """All that is not on disk is gone."""
        self.runs.clear()
        self.loaded.clear()
        self._read_before.clear()
        self._loading = None

    def go_on(self, now_s: float) -> None:
        """Let time pass, at most to `next_s`."""
        self._work(now_s - self.now_s)
        self.now_s = now_s
        if self._loading is not None and now_s >= self._loading.until_s - _NEARLY_S:
            self.loaded[self._loading.model] = now_s
            self._loading = None
        self._settle()

    def ended(self) -> list[Run]:
        """The attempts that have ended by now, one way or the other; they free their slots."""
        fails_s = self.spec.fails_after_s
        over = [
            run for run in self.runs if (self.now_s >= run.came_s + fails_s - _NEARLY_S if fails_s else run.is_done)
        ]
        if over:
            self.runs = [run for run in self.runs if run not in over]
            self._settle()
        return over

    def _rate(self) -> float:
        """Of each running attempt, in seconds of speed 1.0 a second."""
        running = sum(run.is_running for run in self.runs)
        return self.spec.speed / (1.0 + SLOWED_BY * max(0, running - 1))

    def _work(self, passed_s: float) -> None:
        rate = self._rate()
        is_busy = False
        for run in self.runs:
            if not run.is_running:
                continue
            is_busy = True
            reading_s = min(passed_s, run.read_s / rate)
            run.read_s -= reading_s * rate
            run.reading_took_s += reading_s
            run.answer_s -= (passed_s - reading_s) * rate
            run.answering_took_s += passed_s - reading_s
            self.loaded[run.job.model] = self.now_s + passed_s
        self.busy_s += passed_s if is_busy else 0.0

    def _settle(self) -> None:
        """Begin what can begin, in order; what needs a model that is not there holds back those behind it."""
        for run in self.runs:
            if run.is_running or self.now_s < run.came_s + OVERHEAD_S - _NEARLY_S:
                continue
            if run.job.model in self.loaded:
                self._begin(run)
            else:
                self._load(run.job.model)
                return

    def _begin(self, run: Run) -> None:
        job = run.job
        run.began_s = self.now_s
        waited_from_s = run.came_s + OVERHEAD_S
        for load in reversed(self.loads):
            if load.until_s <= waited_from_s:
                break
            if load.model == job.model:
                run.load_s += load.until_s - max(load.from_s, waited_from_s)
        known = self._read_before.get(run.lane)
        tokens = job.prompt_tokens
        if job.prefix and known == (job.model, job.prefix):
            tokens -= job.prefix_tokens
        self._read_before[run.lane] = (job.model, job.prefix)
        varies = self._rng.lognormvariate(0.0, self.spec.jitter) if self.spec.jitter else 1.0
        run.read_s = varies * tokens / PROMPT_TOKENS_PER_S
        run.answer_s = varies * job.output_tokens / OUTPUT_TOKENS_PER_S

    def _load(self, model: str) -> None:
        if self._loading is not None:
            return
        displaced = ""
        if len(self.loaded) >= self.spec.memory_models:
            in_use = {run.job.model for run in self.runs if run.is_running}
            idle = [name for name in self.loaded if name not in in_use]
            if not idle:
                return
            displaced = min(idle, key=lambda name: self.loaded[name])
            del self.loaded[displaced]
            self._read_before = {lane: one for lane, one in self._read_before.items() if one[0] != displaced}
        self._loading = Load(model, displaced, self.now_s, self.now_s + self.spec.load_s / self.spec.speed)
        self.loads.append(self._loading)
