"""A worker's standing for a task, in points, each term apart; and the times it follows from. Pure."""

from dataclasses import dataclass

from koubou_broker.routing.performance import Performance
from koubou_broker.routing.queue import Need
from koubou_broker.routing.workers import LiveWorker
from koubou_common.messages.values import ScorePart

FACTOR_WEIGHT = 100.0
IDLE_BONUS = 50.0
BUSY_MALUS = 30.0
SUCCESS_WEIGHT = 30.0
CAPABILITY_BONUS = 20.0
BESIDE_THE_SCORE = frozenset({"residency", "prefix"})  # names of parts that the policy's score does not have


@dataclass(frozen=True, slots=True)
class Times:
    """How long a task is expected to take on one worker, from now."""

    run_s: float  # reading and answering
    load_s: float = 0.0  # before that, where its model is not loaded
    saved_s: float = 0.0  # of the reading, where the beginning of the prompt was read before

    @property
    def finish_s(self) -> float:
        """Until it is done."""
        return self.load_s + self.run_s - self.saved_s


@dataclass(frozen=True, slots=True)
class Standing:
    """The terms of the score as the policy names them, and those that come beside it."""

    factor: float
    idle: float  # the bonus of an idle worker, or the malus of one with some slots in use
    success: float
    capability: float
    residency: float = 0.0  # what loading the model there costs
    prefix: float = 0.0  # what the beginning of the prompt, read there before, saves

    @property
    def score(self) -> float:
        """The sum that the policy names."""
        return self.factor + self.idle + self.success + self.capability

    @property
    def beside(self) -> float:
        """What comes beside the score."""
        return self.residency + self.prefix

    @property
    def total(self) -> float:
        """What decides."""
        return self.score + self.beside

    def parts(self) -> tuple[ScorePart, ...]:
        """Each term under its name; those that say nothing are left out."""
        named = {
            "factor": self.factor,
            "idle" if self.idle >= 0 else "busy": self.idle,
            "success": self.success,
            "capability": self.capability,
            "residency": self.residency,
            "prefix": self.prefix,
        }
        return tuple(ScorePart(name, round(points, 1)) for name, points in named.items() if points)


def times_of(need: Need, worker: LiveWorker, performance: Performance, prompt_tokens: int, prefix_tokens: int) -> Times:
    """What is expected of this worker now; of a prompt whose size nobody told, the answer alone counts."""
    model = worker.model_for(need.model)
    prompt_tokens = max(prompt_tokens, prefix_tokens)
    is_read = prefix_tokens > 0 and worker.holds_prefix(model, need.prefix)
    return Times(
        run_s=performance.expected_s(worker, model, prompt_tokens),
        load_s=0.0 if worker.is_resident(model) else performance.load_s(worker, model),
        saved_s=performance.prompt_s(worker, model, prefix_tokens) if is_read else 0.0,
    )


def standing_of(need: Need, worker: LiveWorker, performance: Performance, times: Times) -> Standing:
    """How this worker stands for tasks with this need, now."""
    is_capable = bool(need.task_type) and need.task_type in worker.settings.capabilities
    factor = performance.factor(worker) * FACTOR_WEIGHT
    return Standing(
        factor=factor,
        idle=-BUSY_MALUS if worker.in_use else IDLE_BONUS,
        success=worker.success_rate * SUCCESS_WEIGHT,
        capability=CAPABILITY_BONUS if is_capable else 0.0,
        # A box that needs so much longer, or shorter, is worth as much as one of another factor.
        residency=factor * _faster(times.run_s, times.run_s + times.load_s),
        prefix=factor * _faster(times.run_s, times.run_s - times.saved_s),
    )


def _faster(usual_s: float, now_s: float) -> float:
    """By which part of itself the speed grows (falls, below 0) when what takes `usual_s` takes `now_s`."""
    return usual_s / now_s - 1.0 if now_s > 0 else 0.0
