"""Which of the workers that could take a task now gets it, or whether the task does better to wait. Pure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from koubou_broker.routing.score import Standing, Times
from koubou_broker.routing.workers import LiveWorker

# For a task this short the way there and back is something; for a longer one it is lost in the noise.
SHORT_TASK_S = 10.0
LATENCY_STEP_MS = 5  # below that a difference between two pings says nothing


@dataclass(frozen=True, slots=True)
class Choice:
    """A worker that could take the task now, and what is expected of it."""

    worker: LiveWorker
    group: int  # of the rule's preferred groups, from 0; their number: of none
    is_doubtful: bool  # by the estimate its window may be too small
    standing: Standing
    times: Times
    window: int = 0  # of a doubtful one: tokens that it gives the model

    @property
    def finish_s(self) -> float:
        """Expected from now: load, reading, answer."""
        return self.times.finish_s


class Strategy(Protocol):
    """Chooses among available workers; the rules of who is eligible and who is overtaken are not its business."""

    @property
    def name(self) -> str:
        """Its name in workers.yaml."""

    def choose(self, choices: Sequence[Choice], otherwise_s: Callable[[], float | None]) -> Choice | None:
        """The winner of `choices` (never empty); None: wait for a worker that is busy now.

        `otherwise_s`: in how many seconds the workshop would have this task done if none of `choices` took it;
        None: nobody else can. It is asked only where it matters, as it costs a look at every worker.
        """


class PriorityBased:
    """The best of the first preferred group, by points; ties go to whoever was idle longest."""

    name = "priority_based"

    def choose(self, choices: Sequence[Choice], otherwise_s: Callable[[], float | None]) -> Choice | None:
        """Never waits."""
        del otherwise_s
        return min(choices, key=by_points)


class EarliestFinish:
    """The one of the first preferred group that has it done first, unless the busy ones will have it done sooner."""

    name = "earliest_finish"

    def choose(self, choices: Sequence[Choice], otherwise_s: Callable[[], float | None]) -> Choice | None:
        """Waits near the end of the work, where a slow box would still be at this task when all others are done."""
        best = min(choices, key=_by_finish)
        without_s = otherwise_s()
        return best if without_s is None or best.finish_s <= without_s else None


STRATEGIES: Mapping[str, Strategy] = {one.name: one for one in (PriorityBased(), EarliestFinish())}


def order_of(strategy: Strategy) -> Callable[[Choice], tuple[object, ...]]:
    """By what the workers are sorted for people who look: one that follows no order has the default's."""
    return _by_finish if isinstance(strategy, EarliestFinish) else by_points


def by_points(choice: Choice) -> tuple[object, ...]:
    """The order of `priority_based`: the smallest is the best."""
    worker = choice.worker
    is_short = choice.times.run_s <= SHORT_TASK_S
    return (
        *first_of_all(choice),
        -choice.standing.total,
        worker.latency_ms // LATENCY_STEP_MS if is_short else 0,
        worker.idle_since_s,
        worker.worker_id,
    )


def first_of_all(choice: Choice) -> tuple[int, bool, int]:
    """What comes before speed and points in every order: the rule, then whether it surely fits."""
    # Where it may not fit anywhere, the largest window first: each failure costs a whole reading.
    return choice.group, choice.is_doubtful, -choice.window


def _by_finish(choice: Choice) -> tuple[object, ...]:
    return *first_of_all(choice), choice.finish_s, *by_points(choice)
