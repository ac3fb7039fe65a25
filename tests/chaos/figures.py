"""The figures of a chaos run, from the record and the list of incidents. Pure.

Recovery is the time from a kill to the next dispatch that it held up:

- of a kill of the broker: to the start of the next attempt of any task that the record has; the pause before
  the broker is started again, and whatever else goes wrong meanwhile, is part of it.
- of a kill of an agent: for each task whose attempt ran there, to the start of this task's next attempt, or to the
  task's end where that came without one (its result waited in the spool, or another attempt brought it).

Both are in `recovery_*`; a kill after which nothing was dispatched any more - the last before the end - has none.
"""

import bisect
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from chaos.record import AttemptOnRecord, Record
from chaos.storm import BROKER, Incident
from chaos.timetable import Deed
from koubou_common.messages.values import TaskState

_MS = 1_000


@dataclass(frozen=True, slots=True)
class Figures:
    """What build/chaos.json holds; a time nobody measured is 0."""

    tasks: int  # acknowledged ones that could succeed: those whose cancel was acknowledged are left out
    succeeded: int
    kills: int
    lost: int  # acknowledged, and not there or not succeeded at the end
    duplicated: int  # keys with two meanings, outcomes recorded twice or changed
    executions_per_task: float  # attempts on record, of the tasks above
    recovery_p50_s: float
    recovery_p99_s: float
    stops: int
    restarts: int
    proxy_faults: int
    ollama_faults: int
    links_cut: int
    cancelled: int
    recovery_broker_p50_s: float
    recovery_broker_p99_s: float
    recovery_agent_p50_s: float
    recovery_agent_p99_s: float
    recoveries: int
    minutes: float
    seed: int

    def as_json(self) -> dict[str, float]:
        """Rounded for people."""
        return {name: round(value, 3) for name, value in asdict(self).items()}


def figures(
    record: Record,
    acknowledged: Sequence[int],
    incidents: Sequence[Incident],
    *,
    duplicated: int,
    minutes: float,
    seed: int,
) -> Figures:
    """Everything but the verdict; `acknowledged`: every id any client was given, `duplicated`: the checker's count."""
    rows = {task.task_id: task for task in record.tasks}
    cancelled = {task.task_id for task in record.tasks if task.state is TaskState.CANCELLED}
    due = set(acknowledged) - cancelled
    succeeded = {task_id for task_id in due if task_id in rows and rows[task_id].state is TaskState.SUCCEEDED}
    attempts = sum(attempt.task_id in due for attempt in record.attempts)
    of_broker = broker_recoveries_s(record, incidents)
    of_agents = agent_recoveries_s(record, incidents)
    both = [*of_broker, *of_agents]
    done = Counter(incident.what for incident in incidents)
    return Figures(
        tasks=len(due),
        succeeded=len(succeeded),
        kills=done[Deed.KILL],
        lost=len(due - succeeded),
        duplicated=duplicated,
        executions_per_task=attempts / len(due) if due else 0.0,
        recovery_p50_s=quantile(both, 0.50),
        recovery_p99_s=quantile(both, 0.99),
        stops=done[Deed.FREEZE],
        restarts=done[Deed.RESTART],
        proxy_faults=sum(count for what, count in done.items() if what.startswith("proxy ")),
        ollama_faults=done[Deed.OLLAMA_FAULT],
        links_cut=done[Deed.LINK_DOWN],
        cancelled=len(cancelled),
        recovery_broker_p50_s=quantile(of_broker, 0.50),
        recovery_broker_p99_s=quantile(of_broker, 0.99),
        recovery_agent_p50_s=quantile(of_agents, 0.50),
        recovery_agent_p99_s=quantile(of_agents, 0.99),
        recoveries=len(both),
        minutes=minutes,
        seed=seed,
    )


def broker_recoveries_s(record: Record, incidents: Sequence[Incident]) -> list[float]:
    """From each kill of the broker to the next dispatch of anything."""
    starts = sorted(attempt.started_ms for attempt in record.attempts)
    found = []
    for incident in incidents:
        if incident.what == Deed.KILL and incident.victim == BROKER:
            after = bisect.bisect_right(starts, incident.at_ms)
            if after < len(starts):
                found.append((starts[after] - incident.at_ms) / _MS)
    return found


def agent_recoveries_s(record: Record, incidents: Sequence[Incident]) -> list[float]:
    """From each kill of an agent to the next dispatch, or the end, of each task that ran there."""
    attempts_of: dict[int, list[AttemptOnRecord]] = {}
    for attempt in record.attempts:
        attempts_of.setdefault(attempt.task_id, []).append(attempt)
    finished = {task.task_id: task.finished_ms for task in record.tasks if task.state is TaskState.SUCCEEDED}
    found = []
    for incident in incidents:
        if incident.what != Deed.KILL:
            continue
        for attempt in record.attempts:
            runs = attempt.started_ms <= incident.at_ms and not 0 < attempt.ended_ms <= incident.at_ms
            if attempt.worker_id != incident.victim or not runs or attempt.task_id not in finished:
                continue
            later = [one.started_ms for one in attempts_of[attempt.task_id] if one.started_ms > incident.at_ms]
            later += [finished[attempt.task_id]]
            after = [at_ms for at_ms in later if at_ms > incident.at_ms]
            if after:
                found.append((min(after) - incident.at_ms) / _MS)
    return found


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that this share of all does not exceed; 0 of none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0
