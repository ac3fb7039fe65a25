"""Reads back what a chaos run has left: every outcome over the wire, the database, journals, agents' logs, spools."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from chaos.grounds import ClientHome, Grounds
from chaos.jobs import Job, submission
from chaos.journal import Memory, read
from chaos.record import Record, read_record
from koubou_client.client import Client
from koubou_common.messages.values import TaskState, TaskView
from sim.facts import Accepted, AttemptRow, EventRow, Facts, TaskRow, Told
from support.waiting import eventually

ALL = 1_000_000  # more tasks than any run has
_DELIVERED_S = 60.0  # for the last outcomes that nobody waits for
_RECEIVED = re.compile(r"task=(\d+) attempt=([0-9a-f]{32}) received")
_DONE = re.compile(r"attempt=([0-9a-f]{32}) ended: ok")
_STORED = re.compile(r"attempt=([0-9a-f]{32}) outcome stored")


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything known when all is over."""

    record: Record
    memories: dict[str, Memory]  # by client
    jobs: dict[int, Job]  # by task
    facts: Facts
    complaints: list[str]  # what the checker has no word for
    stories: int  # told over the wire


@dataclass(frozen=True, slots=True)
class _Answers:
    """What one client's key gets when it asks for everything."""

    tasks: list[TaskView]
    outputs: dict[int, bytes]


def gather(grounds: Grounds) -> Evidence:
    """Ask everybody; the broker and the agents run, the clients have ended."""
    spooled = _await_empty_spools(grounds)
    memories = {client.name: read(client.journal) for client in grounds.clients}
    jobs = {task_id: job for name, memory in memories.items() for task_id, job in _jobs(grounds.seed, name, memory)}
    told = {client.name: _ask_all(client) for client in grounds.clients}
    record = read_record(grounds.database)
    complaints = [f"spools are not empty: {sorted(spooled)}"] if spooled else []
    complaints += _told_wrongly(memories)
    stories = _compare_with_the_operators_view(grounds, record, complaints)
    right = {task_id: _digest(job.answer.encode()) for task_id, job in jobs.items()}
    logs = {box.worker_id: box.agent.log() for box in grounds.boxes}
    facts = _what_is_recorded(record, told)
    facts = _what_clients_were_told(facts, memories, told)
    facts = _what_agents_did(facts, logs, right, spooled)
    return Evidence(record, memories, jobs, facts, complaints, stories)


def _await_empty_spools(grounds: Grounds) -> frozenset[str]:
    """Uids that are still in a spool when there was time enough."""

    def waiting() -> frozenset[str]:
        return frozenset(path.stem for box in grounds.boxes for path in box.spool.glob("*.outcome"))

    try:
        eventually(lambda: not waiting(), _DELIVERED_S)
    except AssertionError:
        return waiting()
    return frozenset()


def _jobs(seed: int, name: str, memory: Memory) -> Iterator[tuple[int, Job]]:
    for key, ids in memory.accepted.items():
        yield from zip(ids, submission(seed, name, memory.planned[key]).jobs, strict=True)


def _ask_all(client: ClientHome) -> _Answers:
    """With the client's own key, through its own door."""
    with Client(home=client.home) as asking:
        tasks = asking.tasks(most=ALL)
        return _Answers(tasks, {task.task_id: asking.result(task.task_id)[1] for task in tasks})


def _told_wrongly(memories: dict[str, Memory]) -> list[str]:
    found = []
    for name, memory in memories.items():
        first: dict[int, str] = {}
        for ending in memory.endings:
            if not ending.is_right:
                found.append(f"{name} was given another output for task {ending.task_id}")
            if first.setdefault(ending.task_id, ending.sha256) != ending.sha256:
                found.append(f"{name} was given two outputs for task {ending.task_id}")
    return found


def _compare_with_the_operators_view(grounds: Grounds, record: Record, complaints: list[str]) -> int:
    """The operator's listing and every story must say what the rows say."""
    with Client(home=grounds.home) as operator:
        listed = {task.task_id: task.state for task in operator.tasks(most=ALL)}
        stored = {task.task_id: task.state for task in record.tasks}
        if listed != stored:
            complaints.append(f"the listing and the database differ: {sorted(listed.items() ^ stored.items())[:10]}")
        numbers: dict[int, list[int]] = {task_id: [] for task_id in stored}
        changes: dict[int, list[int]] = {task_id: [] for task_id in stored}
        for attempt in record.attempts:
            numbers[attempt.task_id].append(attempt.number)
        for event in record.events:
            changes[event.task_id].append(event.seq)
        for task_id in stored:
            story = operator.story(task_id)
            told = sorted(attempt.number for attempt in story.attempts), [event.seq for event in story.events]
            if told != (sorted(numbers[task_id]), changes[task_id]):
                complaints.append(f"the story of task {task_id} is not its rows'")
    return len(stored)


def _what_is_recorded(record: Record, told: dict[str, _Answers]) -> Facts:
    outputs = {task_id: data for one in told.values() for task_id, data in one.outputs.items()}
    return Facts(
        tasks=tuple(
            TaskRow(
                task.task_id,
                task.principal,
                task.state,
                task.generation,
                _digest(outputs[task.task_id]) if outputs.get(task.task_id) else None,
            )
            for task in record.tasks
        ),
        attempts=tuple(
            AttemptRow(one.uid, one.task_id, one.number, one.worker_id, one.state, one.generation)
            for one in record.attempts
        ),
        events=tuple(
            EventRow(event.seq, event.task_id, event.before, event.after, event.attempt) for event in record.events
        ),
        parked=record.parked,
    )


def _what_clients_were_told(facts: Facts, memories: dict[str, Memory], told: dict[str, _Answers]) -> Facts:
    return replace(
        facts,
        wanted=frozenset((name, key) for name, memory in memories.items() for key in memory.planned),
        accepted=tuple(
            Accepted(name, key, ids) for name, memory in memories.items() for key, ids in memory.accepted_again
        ),
        told=tuple(
            Told(name, ending.task_id, ending.state) for name, memory in memories.items() for ending in memory.endings
        ),
        asked=tuple(Told(name, task.task_id, task.state) for name, one in told.items() for task in one.tasks),
        cancels=frozenset(
            (name, task_id)
            for name, memory in memories.items()
            for task_id, state in memory.cancelled.items()
            if state is TaskState.CANCELLED
        ),
        seen_tasks=frozenset((name, task.task_id) for name, one in told.items() for task in one.tasks),
    )


def _what_agents_did(facts: Facts, logs: dict[str, str], right: dict[int, bytes], spooled: frozenset[str]) -> Facts:
    received = [(worker, uid, int(task)) for worker, log in logs.items() for task, uid in _RECEIVED.findall(log)]
    issued = {uid: task for _, uid, task in received}
    made = {uid for log in logs.values() for uid in _DONE.findall(log)}
    let_go = frozenset(uid for log in logs.values() for uid in _STORED.findall(log))
    return replace(
        facts,
        issued=issued,
        outputs={uid: right[issued[uid]] for uid in made if issued.get(uid) in right},
        right=right,
        spooled=let_go | spooled,
        let_go=let_go,
        seen_attempts=frozenset((worker, uid) for worker, uid, _ in received),
    )


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
