"""A client of the simulation: submits, repeats until answered, cancels, retries, and remembers what it was told."""

import hashlib
from dataclasses import dataclass, field
from typing import Any

from koubou_broker.effects import Peer
from koubou_common.errors import Code
from koubou_common.messages import (
    Cancel,
    Changes,
    ClientHello,
    ClientWelcome,
    Error,
    FromBroker,
    GetTasks,
    Retry,
    Submit,
    Submitted,
    TaskChanged,
    Tasks,
    Watch,
    Watching,
)
from koubou_common.messages.values import Body, Role, TaskMark, TaskSpec, TaskState
from sim.broker_node import BrokerNode
from sim.world import World

_REPEAT_S = 4.0
_ASK_S = 30.0  # what a lost TaskChanged would have said


@dataclass(slots=True)
class ClientNode:
    """Its journal survives its crashes: keys before they are sent, ids when they are acknowledged."""

    world: World
    broker: BrokerNode
    name: str
    keys: list[str] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)  # tasks a submission
    accepted: dict[str, tuple[int, ...]] = field(default_factory=dict)  # key -> task ids
    told: dict[int, TaskState] = field(default_factory=dict)  # how a task ended, as the broker said
    cancelled: set[int] = field(default_factory=set)  # cancels the broker has acknowledged
    retried: set[int] = field(default_factory=set)
    _connection: int | None = None
    _welcome: bool = False
    _lives: int = 0
    _pending: dict[str, Any] = field(default_factory=dict)
    _asked_at_s: float = 0.0
    _requests: int = 0

    @property
    def peer(self) -> Peer:
        """Its key and name."""
        return Peer(self.name.ljust(40, "c"), self.name, Role.CLIENT)

    def start(self) -> None:
        """Begin, or begin again after a crash."""
        self._lives += 1
        self._connection = None
        self._welcome = False
        self._pending = {}
        for key in self.keys:
            if key not in self.accepted:
                self._submit(key)
        life = self._lives

        def beat() -> None:
            if self._lives == life:
                self._beat()
                self.world.after(_REPEAT_S, beat)

        beat()

    def crash(self) -> None:
        """Only the journal is left."""
        self.world.note(f"{self.name} crashes")
        if self._connection is not None:
            self.broker.disconnect(self._connection)
        self.start()

    def new_submission(self) -> None:
        """Journal a key, then send."""
        key = f"{self.name}-{len(self.keys)}"
        self.keys.append(key)
        self.sizes[key] = self.world.draws.choice((1, 1, 1, 4))
        self._submit(key)

    def cancel_some(self) -> None:
        """Cancel one of the accepted tasks."""
        ids = [task_id for ids in self.accepted.values() for task_id in ids if task_id not in self.told]
        if ids:
            self._ask(Cancel(self._request_id(), (self.world.draws.choice(ids),), 0, "not needed"))

    def retry_some(self) -> None:
        """Open a failed or cancelled task again."""
        ids = [task_id for task_id, state in self.told.items() if state is not TaskState.SUCCEEDED]
        if ids and not self.world.healed:
            task_id = self.world.draws.choice(ids)
            self.retried.add(task_id)
            self.told.pop(task_id)
            self.cancelled.discard(task_id)
            self._ask(Retry(self._request_id(), (task_id,)))

    def ask_again(self) -> None:
        """Forget how retried tasks ended: an old message may have spoken of an earlier generation."""
        for task_id in self.retried:
            self.told.pop(task_id, None)

    def is_content(self) -> bool:
        """Whether everything it wanted was accepted, and it knows how all of it ended."""
        ids = [task_id for ids in self.accepted.values() for task_id in ids]
        return len(self.accepted) == len(self.keys) and all(task_id in self.told for task_id in ids)

    def _submit(self, key: str) -> None:
        specs = tuple(
            TaskSpec(prompt=Body(hashlib.sha256(f"{key}/{index}".encode()).digest(), 10, b""), model="m")
            for index in range(self.sizes[key])
        )
        self._ask(Submit(self._request_id(), key, specs, as_batch=len(specs) > 1))

    def _request_id(self) -> str:
        self._requests += 1
        return f"{self.name}/{self._lives}/{self._requests}"

    def _ask(self, message: Any) -> None:
        self._pending[message.request_id] = message
        self._say(message)

    def _say(self, message: Any) -> None:
        number = self._connection
        if number is not None and (self._welcome or isinstance(message, ClientHello)):
            self.world.deliver(self.name, lambda: self.broker.arrives(number, message))

    def _beat(self) -> None:
        if self._connection is None:
            life = self._lives

            def reaches(message: FromBroker, epoch: int) -> None:
                del epoch
                if self._lives == life:
                    self._take(message)

            def broken() -> None:
                if self._lives == life:
                    self._connection = None
                    self._welcome = False

            self._connection = self.broker.connect(self.name, self.peer, reaches, broken)
        if not self._welcome:
            self._say(ClientHello(1, 1, "simulated"))
            return
        for message in list(self._pending.values()):
            self._say(message)
        open_ids = tuple(task_id for ids in self.accepted.values() for task_id in ids if task_id not in self.told)
        if open_ids and self.world.now_s - self._asked_at_s > _ASK_S:
            self._asked_at_s = self.world.now_s
            self._say(Watch("watch", open_ids))
            for start in range(0, len(open_ids), 200):
                self._say(GetTasks(f"get{start}", open_ids[start : start + 200]))

    def _take(self, message: FromBroker) -> None:
        match message:
            case ClientWelcome():
                self._welcome = True
                self._asked_at_s = 0.0
            case Error(code=Code.HELLO_REQUIRED):
                self._welcome = False
            case Error(code=Code.BUSY):
                pass  # repeated with the next beat
            case Error():
                raise AssertionError(f"{self.name}: refused: {message}")
            case Submitted():
                self._on_submitted(message)
            case Watching(tasks=marks):
                assert not message.missing, f"{self.name}: tasks lost: {message.missing}"
                for mark in marks:
                    self._mark(mark)
            case TaskChanged(task=mark):
                self._mark(mark)
            case Tasks(tasks=views, missing=missing):
                assert not missing, f"{self.name}: tasks lost: {missing}"
                for view in views:
                    assert view.principal == self.name, f"{self.name} sees a task of {view.principal}"
                    self._mark(TaskMark(view.task_id, view.state, view.worker_id, view.attempts))
            case Changes(changes=changes):
                asked = self._pending.pop(message.request_id, None)
                for change in changes:
                    if isinstance(asked, Cancel) and change.state is TaskState.CANCELLED:
                        self.cancelled.add(change.task_id)
            case _:
                pass

    def _on_submitted(self, message: Submitted) -> None:
        asked = self._pending.pop(message.request_id, None)
        ids = tuple(ref.task_id for ref in message.tasks)
        if isinstance(asked, Submit):
            key = asked.idempotency_key
            before = self.accepted.setdefault(key, ids)
            assert before == ids, f"{key} is tasks {before} and tasks {ids}"

    def _mark(self, mark: TaskMark) -> None:
        task_id, state = mark.task_id, mark.state
        if not state.is_terminal:
            return
        before = self.told.get(task_id)
        if before is not None and task_id not in self.retried:
            assert before is state, f"task {task_id} was told as {before}, then as {state}"
        if task_id in self.cancelled and task_id not in self.retried:
            assert state is TaskState.CANCELLED, f"task {task_id}: its cancel was acknowledged, now it is {state}"
        self.told[task_id] = state
