"""Figures and stories on made-up records."""

import pytest

from chaos.figures import Figures, agent_recoveries_s, broker_recoveries_s, figures, quantile
from chaos.record import AttemptOnRecord, Record, TaskOnRecord
from chaos.storm import Incident
from chaos.story import hardest, kind_of
from chaos.timetable import Deed
from koubou_common.messages.values import AttemptState, TaskState

OK, LOST, FAILED = AttemptState.SUCCEEDED, AttemptState.LOST, AttemptState.FAILED


def a_task(
    task_id: int, state: TaskState = TaskState.SUCCEEDED, *, submitted: int = 0, finished: int = 0
) -> TaskOnRecord:
    return TaskOnRecord(task_id, "client_1", state, 1, submitted, finished)


def an_attempt(
    name: tuple[int, int], worker: str, started: int, ended: int, state: AttemptState = OK
) -> AttemptOnRecord:
    """`name`: task and number."""
    return AttemptOnRecord(f"{name[0]}.{name[1]}", *name, worker, state, 1, started, ended, "")


RECORD = Record(
    (a_task(1, submitted=0, finished=9_000), a_task(2, submitted=500, finished=2_500), a_task(3, TaskState.CANCELLED)),
    (
        an_attempt((1, 1), "a", 1_000, 4_000, LOST),
        an_attempt((2, 1), "b", 2_000, 2_500),
        an_attempt((1, 2), "b", 6_500, 9_000),
    ),
    (),
)


def told(incidents: list[Incident], acknowledged: list[int], record: Record = RECORD) -> Figures:
    return figures(record, acknowledged, incidents, duplicated=0, minutes=1.0, seed=1)


def test_a_brokers_recovery_ends_with_the_next_dispatch_of_anything() -> None:
    kills = [Incident(at_ms, Deed.KILL, "broker") for at_ms in (1_500, 2_000, 7_000)]
    assert broker_recoveries_s(RECORD, kills) == [0.5, 4.5], "after the last kill nothing was dispatched"


def test_an_agents_recovery_ends_with_the_next_attempt_of_what_ran_there() -> None:
    assert agent_recoveries_s(RECORD, [Incident(3_000, Deed.KILL, "a")]) == [3.5]


def test_an_agents_recovery_ends_with_the_task_where_its_result_was_in_the_spool() -> None:
    assert agent_recoveries_s(RECORD, [Incident(7_000, Deed.KILL, "b")]) == [2.0]


def test_an_idle_agents_kill_held_up_nothing() -> None:
    assert agent_recoveries_s(RECORD, [Incident(500, Deed.KILL, "a"), Incident(5_000, Deed.KILL, "b")]) == []


def test_only_a_kill_is_recovered_from() -> None:
    freeze = [Incident(1_500, Deed.FREEZE, "broker", 5.0), Incident(3_000, Deed.RESTART, "a")]
    assert broker_recoveries_s(RECORD, freeze) == []
    assert agent_recoveries_s(RECORD, freeze) == []


def test_cancelled_tasks_are_no_task_that_could_succeed() -> None:
    found = told([Incident(1, Deed.KILL, "a"), Incident(2, "proxy reset", "a")], [1, 2, 3])
    assert (found.tasks, found.succeeded, found.lost, found.cancelled) == (2, 2, 0, 1)
    assert (found.kills, found.proxy_faults) == (1, 1)
    assert found.executions_per_task == 1.5


@pytest.mark.parametrize("state", [TaskState.FAILED, TaskState.QUEUED])
def test_an_acknowledged_task_that_did_not_succeed_is_lost(state: TaskState) -> None:
    record = Record((a_task(1), a_task(2, state)), (), ())
    assert told([], [1, 2], record).lost == 1


def test_an_acknowledged_task_that_is_gone_is_lost() -> None:
    assert told([], [1, 2, 99]).lost == 1


def test_quantiles_are_values_that_occurred() -> None:
    values = [float(number) for number in range(1, 101)]
    assert (quantile(values, 0.5), quantile(values, 0.99), quantile(values, 1.0)) == (50.0, 99.0, 100.0)
    assert quantile([3.0], 0.99) == 3.0
    assert quantile([], 0.5) == 0.0


def test_the_hardest_task_is_the_one_that_met_most_kinds_of_fault() -> None:
    incidents = [
        Incident(2_000, Deed.KILL, "a"),
        Incident(3_000, Deed.KILL, "broker"),
        Incident(7_000, "proxy stall", "b", 1.0),
        Incident(2_200, "proxy reset", "b"),
    ]
    survivor = hardest(RECORD, incidents)
    assert survivor is not None
    assert survivor.task_id == 1
    assert survivor.kinds == {"kill agent", "kill broker", "proxy stall"}


def test_what_happened_elsewhere_or_before_is_not_counted() -> None:
    incidents = [Incident(5_000, Deed.KILL, "a"), Incident(400, Deed.KILL, "b"), Incident(5_000, Deed.KILL, "client_2")]
    survivor = hardest(RECORD, incidents)
    assert survivor is not None
    assert survivor.met == ()


def test_an_ollamas_fault_counts_where_an_attempt_failed_by_it() -> None:
    failed = an_attempt((2, 1), "b", 2_000, 2_500, FAILED)
    record = Record(RECORD.tasks[1:2], (failed, an_attempt((2, 2), "a", 2_600, 2_700)), ())
    survivor = hardest(
        record, [Incident(1_500, Deed.OLLAMA_FAULT, "ollama b"), Incident(2_600, Deed.OLLAMA_FAULT, "ollama a")]
    )
    assert survivor is not None
    assert [incident.victim for incident in survivor.met] == ["ollama b"]


def test_kinds_are_named_by_deed_and_program() -> None:
    kinds = [kind_of(Incident(0, Deed.KILL, victim)) for victim in ("broker", "box_1", "client_1")]
    assert kinds == ["kill broker", "kill agent", "kill client"]
    assert kind_of(Incident(0, Deed.FREEZE, "ollama box_1")) == "freeze ollama"
    assert kind_of(Incident(0, Deed.LINK_DOWN, "boxed")) == "link down"
