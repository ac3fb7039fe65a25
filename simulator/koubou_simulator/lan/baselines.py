"""How work is given out elsewhere: the rows that Koubou's two strategies are compared with."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol

from koubou_broker.routing.strategies import Choice
from koubou_simulator.lan.things import LOCAL, BoxSpec, Job

# The rules of the original design: from and to which priority, which kinds of boxes.
_ORIGINAL_RULES = ((8, 10, ("local",)), (5, 7, ("local", "remote")), (1, 4, ("remote",)))


class RandomChoice:
    """Any box with a free slot."""

    name = "random"

    def __init__(self, rng: Random) -> None:
        self._rng = rng

    def choose(self, choices: Sequence[Choice], otherwise_s: Callable[[], float | None]) -> Choice | None:
        """Never waits."""
        del otherwise_s
        return self._rng.choice(sorted(choices, key=_worker_id))


class RoundRobin:
    """The next box with a free slot, in the order of their names."""

    name = "round_robin"

    def __init__(self) -> None:
        self._last = ""

    def choose(self, choices: Sequence[Choice], otherwise_s: Callable[[], float | None]) -> Choice | None:
        """Never waits."""
        del otherwise_s
        ordered = sorted(choices, key=_worker_id)
        best = next((one for one in ordered if _worker_id(one) > self._last), ordered[0])
        self._last = _worker_id(best)
        return best


class LeastConnections:
    """The box that has fewest attempts now; of equals the one idle for longest."""

    name = "least_connections"

    def choose(self, choices: Sequence[Choice], otherwise_s: Callable[[], float | None]) -> Choice | None:
        """Never waits."""
        del otherwise_s
        return min(choices, key=lambda one: (one.worker.in_use, one.worker.idle_since_s, _worker_id(one)))


@dataclass(slots=True)
class Seen:
    """What somebody who chooses at submit knows of a box."""

    spec: BoxSpec
    open_jobs: int = 0  # sent there and not ended
    is_here: bool = True


class Chooser(Protocol):
    """Chooses the box when a job is submitted, as people do who have no queue: the job stays with it."""

    def choose(self, job: Job, boxes: Mapping[str, Seen]) -> str:
        """The box's id."""


class RandomAtSubmit:
    """Any box."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng

    def choose(self, job: Job, boxes: Mapping[str, Seen]) -> str:
        """The box's id."""
        return self._rng.choice([box_id for box_id, _ in _here(job, boxes)])


class RoundRobinAtSubmit:
    """One box after the other."""

    def __init__(self) -> None:
        self._turn = 0

    def choose(self, job: Job, boxes: Mapping[str, Seen]) -> str:
        """The box's id."""
        here = _here(job, boxes)
        self._turn += 1
        return here[(self._turn - 1) % len(here)][0]


class LeastConnectionsAtSubmit:
    """The box with the fewest open jobs, as a load balancer in front of several Ollamas would."""

    def choose(self, job: Job, boxes: Mapping[str, Seen]) -> str:
        """The box's id."""
        return min(_here(job, boxes), key=lambda one: (one[1].open_jobs, one[0]))[0]


class OriginalAtSubmit:
    """The original design's formula to the letter: no slots, the first kind of boxes that exists, the best score."""

    def choose(self, job: Job, boxes: Mapping[str, Seen]) -> str:
        """The box's id."""
        here = _here(job, boxes)
        for lowest, highest, kinds in _ORIGINAL_RULES:
            if lowest <= job.priority <= highest:
                for kind in kinds:
                    candidates = [one for one in here if (one[1].spec.location == LOCAL) == (kind == LOCAL)]
                    if candidates:
                        return max(candidates, key=lambda one: _original_score(one[1]))[0]
        return here[0][0]


def _original_score(seen: Seen) -> float:
    # Every simulated box is "general", as every job is: + 20. Nothing fails: the success rate is 1.0.
    return seen.spec.configured_factor * 100 + (-30 if seen.open_jobs else 50) + 1.0 * 30 + 20


def _here(job: Job, boxes: Mapping[str, Seen]) -> list[tuple[str, Seen]]:
    having = [(box_id, seen) for box_id, seen in boxes.items() if job.model in seen.spec.models]
    return [one for one in having if one[1].is_here] or having


def _worker_id(choice: Choice) -> str:
    return choice.worker.worker_id
