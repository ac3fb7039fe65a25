"""A client of the simulation: submits, repeats until answered, cancels, retries, and remembers what it was told."""

import hashlib
import random
from dataclasses import dataclass, field, replace

from koubou_client.tasks import TaskDraft, parts_of
from koubou_common.errors import Code, KoubouError
from koubou_common.messages import (
    Cancel,
    Changes,
    Error,
    GetResult,
    GetTasks,
    Message,
    PartStaged,
    Retry,
    Submit,
    Submitted,
    TaskChanged,
    TaskResult,
    Tasks,
    Watch,
    Watching,
)
from koubou_common.messages.values import Body, File, TaskMark, TaskSpec, TaskState
from sim.agent_node import Work
from sim.bodies import a_text
from sim.broker_node import BrokerNode
from sim.models import model_for
from sim.store_node import UNSTORABLE
from sim.talker import Request, Talker
from sim.world import World

_ASK_S = 30.0  # what a lost TaskChanged would have said
_PAGE = 200
_VERSION_S = 20.0  # until a submission that no version served is sent again


@dataclass(slots=True)
class Wish:
    """A submission as it is journalled before it is sent: the tasks, by the part they travel in."""

    key: str
    parts: list[list[TaskDraft]]
    sent: str = ""  # request_id of the part under way
    part: int = 0

    @property
    def is_batch(self) -> bool:
        """Whether it is more than one task."""
        return sum(len(part) for part in self.parts) > 1


@dataclass(frozen=True, slots=True)
class Voided:
    """What was accepted, and taken back by a restore."""

    key: str
    task_ids: tuple[int, ...]


@dataclass(slots=True)
class Journal:
    """What survives a crash of the client."""

    wishes: dict[str, Wish] = field(default_factory=dict)
    accepted_in: dict[str, int] = field(default_factory=dict)  # key -> epoch
    spoiled: set[str] = field(default_factory=set)  # keys that a bug of the broker's would not let be stored


