"""What must hold over all indexes after every step; an AssertionError tells the task's story."""

from koubou_broker.core.state import Account, State
from koubou_broker.task import Task
from koubou_broker.timers import Timer
from koubou_common.messages.values import AttemptState, Role, TaskState


def check_state(state: State) -> None:
    """Assert everything."""
    state.queue.check()
    state.router.roster.check()
    for task in state.tasks.values():
        _check_task(state, task)
    _check_attempts(state)
    _check_workers(state)
    _check_sessions(state)
    _check_accounts(state)
    for task_id in state.queue:
        assert task_id in state.tasks, f"task {task_id} is ready and not live"


def _check_task(state: State, task: Task) -> None:
    about = f"task {task.task_id} ({task.state}); story: {task.story}"
    assert not task.is_over, about
    assert task.task_id < state.next_task_id, f"id not given out: {about}"
    assert len(task.uids) <= state.settings.total_attempts, f"too many attempts: {about}"
    attempts = [state.attempts[uid] for uid in task.uids]
    running = [one.uid for one in attempts if one.record.state is AttemptState.RUNNING]
    assert all(one.task is task for one in attempts), f"attempt of another task: {about}"
    assert not any(one.record.state is AttemptState.SUCCEEDED for one in attempts), f"success ignored: {about}"
    numbers = [one.record.number for one in attempts]
    assert numbers == sorted(set(numbers)), f"attempt numbers {numbers}: {about}"
    assert not numbers or numbers[-1] <= task.issued, f"attempt numbers {numbers}: {about}"
    ready = task.task_id in state.queue
    waits = state.timers.due_s(Timer.NOT_BEFORE, task.task_id) is not None
    if task.state is TaskState.RUNNING:
        assert running == [task.current], f"running attempts {running}: {about}"
        assert not ready, f"running and ready: {about}"
        assert not waits, f"running and waiting: {about}"
        leased = state.timers.due_s(Timer.LEASE, task.current) is not None
        undurable = task.current in state.unsealed or any(task.current in uids for _, uids in state.sealed)
        assert leased or undurable, f"no lease: {about}"
    else:
        assert not running, f"running attempts {running}: {about}"
        assert not task.current, f"current: {about}"
        ways = ready + waits + task.asks_cache
        assert ways == 1, f"ready {ready}, waiting {waits}, asking the cache {task.asks_cache}: {about}"


def _check_attempts(state: State) -> None:
    for uid, attempt in state.attempts.items():
        assert uid == attempt.uid, "attempt index"
        task = attempt.task
        if task.is_over:
            worker = state.workers.get(attempt.record.worker_id)
            assert worker is not None and uid in worker.attempts, f"attempt {uid} of an ended task is kept"  # noqa: PT018 - one fact
            assert attempt.record.state is not AttemptState.RUNNING, f"task {task.task_id} ended, {uid} runs"
        else:
            assert state.tasks.get(task.task_id) is task, f"attempt {uid} of another generation"
            assert uid in task.uids, f"attempt {uid} is not of task {task.task_id}"


def _check_workers(state: State) -> None:
    for worker in state.workers.values():
        about = worker.worker_id
        assert not worker.listed & worker.unconfirmed.keys(), f"{about}: a slot counted twice"
        assert worker.free <= max(0, worker.slots - worker.in_use), f"{about}: offers more than it has"
        for uid in worker.attempts:
            assert state.attempts[uid].record.worker_id == about, f"{about}: attempt of another worker"
        for uid in worker.unconfirmed:
            assert uid in worker.attempts, f"{about}: an unknown attempt takes a slot"
        if worker.session:
            session = state.sessions[worker.session]
            assert session.name == about, f"{about}: session of {session.name}"
            assert session.role is Role.WORKER, f"{about}: session with role {session.role}"
        else:
            assert not worker.in_use, f"{about}: slots in use without a session"


def _check_sessions(state: State) -> None:
    for task_id, watchers in state.watchers.items():
        assert task_id in state.tasks, f"task {task_id} is watched and not live"
        for number, request_id in watchers:
            watch = state.sessions[number].watches[request_id]
            assert task_id in watch, f"task {task_id}: watch {request_id} does not know"
    for session in state.sessions.values():
        for request_id, task_ids in session.watches.items():
            assert task_ids, f"watch {request_id} of nothing"
            for task_id in task_ids:
                assert (session.session, request_id) in state.watchers[task_id], f"watch {request_id}"


def _check_accounts(state: State) -> None:
    counted = 0
    for name, account in state.accounts.items():
        counted += len(account.tasks)
        running = sum(task.state is TaskState.RUNNING for task in account.tasks.values())
        assert account.running == running, f"{name}: {account.running} running, counted {running}"
        assert account.tasks, f"{name}: an empty account is kept"
        again = Account()
        for task in account.tasks.values():
            again.add(task)
        held = (account.files, account.bodies, account.size_bytes)
        assert held == (again.files, again.bodies, again.size_bytes), f"{name}: what its tasks hold"
    assert counted == len(state.tasks), "accounts and tasks"
