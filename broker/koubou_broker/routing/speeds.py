"""What the successful attempts of some hours say of a worker's speed with a model, summed up. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from koubou_broker.records import WorkerMetric
from koubou_common.models import normal_model

# Ollama counts tokens that it read before, but not their time: a prompt read more than twice as fast, a token,
# as the worker's mean was mostly known already, and says nothing about its speed.
FAST_READING = 0.5


@dataclass(frozen=True, slots=True)
class Speed:
    """Sums over the successful attempts of one worker with one model."""

    worker_id: str
    model: str
    runs: int
    prompt_tokens: int  # of all runs
    read_tokens: int  # of those whose prompt was really read
    read_ms: int
    output_tokens: int  # thinking included
    eval_ms: int
    loads: int  # runs that had to load the model
    load_ms: int

    def __add__(self, other: "Speed") -> "Speed":
        """Both together, under the name of the first."""
        return Speed(
            self.worker_id,
            self.model,
            self.runs + other.runs,
            self.prompt_tokens + other.prompt_tokens,
            self.read_tokens + other.read_tokens,
            self.read_ms + other.read_ms,
            self.output_tokens + other.output_tokens,
            self.eval_ms + other.eval_ms,
            self.loads + other.loads,
            self.load_ms + other.load_ms,
        )

    @property
    def is_measured(self) -> bool:
        """Whether anything can be divided by it."""
        return self.runs > 0 and self.output_tokens > 0 and self.eval_ms > 0


def by_normal_model(speeds: Iterable[Speed]) -> tuple[Speed, ...]:
    """One for each worker and model, whatever spellings the rows hold."""
    found: dict[tuple[str, str], Speed] = {}
    for one in speeds:
        model = normal_model(one.model)
        key = one.worker_id, model
        named = replace(one, model=model)
        found[key] = found[key] + named if key in found else named
    return tuple(found.values())


def speeds_of(metrics: Iterable[WorkerMetric], since_ms: int) -> tuple[Speed, ...]:
    """The same as the database's look-up, from rows in memory: for simulations."""
    rows = [one for one in metrics if one.success and one.measured_ms >= since_ms]
    paces: dict[tuple[str, str], list[float]] = {}
    for one in rows:
        if one.prompt_tokens and one.prompt_ms:
            paces.setdefault((one.worker_id, one.model), []).append(one.prompt_ms / one.prompt_tokens)
    speeds = []
    for one in rows:
        pace = paces.get((one.worker_id, one.model), [0.0])
        usual = sum(pace) / len(pace)
        was_read = one.prompt_ms > 0 and one.prompt_ms >= FAST_READING * usual * one.prompt_tokens
        speeds.append(
            Speed(
                one.worker_id,
                one.model,
                1,
                one.prompt_tokens,
                one.prompt_tokens if was_read else 0,
                one.prompt_ms if was_read else 0,
                one.output_tokens + one.thinking_tokens,
                one.eval_ms,
                1 if one.load_ms else 0,
                one.load_ms,
            )
        )
    return by_normal_model(speeds)