class ClientNode(Talker):
    """Its journal survives its crashes: keys before they are sent, ids when they are acknowledged."""

    def __init__(self, world: World, broker: BrokerNode, name: str, public_key: str, work: Work) -> None:
        super().__init__(world, broker, name, public_key)
        self.work = work
        self.keys: list[str] = []
        self.accepted: dict[str, tuple[int, ...]] = {}  # key -> task ids
        self.told: dict[int, TaskState] = {}  # how a task ended, as the broker said
        self.cancelled: set[int] = set()  # cancels the broker has acknowledged
        self.retried: set[int] = set()
        self.results: dict[int, bytes] = {}  # task -> sha256 of the output that was read
        self.voided: list[Voided] = []
        self.journal = Journal()
        self.companions: list[Talker] = []  # other programs of the same person, with the same key
        self._key_of: dict[str, str] = {}  # request_id -> key
        self._asked_at_s = 0.0
        self._made = 0

    def take_key(self, public_key: str) -> None:
        """An invitation was followed."""
        super().take_key(public_key)
        for one in self.companions:
            one.take_key(public_key)

    # What a person does.

    def new_submission(self) -> None:
        """Journal a key, then send."""
        draws = self.world.draws
        key = f"{self.name}-{self._made}"
        self._made += 1
        count = draws.choice((1, 1, 1, 4))
        drafts = [self.draft(key, f"{key}/{index}") for index in range(count)]
        spoils = self.broker.is_whole and not self.world.healed and draws.random() < 0.02
        if spoils:
            drafts[0] = replace(drafts[0], spec=replace(drafts[0].spec, custom_id=UNSTORABLE))
            self.journal.spoiled.add(key)
        in_parts = count > 1 and draws.random() < 0.5
        self.journal.wishes[key] = Wish(key, [drafts[:2], drafts[2:]] if in_parts else [drafts])
        self.keys.append(key)
        self._submit(key)

    def submit_again(self) -> None:
        """Repeat a submission that was accepted long ago, as a script does that does not know."""
        keys = [key for key in self.keys if key in self.accepted]
        if keys and not self.world.healed:
            self._submit(self.world.draws.choice(keys))

    def cancel_some(self) -> None:
        """Cancel one of the accepted tasks."""
        ids = [task_id for ids in self.accepted.values() for task_id in ids if task_id not in self.told]
        if ids:
            self.ask(Cancel(self.request_id(), (self.world.draws.choice(ids),), 0, "not needed"))

    def retry_some(self) -> None:
        """Open an ended task again, mostly one that did not succeed."""
        draws = self.world.draws
        any_end = draws.random() < 0.2
        ids = [task_id for task_id, state in self.told.items() if any_end or state is not TaskState.SUCCEEDED]
        if ids and not self.world.healed:
            task_id = draws.choice(ids)
            self.retried.add(task_id)
            self._forget_end(task_id)
            self.ask(Retry(self.request_id(), (task_id,)))

    def ask_again(self) -> None:
        """Forget how retried tasks ended: an old message may have spoken of an earlier generation."""
        for task_id in self.retried:
            self._forget_end(task_id)
        self._asked_at_s = 0.0

    def is_content(self) -> bool:
        """Whether everything it wanted was accepted, and it knows how all of it ended, and has all there is."""
        if not self.is_idle or len(self.accepted) != len(self.keys):
            return False
        ends = {task_id: self.told.get(task_id) for ids in self.accepted.values() for task_id in ids}
        return all(
            state is not None and (state is not TaskState.SUCCEEDED or task_id in self.results)
            for task_id, state in ends.items()
        )

    def is_surely_there(self, task_id: int, epoch: int) -> bool:
        """Whether the broker of this term must know the task as this client's."""
        keys = [key for key, ids in self.accepted.items() if task_id in ids]
        return any(self.journal.accepted_in[key] <= epoch and not self._is_doubtful(key) for key in keys)

    def alike(self) -> list[tuple[int, ...]]:
        """The tasks that one version of their model was to answer, by submission."""
        return [ids for key, ids in self.accepted.items() if self.world.habits.is_alike(key)]

    # What the connection brings.

    def began(self) -> None:
        """Ask again for what the journal says."""
        for key in self.keys:
            if key not in self.accepted:
                self._submit(key)

    def was_welcomed(self) -> None:
        """Half-sent submissions begin again: the broker holds their parts by session."""
        self._asked_at_s = 0.0
        for request in list(self._pending.values()):
            if isinstance(request.message, Submit) and request.message.part:
                self._from_the_first_part(request)

    def beat(self) -> None:
        """Look after what a lost message would have said."""
        if self.world.now_s - self._asked_at_s <= _ASK_S:
            return
        self._asked_at_s = self.world.now_s
        open_ids = tuple(task_id for ids in self.accepted.values() for task_id in ids if task_id not in self.told)
        if open_ids:
            self.say(Watch("watch", open_ids))
            for start in range(0, len(open_ids), _PAGE):
                self.say(GetTasks(f"get{start}", open_ids[start : start + _PAGE]))
        for task_id, state in self.told.items():
            if state is TaskState.SUCCEEDED and task_id not in self.results:
                self.say(GetResult(f"result{task_id}", task_id))

    def took(self, message: Message, epoch: int) -> None:
        """An answer, or news."""
        match message:
            case Submitted():
                self._on_submitted(message, epoch)
            case PartStaged():
                self._on_staged(message)
            case Watching(tasks=marks, missing=missing):
                self._gone(missing)
                for mark in marks:
                    self._mark(mark)
            case TaskChanged(task=mark):
                self._mark(mark)
            case Tasks(tasks=views, missing=missing):
                self._gone(missing)
                for view in views:
                    assert view.principal == self.name, f"{self.name} sees a task of {view.principal}"
                    self._mark(TaskMark(view.task_id, view.state, view.worker_id, view.attempts))
            case TaskResult():
                self._on_result(message)
            case Changes():
                self._on_changes(message)
            case _:
                pass

    def put_off(self, asked: Request, error: Error) -> None:
        """A submission in parts begins again: its parts are perhaps no longer held."""
        if isinstance(asked.message, Submit) and asked.message.part:
            self._from_the_first_part(asked)

    def refused(self, error: Error, asked: Request | None) -> None:
        """Only what a bug of the broker's cannot store is refused for good."""
        message = asked.message if asked else None
        if isinstance(message, Submit) and error.code is Code.REFUSED and "version" in error.message:
            # No one version is on a worker for each of its tasks (of this part or another), or nobody has told: another
            # time there is.
            self._life.after(_VERSION_S, lambda: self._submit(message.idempotency_key))
            return
        if isinstance(message, Submit) and message.idempotency_key in self.journal.spoiled:
            assert error.code is Code.INTERNAL, f"{self.name}: {error}"
            self.keys.remove(message.idempotency_key)
            return
        if error.code is Code.NOT_FOUND and self._may_be_gone():
            return
        super().refused(error, asked)

    def restored(self) -> None:
        """What was told of an end was told from a database that is gone."""
        self.told.clear()
        self.cancelled.clear()
        self.results.clear()
        self._asked_at_s = 0.0

    def draft(self, key: str, tag: str) -> TaskDraft:
        """A task of this submission."""
        habits, draws = self.world.habits, self.world.draws
        asked = habits.question(tag)
        texts = draws if asked == tag else random.Random(asked)  # the same question is the same to the last byte
        prompt = a_text(asked, texts) if self.broker.is_whole else asked.encode()
        bodies = {hashlib.sha256(prompt).digest(): prompt}
        files: tuple[File, ...] = ()
        if self.broker.is_whole and texts.random() < 0.3:
            data = a_text(f"file of {asked}", texts)
            bodies[hashlib.sha256(data).digest()] = data
            files = (File("notes.md", _body(data)),)
        deadline_s = draws.choice((None, None, None, None, 60.0, 600.0))
        drawn = draws.randint(1, 10)
        priority = self.world.faults.priority or drawn
        spec = TaskSpec(
            prompt=_body(prompt),
            files=files,
            model=model_for(self.world.seed, prompt),
            priority=priority,
            deadline_s=deadline_s if self.world.faults.deadlines else None,
            max_attempts=draws.choice((None, None, None, 2)),
            same_digest=habits.is_alike(key),
        )
        return TaskDraft(habits.asked_for(tag, spec), bodies)

    def _submit(self, key: str) -> None:
        wish = self.journal.wishes[key]
        wish.part = 0
        self._send_part(wish)

    def _send_part(self, wish: Wish, not_before_s: float = 0.0) -> None:
        drafts = wish.parts[wish.part]
        wish.sent = self.request_id()
        self._key_of[wish.sent] = wish.key
        if self.broker.is_whole:
            ((message, bodies),) = parts_of(drafts, [wish.sent], wish.key, as_batch=wish.is_batch, dry_run=False)
        else:
            specs = tuple(marked(draft.spec) for draft in drafts)
            message, bodies = Submit(wish.sent, wish.key, specs, wish.is_batch), {}
        self.ask(replace(message, part=wish.part, parts=len(wish.parts)), bodies, not_before_s=not_before_s)

    def _from_the_first_part(self, request: Request) -> None:
        self.answered(request.message.request_id)
        wish = self.journal.wishes[request.message.idempotency_key]
        wish.part = 0
        self._send_part(wish, request.not_before_s)

    def _on_staged(self, message: PartStaged) -> None:
        asked = self.answered(message.request_id)
        if asked is not None:
            wish = self.journal.wishes[asked.message.idempotency_key]
            if wish.sent == message.request_id:
                wish.part += 1
                self._send_part(wish)

    def _on_submitted(self, message: Submitted, epoch: int) -> None:
        self.answered(message.request_id)
        key = self._key_of[message.request_id]  # of a late repetition too
        ids = tuple(ref.task_id for ref in message.tasks)
        before = self.accepted.get(key)
        if before is not None and before != ids:
            assert self._is_doubtful(key), f"{key} is tasks {before} and tasks {ids}"
            self.voided.append(Voided(key, before))
        self.accepted[key] = ids
        self.journal.accepted_in[key] = epoch
        self._asked_at_s = 0.0

    def _on_changes(self, message: Changes) -> None:
        asked = self.answered(message.request_id)
        for change in message.changes:
            if isinstance(asked and asked.message, Cancel) and change.state is TaskState.CANCELLED:
                self.cancelled.add(change.task_id)
            if isinstance(asked and asked.message, Retry):
                self._forget_end(change.task_id)
                self.cancelled.discard(change.task_id)
        self._gone(message.missing)

    def _on_result(self, message: TaskResult) -> None:
        view, body = message.task, message.body
        assert view.principal == self.name, f"{self.name} reads a result of {view.principal}"
        if view.task_id not in self.told:
            return
        if view.state is not TaskState.SUCCEEDED:
            assert view.task_id in self.retried, f"task {view.task_id} was told as succeeded, now it is {view.state}"
            self._forget_end(view.task_id)
            return
        assert body is not None, f"task {view.task_id} succeeded, and there is no output"
        said = self.work.raw.get(body.sha256)
        if not self.broker.is_whole:
            self.results[view.task_id] = body.sha256
            return
        assert said is not None, f"task {view.task_id}: nobody ever said what is its output"
        lives = self.lives

        def fetched(data: bytes | KoubouError) -> None:
            if self.lives != lives or isinstance(data, KoubouError):
                return  # asked for again
            assert data == said, f"task {view.task_id}: the output read is not what was said"
            if view.task_id in self.told:
                self.results[view.task_id] = body.sha256

        self._fetches.want(body, fetched)
        self._fetch()

    def _mark(self, mark: TaskMark) -> None:
        task_id, state = mark.task_id, mark.state
        if not state.is_terminal:
            return
        before = self.told.get(task_id)
        if before is not None and task_id not in self.retried:
            assert before is state, f"task {task_id} was told as {before}, then as {state}"
        if task_id in self.cancelled and task_id not in self.retried:
            assert state is TaskState.CANCELLED, f"task {task_id}: its cancel was acknowledged, now it is {state}"
        if before is not state:
            self._asked_at_s = 0.0  # the output is wanted
        self.told[task_id] = state

    def _forget_end(self, task_id: int) -> None:
        self.told.pop(task_id, None)
        self.results.pop(task_id, None)

    def _gone(self, missing: tuple[int, ...]) -> None:
        """Tasks that the broker does not know (any more)."""
        for key, ids in list(self.accepted.items()):
            if set(ids) & set(missing):
                assert self._is_doubtful(key), f"{self.name}: tasks lost: {missing}"
                self.world.note(f"{self.name}: {key}, tasks {ids}, went with the restore")
                self.voided.append(Voided(key, ids))
                del self.accepted[key]
                for task_id in ids:
                    self._forget_end(task_id)
                self._submit(key)  # as the broker advises; a late copy of the first submission is the same one

    def _is_doubtful(self, key: str) -> bool:
        """Whether it was accepted by a broker whose database was taken back since."""
        return self.journal.accepted_in[key] < self.broker.restored_epoch

    def _may_be_gone(self) -> bool:
        return any(self._is_doubtful(key) for key in self.accepted) or bool(self.voided)


def _body(data: bytes) -> Body:
    return Body(hashlib.sha256(data).digest(), len(data))


def marked(spec: TaskSpec) -> TaskSpec:
    """As the bare core sees it: b"" says that the bytes came along."""
    return replace(spec, prompt=replace(spec.prompt, inline=b""))
