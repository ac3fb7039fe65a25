"""A broker for clients, by hand: the real socket and codec; the test says when tasks end and what goes wrong."""

import dataclasses
import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import zmq

from koubou_common.client_settings import ClientSettings
from koubou_common.codec import decode, encode
from koubou_common.errors import Code, ErrorClass
from koubou_common.home import Home
from koubou_common.keys import write_key_pair
from koubou_common.messages import (
    PROTO_MAX,
    BlobChunk,
    BlobGet,
    BlobMissing,
    Cancel,
    Changes,
    ClientHello,
    ClientWelcome,
    Error,
    Explain,
    Explanation,
    GetResult,
    GetStatus,
    GetStory,
    GetTasks,
    Message,
    PartStaged,
    Preview,
    Retry,
    Status,
    Story,
    Submit,
    Submitted,
    TaskChanged,
    TaskResult,
    Tasks,
    Watch,
    Watching,
)
from koubou_common.messages.limits import CHUNK_BYTES, FILE_BYTES, INLINE_BYTES, PROMPT_BYTES, TASK_BYTES, TASK_FILES
from koubou_common.messages.values import (
    AttemptView,
    Body,
    Candidate,
    Change,
    EventView,
    Plan,
    Role,
    StateCount,
    TaskMark,
    TaskRef,
    TaskSpec,
    TaskState,
    TaskView,
)
from support.door import Door
from support.waiting import eventually

NOW_MS = 1_750_000_000_000
WAITED_MS, RAN_MS = 3_100, 41_000
Kind = TypeVar("Kind")
Hook = Callable[[Message], list[Message] | None]


