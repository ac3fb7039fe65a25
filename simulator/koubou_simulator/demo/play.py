"""The demo's course: thirty tasks, a box that joins while they run, an agent killed half way."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from koubou_client.client import Client
from koubou_client.tasks import TaskDraft
from koubou_common.messages.values import TaskState, TaskView, WorkerView
from koubou_simulator.demo.screen import Screen
from koubou_simulator.demo.stage import LATE, LOCAL, REMOTE, Ollamas, join_and_start, start_local
from koubou_simulator.workshop import Process, Workshop

READY_S = 30.0  # for an agent to connect, look at its Ollama and load gemini-repo-cli, on a busy machine

_POLL_S = 0.2
_JOIN_AFTER = 1 / 6  # of the tasks: the others are at work by then
_KILL_AFTER = 1 / 2
_FRESH_MS = 1_000  # an agent is killed in the midst of a task, not at its end


class Trouble(RuntimeError):  # noqa: N818 - reads as what happened
    """The demo cannot go on; the text says why."""


@dataclass(slots=True)
class Course:
    """What happened, as far as the broker's records do not say it."""

    task_ids: list[int] = field(default_factory=list)
    batch_id: int = 0
    joined: str = ""
    join_s: float = 0.0
    killed: str = ""
    moving: tuple[int, ...] = ()  # ran on the killed agent
    moved: tuple[int, ...] = ()  # of them those that another attempt took over
    came_back: bool = False
    seconds_s: float = 0.0


