"""What must hold when a simulated world has come to its end."""

from koubou_common.messages.values import AttemptState, TaskState
from sim.agent_node import AgentNode, Work
from sim.client_node import ClientNode
from support.shelf import Shelf

# How an attempt stands once its delivered outcome is stored; a failure of a superseded attempt changes nothing.
_STORED_SUCCESS = (AttemptState.SUCCEEDED, AttemptState.LATE)
_STORED_FAILURE = (AttemptState.FAILED, AttemptState.LOST, AttemptState.ABORTED)


def check_end(disk: Shelf, agents: list[AgentNode], clients: list[ClientNode], work: Work) -> None:
    """Every promise, once the world was healed and all had time to end; AssertionError names the broken one."""
    for task_id, progress in disk.progress.items():
        story = [f"{event.before}->{event.after} {event.reason}" for event in disk.events_of(task_id)]
        about = f"task {task_id}: {progress.state} {progress.error_class}; {story}"
        assert progress.state.is_terminal, f"has not ended: {about}"
        _check_outcome(disk, task_id, work, about)
        _check_events(disk, task_id, about)
    for client in clients:
        assert len(client.accepted) == len(client.keys), f"{client.name}: not everything was accepted"
        ids = [task_id for ids in client.accepted.values() for task_id in ids]
        assert len(ids) == len(set(ids)), f"{client.name}: one task under two keys: {ids}"
        mine = [task_id for task_id, task in disk.tasks.items() if task.principal == client.name]
        assert sorted(ids) == sorted(mine), f"{client.name}: asked for {sorted(ids)}, the broker has {sorted(mine)}"
        for task_id in ids:
            recorded = disk.progress[task_id].state
            assert client.told.get(task_id) is recorded, (
                f"task {task_id}: told {client.told.get(task_id)}, is {recorded}"
            )
    for agent in agents:
        assert not agent.spool, f"{agent.worker_id}: never delivered: {list(agent.spool)}"
    for uid in work.forgotten:
        attempt = disk.attempts.get(uid)
        stored = _STORED_SUCCESS if uid in work.produced else _STORED_FAILURE
        assert uid in disk.parked or (attempt is not None and attempt.state in stored), (
            f"attempt {uid} left its spool and is not recorded: {attempt}"
        )


def _check_outcome(disk: Shelf, task_id: int, work: Work, about: str) -> None:
    progress = disk.progress[task_id]
    attempts = [one for one in disk.attempts.values() if one.task_id == task_id]
    won = [one for one in attempts if one.state is AttemptState.SUCCEEDED and one.generation == progress.generation]
    if progress.state is TaskState.SUCCEEDED:
        assert len(won) == 1, f"{len(won)} attempts succeeded: {about}"
        assert progress.result is not None, f"no output: {about}"
        assert progress.result.sha256 == work.produced[won[0].attempt_uid], f"another attempt's output: {about}"
    else:
        assert not won, f"an attempt succeeded: {about}"
    assert not any(one.state is AttemptState.RUNNING for one in attempts), f"an attempt runs on: {about}"
    numbers = sorted(one.number for one in attempts)
    assert len(numbers) == len(set(numbers)), f"attempt numbers {numbers}: {about}"


def _check_events(disk: Shelf, task_id: int, about: str) -> None:
    state = ""
    for event in disk.events_of(task_id):
        assert event.before == state, f"event {event.seq} begins at {event.before}, not at {state}: {about}"
        state = event.after
    assert state == disk.progress[task_id].state, f"the events end at {state}: {about}"
