"""How fast each worker is: measured factors and rates, and how long a task will take there. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from koubou_broker.core_settings import LOCAL, PerformanceSettings
from koubou_broker.routing.factors import Factor, measured_factors
from koubou_broker.routing.speeds import FAST_READING, Speed
from koubou_broker.routing.workers import LiveWorker
from koubou_common.messages.values import Metrics
from koubou_common.models import normal_model

_DEFAULTS = PerformanceSettings()
# Where nothing was measured: a 20B model on a consumer GPU, in round numbers.
_PROMPT_TOKENS_PER_S = 400.0
_OUTPUT_TOKENS_PER_S = 30.0
_OUTPUT_TOKENS = 500
_LOAD_S = 20.0

_WEIGHT_LEAST = 0.05  # of one more run: some twenty runs make a rate
_CACHED_WEIGHT = 0.01  # of a prompt that was mostly known already: it counts only if that goes on
_PATIENCE = 3.0  # times what is expected, until an attempt is given up


@dataclass(frozen=True, slots=True)
class TimeLimits:
    """How long an attempt may take, by what was measured."""

    first_token_s: float  # the model loaded
    total_s: float


@dataclass(slots=True)
class _Rates:
    """Means a run, newer runs counting more; of one worker with one model, or of all at factor 1.0."""

    runs: int = 0
    prompt_tokens: float = 0.0
    prompt_s: float = 0.0
    output_tokens: float = 0.0
    output_s: float = 0.0
    loads: int = 0
    load_s: float = 0.0

    @property
    def prompt_per_s(self) -> float:
        """Tokens read in a second; 0: not known."""
        return self.prompt_tokens / self.prompt_s if self.prompt_s > 0 else 0.0

    @property
    def output_per_s(self) -> float:
        """Tokens said in a second; 0: not known."""
        return self.output_tokens / self.output_s if self.output_s > 0 else 0.0

    def feed(self, prompt_tokens: int, prompt_s: float, output_tokens: int, output_s: float, load_s: float) -> None:
        """One more successful run."""
        self.runs += 1
        weight = max(1.0 / self.runs, _WEIGHT_LEAST)
        self.output_tokens += weight * (output_tokens - self.output_tokens)
        self.output_s += weight * (output_s - self.output_s)
        if prompt_tokens > 0 and prompt_s > 0:
            known = self.prompt_per_s
            if known and prompt_s * known < FAST_READING * prompt_tokens:
                weight = _CACHED_WEIGHT
            self.prompt_tokens += weight * (prompt_tokens - self.prompt_tokens)
            self.prompt_s += weight * (prompt_s - self.prompt_s)
        if load_s > 0:
            self.loads += 1
            self.load_s += max(1.0 / self.loads, _WEIGHT_LEAST) * (load_s - self.load_s)


class Performance:
    """What is known of the workers' speed; asked for every decision, told after every attempt."""

    def __init__(self, workers: Mapping[str, LiveWorker], settings: PerformanceSettings = _DEFAULTS) -> None:
        self._workers = workers
        self._settings = settings
        self._rates: dict[str, dict[str, _Rates]] = {}  # by worker_id, then by model
        self._of_model: dict[str, _Rates] = {}  # of all workers, as if their factor were 1.0

    def factor(self, worker: LiveWorker) -> float:
        """The factor that counts: measured where there are samples enough, else as configured."""
        return worker.performance_factor

    def expected_s(self, worker: LiveWorker, model: str, prompt_tokens: int) -> float:
        """How long an attempt of `model` (resolved, normal spelling) takes there, without load and slot wait."""
        return self.prompt_s(worker, model, prompt_tokens) + self.answer_s(worker, model)

    def work_s(self, model: str, prompt_tokens: int) -> float:
        """How long an attempt takes at factor 1.0; of no model in particular, by the usual rates."""
        of_all = self._of_model.get(normal_model(model)) if model else None
        if of_all is None or not of_all.runs:
            of_all = _Rates()
        answer_s = (of_all.output_tokens or _OUTPUT_TOKENS) / (of_all.output_per_s or _OUTPUT_TOKENS_PER_S)
        return prompt_tokens / (of_all.prompt_per_s or _PROMPT_TOKENS_PER_S) + answer_s

    def prompt_s(self, worker: LiveWorker, model: str, prompt_tokens: int) -> float:
        """How long reading so many tokens takes there."""
        return prompt_tokens / (self._prompt_per_s(worker, model) * worker.speed_share)

    def answer_s(self, worker: LiveWorker, model: str) -> float:
        """How long an answer of the model's usual length takes there."""
        of_all = self._of_model.get(normal_model(model))
        tokens = of_all.output_tokens if of_all is not None and of_all.runs else _OUTPUT_TOKENS
        return tokens / (self._output_per_s(worker, model) * worker.speed_share)

    def load_s(self, worker: LiveWorker, model: str) -> float:
        """How long loading the model takes there."""
        own = self._own(worker, model)
        if own is not None and own.loads:
            return own.load_s
        of_all = self._of_model.get(normal_model(model))
        known_s = of_all.load_s if of_all is not None and of_all.loads else _LOAD_S
        return known_s / self.factor(worker)

    def limits(self, worker: LiveWorker, model: str, prompt_tokens: int, answer_tokens_most: int) -> TimeLimits | None:
        """What an attempt may take there, within what the worker's settings allow; None: nothing is measured."""
        own = self._own(worker, model)
        if own is None or own.runs < self._settings.min_samples or not own.output_per_s or not own.prompt_per_s:
            return None
        configured = worker.settings.limits
        reading_s = prompt_tokens / own.prompt_per_s
        work_s = reading_s + answer_tokens_most / own.output_per_s + self.load_s(worker, model)
        return TimeLimits(
            first_token_s=min(configured.total_s, max(configured.first_token_s, _PATIENCE * reading_s)),
            total_s=min(configured.total_s, max(worker.settings.total_least_s, _PATIENCE * work_s)),
        )

    def measured_rates(self, worker: LiveWorker, model: str) -> tuple[float, float]:
        """Prompt and output tokens a second of this worker with this model; 0: not measured."""
        own = self._own(worker, model)
        return (own.prompt_per_s, own.output_per_s) if own is not None else (0.0, 0.0)

    def measured_models(self, worker: LiveWorker) -> list[str]:
        """The models (normal spelling) it has run."""
        return list(self._rates.get(worker.worker_id, ()))

    def learn(self, worker: LiveWorker, model: str, metrics: Metrics) -> None:
        """A success came."""
        tokens = metrics.output_tokens + metrics.thinking_tokens
        if tokens <= 0 or metrics.eval_ms <= 0:
            return
        model = normal_model(model)
        own = self._rates.setdefault(worker.worker_id, {}).setdefault(model, _Rates())
        of_all = self._of_model.setdefault(model, _Rates())
        for rates, scale in ((own, 1.0), (of_all, self.factor(worker))):
            rates.feed(
                metrics.prompt_tokens,
                scale * metrics.prompt_ms / 1000,
                tokens,
                scale * metrics.eval_ms / 1000,
                scale * metrics.load_ms / 1000,
            )

    def take_over(self, speeds: Iterable[Speed]) -> dict[str, Factor]:
        """Work out all factors anew from the last hours; returns those measured, by worker_id.

        Rates known already are fresher than sums over hours: only those of workers and models not seen since
        the start are taken from them.
        """
        speeds = tuple(speeds)
        local = {worker_id for worker_id, worker in self._workers.items() if worker.settings.location == LOCAL}
        factors = measured_factors(speeds, local, self._settings.min_samples)
        for worker_id, worker in self._workers.items():
            factor = factors.get(worker_id)
            worker.measured_factor = factor.factor if factor is not None else None
            worker.factor_samples = factor.samples if factor is not None else 0
        of_model: dict[str, _Rates] = {}
        for speed in speeds:
            speaker = self._workers.get(speed.worker_id)
            if speaker is None or not speed.is_measured:
                continue
            self._rates.setdefault(speed.worker_id, {}).setdefault(speed.model, _rates(speed))
            _join(of_model.setdefault(speed.model, _Rates()), _rates(speed), self.factor(speaker))
        self._of_model.update(of_model)
        return {worker_id: factor for worker_id, factor in factors.items() if worker_id in self._workers}

    def _own(self, worker: LiveWorker, model: str) -> _Rates | None:
        of_worker = self._rates.get(worker.worker_id)
        return of_worker.get(normal_model(model)) if of_worker is not None else None

    def _prompt_per_s(self, worker: LiveWorker, model: str) -> float:
        own = self._own(worker, model)
        if own is not None and own.prompt_per_s:
            return own.prompt_per_s
        of_all = self._of_model.get(normal_model(model))
        known = of_all.prompt_per_s if of_all is not None else 0.0
        return (known or _PROMPT_TOKENS_PER_S) * self.factor(worker)

    def _output_per_s(self, worker: LiveWorker, model: str) -> float:
        own = self._own(worker, model)
        if own is not None and own.output_per_s:
            return own.output_per_s
        of_all = self._of_model.get(normal_model(model))
        known = of_all.output_per_s if of_all is not None else 0.0
        return (known or _OUTPUT_TOKENS_PER_S) * self.factor(worker)


def _rates(speed: Speed) -> _Rates:
    """Means from sums."""
    runs = speed.runs
    return _Rates(
        runs=runs,
        prompt_tokens=speed.read_tokens / runs,
        prompt_s=speed.read_ms / 1000 / runs,
        output_tokens=speed.output_tokens / runs,
        output_s=speed.eval_ms / 1000 / runs,
        loads=speed.loads,
        load_s=speed.load_ms / 1000 / speed.loads if speed.loads else 0.0,
    )


def _join(into: _Rates, one: _Rates, factor: float) -> None:
    """Add a worker's rates to those of all, at factor 1.0, each by its runs."""
    runs = into.runs + one.runs
    share = one.runs / runs
    into.prompt_tokens += share * (one.prompt_tokens - into.prompt_tokens)
    into.prompt_s += share * (factor * one.prompt_s - into.prompt_s)
    into.output_tokens += share * (one.output_tokens - into.output_tokens)
    into.output_s += share * (factor * one.output_s - into.output_s)
    into.runs = runs
    if one.loads:
        into.loads += one.loads
        into.load_s += one.loads / into.loads * (factor * one.load_s - into.load_s)