class Play:
    """Plays it once; the workshop has its broker and Ollamas by then."""

    def __init__(self, workshop: Workshop, ollamas: Ollamas, screen: Screen, time_limit_s: float) -> None:
        self.course = Course()
        self._workshop = workshop
        self._ollamas = ollamas
        self._screen = screen
        self._deadline_s = time.monotonic() + time_limit_s
        self._time_limit_s = time_limit_s
        self._agents: dict[str, Process] = {}
        self._ended: set[int] = set()

    def run(self, client: Client, drafts: Sequence[TaskDraft]) -> Course:
        """Until every task has ended; Trouble when something keeps them from it."""
        self._agents[LOCAL] = start_local(self._workshop, self._ollamas)
        self._agents[REMOTE] = join_and_start(self._workshop, self._ollamas, REMOTE)
        for worker_id in (LOCAL, REMOTE):
            self._await_ready(client, worker_id)
            self._screen.event(f"{worker_id} is ready")
        accepted = client.submit_drafts(drafts, as_batch=True)
        self.course.task_ids = [ref.task_id for ref in accepted.tasks]
        self.course.batch_id = accepted.batch_id
        priorities = [draft.spec.priority for draft in drafts]
        self._screen.event(f"{len(drafts)} tasks accepted, priorities {max(priorities)} to {min(priorities)}")
        while True:
            tasks = self._look(client)
            if len(self._ended) == len(self.course.task_ids):
                break
            self._step(client, tasks)
            time.sleep(_POLL_S)
        self.course.seconds_s = self._screen.passed_s
        return self.course

    def _look(self, client: Client) -> list[TaskView]:
        tasks = sorted(client.tasks(batch_id=self.course.batch_id), key=lambda task: task.task_id)
        for task in tasks:
            if task.state.is_terminal and task.task_id not in self._ended:
                self._ended.add(task.task_id)
                name = f"task {task.task_id} (priority {task.priority}, {task.target})"
                good = task.state is TaskState.SUCCEEDED
                why = "" if good else f": {task.error_class}: {task.error_message}"
                self._screen.event(f"{name} {task.state} on {task.worker_id or 'no worker'}{why}", is_small=good)
        self._draw(tasks, client.status().workers)
        if time.monotonic() > self._deadline_s:
            raise Trouble(
                f"only {len(self._ended)} of {len(self.course.task_ids)} tasks ended"
                f" within {self._time_limit_s:.0f} s (--time-limit)"
            )
        for name, agent in self._agents.items():
            if not agent.is_alive() and name != self.course.killed:
                raise Trouble(f"the agent of {name} ended by itself:\n{_last_words(agent)}")
        if not self._workshop.broker.is_alive():
            raise Trouble(f"the broker ended by itself:\n{_last_words(self._workshop.broker)}")
        return tasks

    def _step(self, client: Client, tasks: Sequence[TaskView]) -> None:
        course, count = self.course, len(self.course.task_ids)
        if not course.joined and len(self._ended) >= count * _JOIN_AFTER:
            began_s = time.monotonic()
            self._agents[LATE] = join_and_start(self._workshop, self._ollamas, LATE)
            course.joined, course.join_s = LATE, time.monotonic() - began_s
            self._screen.event(f"{LATE} joined with a one-time token (koubou-ctl workers invite, koubou-agent join)")
        elif course.joined and not course.killed and len(self._ended) >= count * _KILL_AFTER:
            self._kill(client)
        elif course.killed and not course.came_back:
            self._follow_move(tasks)

    def _kill(self, client: Client) -> None:
        """kill -9 while the agent works on a task that it has just begun."""
        now_ms = client.status().now_ms
        running = [
            task
            for task in client.tasks(batch_id=self.course.batch_id, states=[TaskState.RUNNING])
            if task.worker_id == REMOTE and now_ms - task.started_ms < _FRESH_MS
        ]
        if not running:
            return
        self._agents[REMOTE].kill()
        self.course.killed = REMOTE
        self.course.moving = tuple(task.task_id for task in running)
        names = ", ".join(str(task_id) for task_id in self.course.moving)
        self._screen.event(f"{REMOTE} was killed (kill -9) while it worked on task {names}")

    def _follow_move(self, tasks: Sequence[TaskView]) -> None:
        """Once its task is somebody else's, the agent is started again, as systemd would."""
        held = [task for task in tasks if task.task_id in self.course.moving]
        if any(task.attempts < 2 and not task.state.is_terminal for task in held):
            return
        moved = [task for task in held if task.attempts > 1]
        self.course.moved = tuple(task.task_id for task in moved)
        for task in moved:
            self._screen.event(f"task {task.task_id} moved to {task.worker_id}: {REMOTE} had stopped answering")
        self._agents[REMOTE].start()
        self.course.came_back = True
        self._screen.event(f"{REMOTE} was started again")

    def _await_ready(self, client: Client, worker_id: str) -> None:
        deadline_s = time.monotonic() + READY_S
        while True:
            seen = next((one for one in client.status().workers if one.worker_id == worker_id), None)
            if seen is not None and seen.connected and not seen.issue:
                return
            agent = self._agents[worker_id]
            if not agent.is_alive() or time.monotonic() > deadline_s:
                why = seen.issue if seen is not None and seen.issue else "it did not connect"
                raise Trouble(f"{worker_id} is not ready: {why}\n{_last_words(agent)}")
            time.sleep(_POLL_S)

    def _draw(self, tasks: Sequence[TaskView], workers: Sequence[WorkerView]) -> None:
        running = {task.worker_id: task for task in tasks if task.state is TaskState.RUNNING}
        done: dict[str, int] = {}
        for task in tasks:
            if task.state is TaskState.SUCCEEDED:
                done[task.worker_id] = done.get(task.worker_id, 0) + 1
        lines = [
            f"   {worker.worker_id:<16}{done.get(worker.worker_id, 0):>3} done   {self._doing(worker, running)}"
            for worker in workers
        ]
        waiting = sum(task.state is TaskState.QUEUED for task in tasks)
        self._screen.show(len(self._ended), len(tasks), f"{len(running)} running, {waiting} waiting", lines)

    def _doing(self, worker: WorkerView, running: dict[str, TaskView]) -> str:
        agent = self._agents.get(worker.worker_id)
        if agent is None:
            return "has not joined yet"
        if not agent.is_alive():
            return "KILLED"
        task = running.get(worker.worker_id)
        if task is not None:
            return f"task {task.task_id}: {task.target} ({task.output_tokens} tokens)"
        return "idle" if worker.connected else "connecting"


def _last_words(process: Process, lines: int = 8) -> str:
    return "\n".join(f"  {line}" for line in process.log().splitlines()[-lines:])
