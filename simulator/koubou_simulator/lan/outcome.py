"""What came of a simulated run: who ran what when, and the figures people ask for."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from koubou_common.messages.values import TaskState
from koubou_simulator.lan.box import Load
from koubou_simulator.lan.things import BoxSpec, Job

BANDS = ((8, 10), (5, 7), (1, 4))  # of priorities, as the default rules divide them


@dataclass(slots=True)
class JobStory:
    """What became of one job."""

    task_id: int
    job: Job
    asked_for: str = ""  # the box chosen at submit
    given_s: list[float] = field(default_factory=list)  # its dispatches
    boxes: list[str] = field(default_factory=list)  # that got it
    ended_s: float = math.inf
    state: TaskState = TaskState.QUEUED

    @property
    def wait_s(self) -> float:
        """From its arrival until it was first given out."""
        return (self.given_s[0] if self.given_s else math.inf) - self.job.arrives_s

    @property
    def response_s(self) -> float:
        """From its arrival to its end."""
        return self.ended_s - self.job.arrives_s


@dataclass(frozen=True, slots=True)
class Span:
    """An attempt on a box, for the chart."""

    lane: int
    from_s: float
    until_s: float
    task_id: int
    job: Job
    how: str  # succeeded, failed, lost


@dataclass(slots=True)
class BoxStory:
    """What a box did."""

    spec: BoxSpec
    spans: list[Span] = field(default_factory=list)
    loads: list[Load] = field(default_factory=list)
    busy_s: float = 0.0
    here_s: float = 0.0
    away: list[tuple[float, float]] = field(default_factory=list)

    @property
    def swaps(self) -> int:
        """Loads for which another model had to go."""
        return sum(bool(load.displaced) for load in self.loads)


@dataclass(slots=True)
class Outcome:
    """A run whole."""

    jobs: list[JobStory]
    boxes: dict[str, BoxStory]
    alerts: list[tuple[float, str, str]]  # when, code, text; empty text: it ended
    given: dict[str, int]  # attempts by box
    factors: dict[str, float]  # as the core measured them at last, by box
    steps: int  # of the core

    @property
    def makespan_s(self) -> float:
        """From the first arrival to the last end."""
        return max(one.ended_s for one in self.jobs) - min(one.job.arrives_s for one in self.jobs)

    @property
    def mean_response_s(self) -> float:
        """From arrival to end."""
        return fmean(one.response_s for one in self.jobs)

    @property
    def swaps(self) -> int:
        """Loads for which another model had to go, on all boxes."""
        return sum(box.swaps for box in self.boxes.values())

    @property
    def not_succeeded(self) -> int:
        """Jobs that did not end well."""
        return sum(one.state is not TaskState.SUCCEEDED for one in self.jobs)

    def waits_s(self, lowest: int, highest: int) -> list[float]:
        """Of the jobs of these priorities, sorted."""
        return sorted(one.wait_s for one in self.jobs if lowest <= one.job.priority <= highest)

    def utilisation(self, box_id: str) -> float:
        """Part of the run's length in which the box's GPU worked."""
        return self.boxes[box_id].busy_s / self.makespan_s

    def overtaken_s(self) -> float:
        """The longest for which later jobs of the same priority went before one: from the first of them to the last."""
        longest = 0.0
        by_priority: dict[int, list[tuple[int, float]]] = {}
        for one in self.jobs:
            by_priority.setdefault(one.job.priority, []).append((one.task_id, one.given_s[0]))
        for given in by_priority.values():
            given.sort()
            for nth, (_, own_s) in enumerate(given):
                before_s = [other_s for _, other_s in given[nth + 1 :] if other_s < own_s]
                if before_s:
                    longest = max(longest, max(before_s) - min(before_s))
        return longest


def percentile(values: Sequence[float], part: float) -> float:
    """The value that `part` of the sorted values do not exceed; 0 where there are none."""
    return values[min(len(values) - 1, max(0, math.ceil(part * len(values)) - 1))] if values else 0.0


def lower_bound_s(jobs: Iterable[Job], boxes: Iterable[BoxSpec]) -> float:
    """No schedule ends sooner: all boxes work all the time, and the largest job runs on the fastest box."""
    work = [job.work_s for job in jobs]
    there = list(boxes)
    return max(sum(work) / sum(box.capacity for box in there), max(work) / max(box.speed for box in there))
