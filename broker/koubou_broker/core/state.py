"""All that the core holds, and the effects of the step at hand; the parts of the core change it."""

import hashlib
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from koubou_broker.core_settings import REMOTE, CoreSettings, WorkerSettings
from koubou_broker.effects import (
    Alert,
    Allow,
    AskBackup,
    Close,
    Effect,
    Erase,
    Found,
    Lookup,
    Now,
    Query,
    Revoke,
    Save,
    Send,
    Snapshot,
    StoredTask,
)
from koubou_broker.records import (
    Attempt,
    Audit,
    Event,
    NewTask,
    Principal,
    Record,
    Submission,
    TaskProgress,
    Worker,
)
from koubou_broker.routing.grouping import Grouping
from koubou_broker.routing.queue import ReadyQueue
from koubou_broker.routing.router import TaskRouter
from koubou_broker.routing.strategies import Strategy
from koubou_broker.routing.workers import LiveWorker
from koubou_broker.task import LiveAttempt, Task
from koubou_broker.timers import Timer, Timers
from koubou_common.errors import Code
from koubou_common.messages import PROTO_MIN, Error, FromBroker, Submitted
from koubou_common.messages.values import AlertView, Role, TaskSpec

ALERT_LASTS_S = 86_400.0  # of what happened once and has no end of its own: everybody concerned has looked by then
_ALERT_CODE_CHARS = 64  # the wire's limit of a word
_SENTENCE_CHARS = 2_000
_UID_BYTES = 16


