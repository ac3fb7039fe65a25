"""Finds the task that survived most: which incidents fell upon each, by time and place. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from chaos.record import AttemptOnRecord, Record, TaskOnRecord
from chaos.storm import BROKER, Incident
from chaos.timetable import Deed
from koubou_common.messages.values import AttemptState, TaskState

_MS = 1_000
_KINDS_ENOUGH = 5
_FAULT_WAITS_MS = 3_000  # for a request to meet it; another task may have met it in that time


@dataclass(frozen=True, slots=True)
class Survivor:
    """A task and what it met while it was open."""

    task_id: int
    attempts: int
    met: tuple[Incident, ...]

    @property
    def kinds(self) -> frozenset[str]:
        """Which different faults: what was done, and to which kind of program."""
        return frozenset(kind_of(incident) for incident in self.met)


def kind_of(incident: Incident) -> str:
    """`kill broker`, `freeze agent`, `proxy reset`: incidents of one kind count once."""
    if incident.what.startswith("proxy ") or incident.what in (Deed.LINK_DOWN, Deed.OLLAMA_FAULT):
        return incident.what
    if incident.victim == BROKER or incident.victim.startswith("client_"):
        return f"{incident.what} {incident.victim.partition('_')[0]}"
    return f"{incident.what} {'ollama' if incident.victim.startswith('ollama ') else 'agent'}"


def hardest(record: Record, incidents: Sequence[Incident]) -> Survivor | None:
    """The succeeded task that met most kinds of fault; only faults of those it depended on at that moment count."""
    attempts_of: dict[int, list[AttemptOnRecord]] = {}
    for attempt in record.attempts:
        attempts_of.setdefault(attempt.task_id, []).append(attempt)
    survivors = []
    for task in record.tasks:
        if task.state is TaskState.SUCCEEDED:
            attempts = attempts_of.get(task.task_id, [])
            met = tuple(one for one in incidents if _falls_upon(one, task, attempts))
            survivors.append(Survivor(task.task_id, len(attempts), met))
    # Enough kinds first, then attempts that show them; of equals the one with fewer incidents can be read.
    return max(
        survivors, key=lambda one: (min(len(one.kinds), _KINDS_ENOUGH), one.attempts, -len(one.met)), default=None
    )


def _falls_upon(incident: Incident, task: TaskOnRecord, attempts: Sequence[AttemptOnRecord]) -> bool:
    ends_ms = incident.at_ms + round(incident.lasts_s * _MS)
    if ends_ms < task.submitted_ms or incident.at_ms > task.finished_ms:
        return False
    if incident.victim in (BROKER, task.principal):
        return incident.at_ms >= task.submitted_ms
    there = [one for one in attempts if one.worker_id == incident.victim.removeprefix("ollama ")]
    if incident.what == Deed.OLLAMA_FAULT:
        # It waits for the next request: this task's, if that one failed then.
        return any(
            one.state is AttemptState.FAILED and one.started_ms - _FAULT_WAITS_MS <= incident.at_ms <= one.ended_ms
            for one in there
        )
    return any(one.started_ms <= incident.at_ms and not 0 < one.ended_ms < incident.at_ms for one in there)


def told(survivor: Survivor) -> Iterator[str]:
    """The incidents in words, by time."""
    for incident in sorted(survivor.met, key=lambda one: one.at_ms):
        yield f"{incident}"
