"""The promises of a simulated world: its facts, gathered from its nodes, go through the one checker."""

import itertools
from collections.abc import Hashable

from koubou_broker.core.lifecycle import FLAG_CACHED
from koubou_broker.records import Attempt, Event, NewTask, TaskProgress
from koubou_common.messages.values import TaskState
from sim.agent_node import AgentNode, Work
from sim.checker import BrokenPromiseError, violations
from sim.client_node import ClientNode
from sim.facts import Accepted, AttemptRow, EventRow, Facts, Load, TaskRow, Told
from support.shelf import Shelf


def check_end(disk: Shelf, agents: list[AgentNode], clients: list[ClientNode], work: Work) -> None:
    """Every promise, once the world was healed and all had time to end; raises for the first that is broken."""
    found = violations(facts_of(disk, agents, clients, work))
    if found:
        raise BrokenPromiseError(found[0])


def facts_of(disk: Shelf, agents: list[AgentNode], clients: list[ClientNode], work: Work) -> Facts:
    """What is known when all is over."""
    return Facts(
        tasks=tuple(_task_row(disk, row) for row in disk.progress.values()),
        attempts=tuple(_attempt_row(row) for row in disk.attempts.values()),
        events=tuple(_event_row(row) for row in disk.events),
        parked=frozenset(disk.parked),
        written=tuple(
            _task_row(disk, row) if isinstance(row, TaskProgress) else _attempt_row(row) for row in disk.written
        ),
        wanted=frozenset((client.name, key) for client in clients for key in client.keys),
        accepted=tuple(Accepted(client.name, key, ids) for client in clients for key, ids in client.accepted.items()),
        asked=tuple(Told(client.name, task_id, state) for client in clients for task_id, state in client.told.items()),
        cancels=frozenset((client.name, task_id) for client in clients for task_id in client.cancelled),
        reopened=frozenset(task_id for client in clients for task_id in client.retried),
        voided=tuple(Accepted(client.name, one.key, one.task_ids) for client in clients for one in client.voided),
        questions={task_id: _question(task) for task_id, task in disk.tasks.items()},
        wants_new=frozenset(task_id for task_id, task in disk.tasks.items() if not task.use_cache),
        version_of={task_id: task.digest for task_id, task in disk.tasks.items() if task.digest},
        alike=frozenset(
            frozenset(task_id for task_id in ids if disk.tasks[task_id].model == model)
            for client in clients
            for ids in client.alike()
            for model in {disk.tasks[task_id].model for task_id in ids}
        ),
        outputs=work.produced,
        versions={uid: digest for uid, (_, digest) in work.answerers.items()},
        spooled=frozenset(work.outcomes),
        let_go=frozenset(work.forgotten & work.outcomes),
        loads=tuple(
            Load(agent.name, agent.slots, work.most_at_once.get(agent.name, 0), work.most_given[agent.name])
            for agent in agents
            if agent.name in work.most_given
        ),
    )


def turnaround_s(disk: Shelf) -> float:
    """From each task's submission to its last end, by the wall clock, all together."""
    begun: dict[int, int] = {}
    ended: dict[int, int] = {}
    for event in disk.events:
        begun.setdefault(event.task_id, event.at_ms)
        ended[event.task_id] = event.at_ms
    return sum(ended[task_id] - at_ms for task_id, at_ms in begun.items()) / 1000


def longest_overtaken_s(disk: Shelf) -> float:
    """How long a task waited, at most, for its model while others that came later had begun; by the wall clock.

    Only those that ended a run of another model count: who comes behind them waits for them. One priority, one box.
    """
    begun: dict[int, int] = {}
    for event in disk.events:
        if event.after == TaskState.RUNNING:
            begun.setdefault(event.task_id, event.at_ms)
    order = sorted(begun, key=lambda task_id: begun[task_id])
    changes = {
        later for before, later in itertools.pairwise(order) if disk.tasks[before].model != disk.tasks[later].model
    }
    longest_ms, since_ms = 0, None
    for task_id in sorted(begun, reverse=True):
        if since_ms is not None and task_id in changes:
            longest_ms = max(longest_ms, begun[task_id] - since_ms)
        since_ms = begun[task_id] if since_ms is None else min(since_ms, begun[task_id])
    return longest_ms / 1000


def _task_row(disk: Shelf, row: TaskProgress) -> TaskRow:
    result = row.result.sha256 if row.result is not None else None
    principal = disk.tasks[row.task_id].principal
    return TaskRow(row.task_id, principal, row.state, row.generation, result, FLAG_CACHED in row.flags)


def _question(task: NewTask) -> Hashable:
    return task.model, task.prompt.sha256, tuple((file.name, file.body.sha256) for file in task.files)


def _attempt_row(row: Attempt) -> AttemptRow:
    return AttemptRow(row.attempt_uid, row.task_id, row.number, row.worker_id, row.state, row.generation)


def _event_row(row: Event) -> EventRow:
    return EventRow(row.seq, row.task_id, row.before, row.after, row.attempt)