class Refusal(Exception):  # noqa: N818 - it is an answer, not a fault of ours
    """A request that is answered with an Error; raised before anything was changed."""

    def __init__(self, code: Code, message: str, hint: str = "", retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.retry_after_s = retry_after_s


@dataclass(slots=True)
class Staged:
    """The parts of a submission that came so far."""

    parts: int
    as_batch: bool
    touched_s: float  # when the last part came
    specs: dict[int, tuple[TaskSpec, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answered:
    """How a submission in parts was answered, and by what its parts are known when they come again."""

    submitted: Submitted
    part_digests: tuple[bytes, ...]


@dataclass(slots=True)
class Session:
    """One peer's session; what it is in the middle of."""

    session: int
    public_key: str
    name: str
    role: Role
    heard_s: float
    proto: int = PROTO_MIN  # the version that both sides speak
    watches: dict[str, set[int]] = field(default_factory=dict)  # request_id -> task ids not yet ended
    staged: dict[str, Staged] = field(default_factory=dict)  # by idempotency key
    #: answers to submissions in parts, whose parts are gone when the last one is repeated
    answered: dict[str, Answered] = field(default_factory=dict)
    lookups: int = 0


@dataclass(slots=True)
class Account:
    """A principal's live tasks, oldest first, and what they hold."""

    tasks: dict[int, Task] = field(default_factory=dict)
    running: int = 0
    files: int = 0  # context files that they name
    bodies: dict[bytes, int] = field(default_factory=dict)  # sha256 of each prompt and file: by how many it is named
    size_bytes: int = 0  # of these bodies, each counted once

    def add(self, task: Task) -> None:
        """A task is live."""
        self.tasks[task.task_id] = task
        self.files += len(task.spec.files)
        for sha256, size_bytes in _bodies_of(task):
            if sha256 not in self.bodies:
                self.size_bytes += size_bytes
            self.bodies[sha256] = self.bodies.get(sha256, 0) + 1

    def remove(self, task: Task) -> None:
        """A task has ended."""
        del self.tasks[task.task_id]
        self.files -= len(task.spec.files)
        for sha256, size_bytes in _bodies_of(task):
            self.bodies[sha256] -= 1
            if not self.bodies[sha256]:
                del self.bodies[sha256]
                self.size_bytes -= size_bytes


@dataclass(slots=True)
class _Pending:
    session: int
    request_id: str
    then: Callable[[Found], None]
    failed: Callable[[Refusal], None] | None


class State:
    """Indexes over live tasks, attempts, workers, sessions and keys; `finish` returns a step's effects."""

    def __init__(
        self, settings: CoreSettings, snapshot: Snapshot, seed: int, now: Now, strategy: Strategy | None = None
    ) -> None:
        self.settings = settings
        self.started = now
        self.now = now
        self.tasks: dict[int, Task] = {}
        self.attempts: dict[str, LiveAttempt] = {}
        self.workers: dict[str, LiveWorker] = {}
        self.sessions: dict[int, Session] = {}
        self.principals: dict[str, Principal] = {}
        self.seen_ms: dict[str, int] = {}  # public key -> last hello
        self.accounts: dict[str, Account] = {}
        self.batches: dict[int, set[int]] = {}  # live tasks of a batch
        self.watchers: dict[int, dict[tuple[int, str], None]] = {}  # task id -> (session, request_id)
        self.submission_hashes = set(snapshot.submission_hashes)
        self.alerts: dict[str, AlertView] = {}
        self.queue = ReadyQueue(settings.aging_s)
        self.grouping = Grouping(self.queue, settings.patience_s)
        self.timers = Timers()
        self.router = TaskRouter(settings, self.workers, strategy)
        self.loss = snapshot.loss
        self.refused: tuple[str, float] | None = None  # why no submission is taken, retry_after_s
        self.next_task_id = snapshot.next_task_id
        self.next_batch_id = snapshot.next_batch_id
        self.unsealed: list[str] = []  # attempts dispatched since the last `end_batch`
        self.sealed: deque[tuple[int, list[str]]] = deque()
        self.last_batch = 0
        self._next_event_seq = snapshot.next_event_seq
        self._seed = seed
        self._draws = 0
        self._last_token = 0
        self._pending: dict[int, _Pending] = {}
        self._just_ended: dict[int, tuple[int, Task]] = {}
        self._going: dict[int, float] = {}  # tasks whose bodies are being removed, and that rows may not know it of
        self._records: dict[object, Record] = {}
        self._effects: list[Effect] = []

    # Effects of the step

    def save(self, record: Record) -> None:
        """Write a row; of several for the same row in one step only the last is written."""
        self._records[_row_of(record, len(self._records))] = record

    def send(self, session: int, message: FromBroker) -> None:
        """Say something, if the session is still there."""
        if session in self.sessions:
            self._effects.append(Send(session, message))

    def answer(self, session: int, message: FromBroker) -> None:
        """Say something to a session that may not have said hello."""
        self._effects.append(Send(session, message))

    def refuse(self, session: int, request_id: str, refusal: Refusal) -> None:
        """The one way to say no."""
        self.answer(
            session,
            Error(
                refusal.code,
                refusal.message[:_SENTENCE_CHARS],
                refusal.hint[:_SENTENCE_CHARS],
                request_id,
                refusal.retry_after_s,
            ),
        )

    def emit(self, effect: Allow | Revoke | Close | AskBackup | Erase) -> None:
        """A change of the allow-list, the end of a session, work for the server."""
        self._effects.append(effect)

    def alert(self, code: str, message: str, *, lasts_s: float = 0.0) -> None:
        """Tell a person; an empty message ends the alert, and so does `lasts_s` after it was last raised."""
        code = code[:_ALERT_CODE_CHARS]
        before = self.alerts.get(code)
        if message and lasts_s:
            self.timers.set(Timer.ALERT, code, self.now.mono_s + lasts_s)
        else:
            self.timers.drop(Timer.ALERT, code)
        if not message:
            if before is None:
                return
            del self.alerts[code]
        else:
            message = message[:_SENTENCE_CHARS]
            if before is not None and before.message == message:
                return
            since_ms = before.since_ms if before else self.now.wall_ms
            self.alerts[code] = AlertView(code, message, since_ms)
        self._effects.append(Alert(code, message))

    def event(self, task: Task, actor: str, before: str, attempt: int, reason: str) -> None:
        """Append to the task's history."""
        seq = self._next_event_seq
        self._next_event_seq += 1
        self.save(Event(seq, task.task_id, self.now.wall_ms, actor, before, task.state, attempt, reason[:300]))

    def audit(self, actor: str, action: str, subject: str, detail: str = "") -> None:
        """Note a key, worker or operator action."""
        self.save(Audit(self.now.wall_ms, actor, action, subject, detail))

    def finish(self) -> list[Effect]:
        """The effects of the step: one Save before all that must not precede it."""
        effects = self._effects
        if self._records:
            # One Save in front: whatever is said in this step is said after all it rests on (law 1).
            effects = [Save(tuple(self._records.values())), *effects]
            self._records = {}
        self._effects = []
        return effects

    # Look-ups

    def lookup(
        self,
        session: int,
        query: Query,
        then: Callable[[Found], None],
        request_id: str = "",
        *,
        failed: Callable[[Refusal], None] | None = None,
    ) -> None:
        """Ask the store; `then` gets the rows, `failed` hears why there are none (else who asked is told).

        Session 0: the core's own question.
        """
        peer = self.sessions.get(session)
        if session and not self.may_look_up(session):
            most = self.settings.limits.lookups_per_session
            text = f"{most} questions are being looked up, the limit lookups_per_session"
            raise Refusal(Code.BUSY, text, retry_after_s=1.0)
        if peer is not None:
            peer.lookups += 1
        self._last_token += 1
        self._pending[self._last_token] = _Pending(session, request_id, then, failed)
        self._effects.append(Lookup(self._last_token, query))

    def may_look_up(self, session: int) -> bool:
        """Whether this session may ask the store now; agents simply repeat what was not answered."""
        peer = self.sessions.get(session)
        return peer is not None and peer.lookups < self.settings.limits.lookups_per_session

    def found(self, token: int, found: Found) -> None:
        """An answer came; an unknown token is of an earlier core."""
        pending = self._pending.get(token)
        if pending is None:
            return
        try:
            # Also for a session that has gone: others may wait for the same answer.
            pending.then(found)
        except Refusal as refusal:
            if pending.session in self.sessions:
                self.refuse(pending.session, pending.request_id, refusal)
        finally:
            # After `then`, which still needs what ended meanwhile.
            self._looked_up(token, pending)

    def not_found(self, token: int) -> None:
        """The store could not answer."""
        pending = self._pending.get(token)
        if pending is None:
            return
        text = "the broker could not look this up: a fault of Koubou's, not of yours"
        refusal = Refusal(Code.INTERNAL, text, "other requests are not affected; the broker's log has more")
        if pending.failed is not None:
            pending.failed(refusal)
        elif pending.request_id and pending.session in self.sessions:
            # An agent's deliveries have no request_id: they are repeated until they are stored.
            self.refuse(pending.session, pending.request_id, refusal)
        self._looked_up(token, pending)

    def ended(self, task: Task) -> None:
        """Keep a task that ends while rows are being read: they may show it as it was."""
        if self._pending:
            self._just_ended.pop(task.task_id, None)
            self._just_ended[task.task_id] = (self._last_token, task)

    def known(self, task_id: int) -> Task | None:
        """The task if the core knows better than rows read just now."""
        task = self.tasks.get(task_id)
        if task is None and task_id in self._just_ended:
            task = self._just_ended[task_id][1]
        return task

    def truth(self, row: StoredTask) -> Task:
        """The task behind a row; what the core knows beats it."""
        known = self.known(row.task.task_id)
        if known is not None:
            return known
        task = Task.restored(row.task, row.progress)
        task.has_bodies = row.has_bodies
        return task

    def going_for(self, task_ids: Iterable[int]) -> None:
        """The bodies of these tasks, ended ones, are being removed: nobody may open them again."""
        self._going.update(dict.fromkeys(task_ids, math.inf))

    def gone(self, task_ids: Iterable[int]) -> None:
        """The bodies are gone, or stay; rows that were asked for before may still tell of them."""
        for task_id in task_ids:
            self._going[task_id] = self._last_token
        self._drop_just_ended()

    def is_going(self, task_id: int) -> bool:
        """Whether rows that say that the task has its bodies may be wrong."""
        return task_id in self._going

    # Draws: hashes of seed and counter, so that the same inputs give the same run

    def draw_uid(self) -> str:
        """128 bits, hex."""
        return self._draw().hex()

    def draw_fraction(self) -> float:
        """0 up to 1."""
        return int.from_bytes(self._draw()[:6]) / 2**48

    def _draw(self) -> bytes:
        self._draws += 1
        return hashlib.blake2b(f"{self._seed}/{self._draws}".encode(), digest_size=_UID_BYTES).digest()

    # Indexes

    def add_worker(self, worker_id: str) -> LiveWorker:
        """The worker of this id; one that workers.yaml does not name gets the defaults."""
        worker = self.workers.get(worker_id)
        if worker is None:
            settings = next((one for one in self.settings.workers if one.worker_id == worker_id), None)
            if settings is None:
                settings = WorkerSettings(
                    worker_id,
                    location=REMOTE,
                    slots=self.settings.default_slots,
                    performance_factor=self.settings.default_factor,
                )
            worker = self.workers[worker_id] = LiveWorker(settings, breaker_failures=self.settings.breaker_failures)
            self.router.workers_changed()
        return worker

    def account(self, principal: str) -> Account:
        """The live tasks of a principal."""
        return self.accounts.setdefault(principal, Account())

    def index_task(self, task: Task) -> None:
        """A task is live."""
        assert not task.is_over, f"task {task.task_id} is {task.state}"
        self.tasks[task.task_id] = task
        self._just_ended.pop(task.task_id, None)
        self.account(task.spec.principal).add(task)
        if task.spec.batch_id:
            self.batches.setdefault(task.spec.batch_id, set()).add(task.task_id)

    def unindex_task(self, task: Task) -> None:
        """A task has ended."""
        del self.tasks[task.task_id]
        account = self.accounts[task.spec.principal]
        account.remove(task)
        if not account.tasks:
            del self.accounts[task.spec.principal]
        batch = self.batches.get(task.spec.batch_id)
        if batch is not None:
            batch.discard(task.task_id)
            if not batch:
                del self.batches[task.spec.batch_id]
        self.ended(task)

    def close_session(self, session: int) -> None:
        """Forget a session and what it was in the middle of."""
        gone = self.sessions.pop(session, None)
        if gone is None:
            return
        for request_id in list(gone.watches):
            self.unwatch(gone, request_id)
        worker = self.workers.get(gone.name) if gone.role is Role.WORKER else None
        if worker is not None and worker.session == session:
            worker.disconnect()
            self.router.roster.touch(worker.worker_id)

    def unwatch(self, session: Session, request_id: str) -> None:
        """Forget one watch."""
        for task_id in session.watches.pop(request_id, ()):
            watchers = self.watchers[task_id]
            del watchers[session.session, request_id]
            if not watchers:
                del self.watchers[task_id]

    def _looked_up(self, token: int, pending: _Pending) -> None:
        del self._pending[token]
        peer = self.sessions.get(pending.session)
        if peer is not None:
            peer.lookups -= 1
        self._drop_just_ended()

    def _drop_just_ended(self) -> None:
        oldest = next(iter(self._pending), math.inf)
        for task_id, last_token in list(self._going.items()):
            if last_token < oldest and last_token < math.inf:
                del self._going[task_id]
        if not self._pending:
            self._just_ended.clear()
            return
        for task_id, (token, _) in list(self._just_ended.items()):
            if token >= oldest:
                break
            del self._just_ended[task_id]


def _bodies_of(task: Task) -> Iterator[tuple[bytes, int]]:
    yield task.spec.prompt.sha256, task.spec.prompt.size_bytes
    for file in task.spec.files:
        yield file.body.sha256, file.body.size_bytes


def _row_of(record: Record, nth: int) -> object:
    match record:
        case TaskProgress(task_id=task_id):
            return TaskProgress, task_id
        case NewTask(task_id=task_id):
            return NewTask, task_id
        case Attempt(attempt_uid=uid):
            return Attempt, uid
        case Worker(worker_id=worker_id):
            return Worker, worker_id
        case Principal(public_key=key):
            return Principal, key
        case Submission(principal=principal, idempotency_key=key):
            return Submission, principal, key
        case _:
            return nth