class FakeWorkshop:
    """Serves from a thread of its own; `home` is a KOUBOU_HOME whose client.yaml leads here."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.door = Door()
        self.pair = self.door.enrol("mika", Role.CLIENT)
        self.epoch = 5
        self.prompt_bytes = PROMPT_BYTES
        self.proto = PROTO_MAX
        self.received: list[Message] = []
        self.tasks: dict[int, TaskView] = {}
        self.specs: dict[int, TaskSpec] = {}
        self.raw: dict[int, tuple[bytes, int, int]] = {}  # all the model said, where the output is in it
        self.attempts: dict[int, tuple[AttemptView, ...]] = {}
        self.events: dict[int, tuple[EventView, ...]] = {}
        self.explanations: dict[int, Explanation] = {}
        self.status: Status | None = None
        self.plan = Plan("gpt-oss:20b", 12, "rule 1 of 1", (Candidate("lan_001", True, True, 130.0, ""),), "")
        self.hook: Hook | None = None  # first word on every message; None: as usual
        self.on_submit: Callable[[FakeWorkshop, list[int]], None] = lambda workshop, ids: None
        self.chunks_given = 0
        self._sessions: set[bytes] = set()
        self._submissions: dict[str, Submitted] = {}
        self._staged: dict[tuple[bytes, str], dict[int, tuple[TaskSpec, ...]]] = {}
        self._batches = 11
        self._blobs: dict[bytes, bytes] = {}
        self._pulls: list[tuple[bytes, Submit, dict[bytes, dict[int, bytes]]]] = []
        self._watches: dict[tuple[bytes, str], set[int]] = {}
        self._lock = threading.RLock()
        self._outgoing: list[tuple[bytes, Message]] = []
        self._stopping = threading.Event()
        self._pause = threading.Event()
        self._paused = threading.Event()
        settings = ClientSettings((self.door.address,), self.door.pair.public, Path("keys/mika.key"))
        home.create()
        write_key_pair(home.key_file("mika"), self.pair)
        home.config_file("client").write_text(settings.to_yaml())
        self._thread = threading.Thread(target=self._serve, name="workshop")
        self._thread.start()

    def close(self) -> None:
        self._stopping.set()
        self._thread.join()
        self.door.close()

    # What the test does.

    def heard(self, kind: type[Kind]) -> list[Kind]:
        """All messages of a kind so far."""
        with self._lock:
            return [message for message in self.received if isinstance(message, kind)]

    def await_heard(self, kind: type[Kind], count: int = 1) -> list[Kind]:
        """The messages of a kind, as soon as there are so many."""
        eventually(lambda: len(self.heard(kind)) >= count, what=kind.__name__)
        return self.heard(kind)

    def start(self, task_id: int, worker_id: str = "lan_001") -> None:
        task = self.tasks[task_id]
        self._change(
            task_id,
            state=TaskState.RUNNING,
            worker_id=worker_id,
            attempts=task.attempts + 1,
            started_ms=task.submitted_ms + WAITED_MS,
            waiting_for="",
        )

    def succeed(
        self, task_id: int, raw: bytes = b"the answer\n", *, offset: int = 0, length: int | None = None
    ) -> None:
        if self.tasks[task_id].state is TaskState.QUEUED:
            self.start(task_id)
        length = len(raw) - offset if length is None else length
        self.raw[task_id] = (raw, offset, length)
        self._blobs[_sha(raw)] = raw
        self._change(
            task_id,
            state=TaskState.SUCCEEDED,
            finished_ms=self.tasks[task_id].started_ms + RAN_MS,
            prompt_tokens=812,
            output_tokens=640,
            output_bytes=length,
        )

    def fail(self, task_id: int, error_class: ErrorClass = ErrorClass.TIMEOUT, message: str = "") -> None:
        if self.tasks[task_id].state is TaskState.QUEUED:
            self.start(task_id)
        finished_ms = self.tasks[task_id].started_ms + RAN_MS
        self._change(
            task_id,
            state=TaskState.FAILED,
            error_class=error_class,
            error_message=message,
            finished_ms=finished_ms,
        )

    def edit(self, task_id: int, **changes: object) -> None:
        """Record something else about a task."""
        self._change(task_id, **changes)

    def forget_sessions(self) -> None:
        """As a broker restarted behind an unbroken connection: nobody has said hello."""
        with self._lock:
            self._sessions.clear()
            self._watches.clear()
            self._staged.clear()

    def kill(self) -> None:
        """The broker dies: connections drop, sessions are gone, what was accepted stays."""
        self._pause.set()
        assert self._paused.wait(5)
        self.door.go_away()
        self.forget_sessions()

    def revive(self) -> None:
        self.door.restart()
        self.epoch += 1
        self._pause.clear()

    # What it does by itself.

    def _serve(self) -> None:
        while not self._stopping.is_set():
            if self._pause.is_set():
                self._paused.set()
                time.sleep(0.01)
                continue
            self._paused.clear()
            if self.door.router.poll(5):
                sender, data = self.door.router.recv_multipart()
                with self._lock:
                    self._hear(sender, decode(data).message)
            with self._lock:
                outgoing, self._outgoing = self._outgoing, []
            for receiver, message in outgoing:
                try:
                    self.door.router.send_multipart([receiver, encode(message, self.epoch)], zmq.NOBLOCK)
                except zmq.ZMQError:
                    continue  # it has left

    def _say(self, receiver: bytes, *messages: Message) -> None:
        self._outgoing += [(receiver, message) for message in messages]

    def _hear(self, sender: bytes, message: Message) -> None:
        self.received.append(message)
        answers = self.hook(message) if self.hook else None
        if answers is not None:
            self._say(sender, *answers)
            return
        if isinstance(message, ClientHello):
            self._sessions.add(sender)
            limits = (self.prompt_bytes, FILE_BYTES, TASK_BYTES, TASK_FILES)
            self._say(sender, ClientWelcome(self.proto, len(self._sessions), "mika", Role.CLIENT, *limits))
        elif isinstance(message, BlobChunk):
            self._take_chunk(sender, message)
        elif isinstance(message, BlobGet):
            self._give_chunk(sender, message)
        elif sender not in self._sessions:
            request_id = getattr(message, "request_id", "")
            self._say(sender, Error(Code.HELLO_REQUIRED, "say hello first", "", request_id))
        elif isinstance(message, Submit):
            self._pull_or_submit(sender, message)
        else:
            self._answer(sender, message)

    def _answer(self, sender: bytes, message: Message) -> None:
        match message:
            case GetTasks():
                self._say(sender, self._page(message))
            case GetResult():
                self._say(sender, self._result(message))
            case GetStory():
                if message.task_id not in self.tasks:
                    self._say(sender, Error(Code.NOT_FOUND, "there is no such task", "", message.request_id))
                    return
                attempts, events = self.attempts.get(message.task_id, ()), self.events.get(message.task_id, ())
                self._say(sender, Story(message.request_id, self.tasks[message.task_id], attempts, events))
            case Explain():
                told = self.explanations[message.task_id]
                self._say(sender, dataclasses.replace(told, request_id=message.request_id))
            case Watch():
                wanted = [task_id for task_id in message.task_ids if task_id in self.tasks]
                missing = tuple(task_id for task_id in message.task_ids if task_id not in self.tasks)
                self._watches[sender, message.request_id] = set(wanted)
                marks = tuple(self._mark(task_id) for task_id in wanted)
                self._say(sender, Watching(message.request_id, marks, missing))
            case Cancel() | Retry() if not message.task_ids and not self._named(message):
                self._say(sender, Error(Code.NOT_FOUND, "there is no such batch", "", message.request_id))
            case Cancel():
                changes = tuple(self._cancel(task_id) for task_id in self._named(message))
                self._say(sender, Changes(message.request_id, changes, self._missing(message.task_ids)))
            case Retry():
                changes = tuple(self._retry(task_id) for task_id in self._named(message))
                self._say(sender, Changes(message.request_id, changes, self._missing(message.task_ids)))
            case GetStatus():
                counts = tuple(
                    StateCount(state, sum(task.state is state for task in self.tasks.values())) for state in TaskState
                )
                usual = Status("-", "0.1.0", "mika", Role.CLIENT, NOW_MS - 131_000, NOW_MS, counts, 0, (), ())
                self._say(sender, dataclasses.replace(self.status or usual, request_id=message.request_id))
            case _:
                raise AssertionError(f"the fake has no answer to {message}")

    def _pull_or_submit(self, sender: bytes, message: Submit) -> None:
        bodies = [body for spec in message.tasks for body in (spec.prompt, *(file.body for file in spec.files))]
        self._blobs |= {body.sha256: body.inline for body in bodies if body.inline is not None}
        wanted = {body.sha256 for body in bodies if body.sha256 not in self._blobs}
        if not wanted:
            self._submit(sender, message)
            return
        self._pulls.append((sender, message, {sha256: {} for sha256 in wanted}))
        sizes = {body.sha256: body.size_bytes for body in bodies}
        for sha256 in wanted:
            self._say(sender, *(BlobGet(sha256, index) for index in range(-(-sizes[sha256] // CHUNK_BYTES))))

    def _take_chunk(self, sender: bytes, chunk: BlobChunk) -> None:
        for pull in list(self._pulls):
            peer, message, pieces = pull
            if peer != sender or chunk.sha256 not in pieces:
                continue
            pieces[chunk.sha256][chunk.index] = chunk.data
            data = b"".join(piece for _, piece in sorted(pieces[chunk.sha256].items()))
            if _sha(data) == chunk.sha256:
                self._blobs[chunk.sha256] = data
                del pieces[chunk.sha256]
            if not pieces:
                self._pulls.remove(pull)
                self._submit(sender, message)

    def _give_chunk(self, sender: bytes, asked: BlobGet) -> None:
        self.chunks_given += 1
        data = self._blobs.get(asked.sha256)
        if data is None:
            self._say(sender, BlobMissing(asked.sha256))
        else:
            start = asked.index * CHUNK_BYTES
            self._say(sender, BlobChunk(asked.sha256, asked.index, data[start : start + CHUNK_BYTES]))

    def _submit(self, sender: bytes, message: Submit) -> None:
        if message.dry_run:
            self._say(sender, Preview(message.request_id, tuple(self.plan for _ in message.tasks)))
            return
        specs = message.tasks
        if message.parts > 1:
            staged = self._staged.setdefault((sender, message.idempotency_key), {})
            staged[message.part] = message.tasks
            if message.part < message.parts - 1:
                self._say(sender, PartStaged(message.request_id, message.part))
                return
            assert len(staged) == message.parts, "a part was never sent in this session"
            specs = tuple(spec for part in sorted(staged) for spec in staged[part])
        known = self._submissions.get(message.idempotency_key)
        if known is None:
            known = self._accept(specs, as_batch=message.as_batch)
            self._submissions[message.idempotency_key] = known
            fresh = known
        else:
            refs = tuple(dataclasses.replace(ref, existing=True) for ref in known.tasks)
            fresh = dataclasses.replace(known, tasks=refs)
        self._say(sender, dataclasses.replace(fresh, request_id=message.request_id))

    def _accept(self, specs: tuple[TaskSpec, ...], *, as_batch: bool) -> Submitted:
        if as_batch:
            self._batches += 1
        first = max(self.tasks, default=141) + 1
        for index, spec in enumerate(specs):
            task_id = first + index
            self.specs[task_id] = spec
            self.tasks[task_id] = a_view(
                task_id,
                batch_id=self._batches if as_batch else 0,
                batch_index=index + 1 if as_batch else 0,
                custom_id=spec.custom_id,
                priority=spec.priority,
                task_type=spec.task_type,
                model=spec.model,
                target=spec.target,
                out_path=spec.out_path,
            )
        ids = list(range(first, first + len(specs)))
        self.on_submit(self, ids)
        refs = tuple(TaskRef(task_id, self.tasks[task_id].state, False) for task_id in ids)
        return Submitted("-", self._batches if as_batch else 0, refs)

    def _page(self, message: GetTasks) -> Tasks:
        matching = [
            task
            for task in sorted(self.tasks.values(), key=lambda task: -task.task_id)
            if (not message.task_ids or task.task_id in message.task_ids)
            and message.batch_id in (0, task.batch_id)
            and (not message.states or task.state in message.states)
            and (not message.before_id or task.task_id < message.before_id)
        ]
        page = matching[: message.most]
        more = len(matching) > len(page)
        next_before = page[-1].task_id if more else 0
        return Tasks(message.request_id, tuple(page), next_before, self._missing(message.task_ids))

    def _result(self, message: GetResult) -> TaskResult | Error:
        task = self.tasks.get(message.task_id)
        if task is None:
            return Error(Code.NOT_FOUND, f"there is no task {message.task_id}", "", message.request_id)
        held = self.raw.get(message.task_id)
        if held is None:
            return TaskResult(message.request_id, task, None, 0, 0, self.specs[task.task_id].out_digest)
        raw, offset, length = held
        inline = raw if len(raw) < INLINE_BYTES else None
        body = Body(_sha(raw), len(raw), inline)
        return TaskResult(message.request_id, task, body, offset, length, self.specs[task.task_id].out_digest)

    def _named(self, message: Cancel | Retry) -> list[int]:
        return [
            task.task_id
            for task in self.tasks.values()
            if task.task_id in message.task_ids or (message.batch_id and task.batch_id == message.batch_id)
        ]

    def _missing(self, task_ids: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(task_id for task_id in task_ids if task_id not in self.tasks)

    def _cancel(self, task_id: int) -> Change:
        state = self.tasks[task_id].state
        if state.is_terminal:
            return Change(task_id, state, False, f"had {state} before")
        self._change(task_id, state=TaskState.CANCELLED, finished_ms=NOW_MS)
        return Change(task_id, TaskState.CANCELLED, True, "")

    def _retry(self, task_id: int) -> Change:
        state = self.tasks[task_id].state
        if not state.is_terminal:
            return Change(task_id, state, False, f"is {state}")
        self._change(task_id, state=TaskState.QUEUED, error_class=None, finished_ms=0)
        return Change(task_id, TaskState.QUEUED, True, "")

    def _change(self, task_id: int, **changes: object) -> None:
        with self._lock:
            task = dataclasses.replace(self.tasks[task_id], **changes)  # type: ignore[arg-type] # checked by its users
            self.tasks[task_id] = task
            for (receiver, request_id), watched in self._watches.items():
                if task_id in watched:
                    self._say(receiver, TaskChanged(request_id, self._mark(task_id)))

    def _mark(self, task_id: int) -> TaskMark:
        task = self.tasks[task_id]
        return TaskMark(task_id, task.state, task.worker_id, task.attempts)


def a_view(task_id: int = 142, **changes: object) -> TaskView:
    """A queued task as a client sees it."""
    fields: dict[str, object] = {
        "task_id": task_id,
        "batch_id": 0,
        "batch_index": 0,
        "custom_id": "",
        "principal": "mika",
        "state": TaskState.QUEUED,
        "priority": 5,
        "task_type": "general",
        "model": "",
        "target": "",
        "out_path": "",
        "worker_id": "",
        "attempts": 0,
        "error_class": None,
        "error_message": "",
        "submitted_ms": NOW_MS,
        "started_ms": 0,
        "finished_ms": 0,
        "not_before_ms": 0,
        "prompt_tokens": 0,
        "thinking_tokens": 0,
        "output_tokens": 0,
        "flags": (),
        "waiting_for": "",
        "output_bytes": 0,
    }
    return TaskView(**{**fields, **changes})  # type: ignore[arg-type] # checked by its users


@contextmanager
def a_workshop(root: Path) -> Iterator[FakeWorkshop]:
    """A workshop whose home is at `root`."""
    workshop = FakeWorkshop(Home(root))
    try:
        yield workshop
    finally:
        workshop.close()


def _sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
