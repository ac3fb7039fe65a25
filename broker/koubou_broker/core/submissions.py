"""Submissions: staged part by part, checked, accepted all or none, the same under a repeated key."""

from dataclasses import dataclass, replace

from koubou_broker.core.cache import ResultCache
from koubou_broker.core.checks import check_spec, new_task
from koubou_broker.core.lifecycle import Lifecycle
from koubou_broker.core.plans import plans_of
from koubou_broker.core.quotas import check_quota
from koubou_broker.core.same_version import with_versions
from koubou_broker.core.state import Answered, Refusal, Session, Staged, State
from koubou_broker.effects import FindSubmission, Found
from koubou_broker.idempotency import submission_digest, submission_hash
from koubou_broker.records import NewTask, Submission
from koubou_broker.task import Task
from koubou_common.errors import Code
from koubou_common.messages import PartStaged, Preview, Submit, Submitted
from koubou_common.messages.values import TaskRef, TaskSpec

_ANSWERS_KEPT = 32  # to submissions in parts, a session: their last message may be repeated
STAGED_IDLE_S = 60.0  # without a further part a half sent submission gives its place up when another needs it
_STAGED_RETRY_S = 1.0  # half sent submissions become whole ones, or are given up with their session


@dataclass(frozen=True, slots=True)
class _Wish:
    """A submission whole."""

    session: int
    request_id: str
    key: str
    specs: tuple[TaskSpec, ...]
    as_batch: bool
    digest: bytes
    part_digests: tuple[bytes, ...]  # empty: it came in one message
    refused: tuple[str, float] | None  # when it came: its bodies were not kept then


class Submissions:
    """Takes submissions in; nothing of one is accepted before all of it is."""

    def __init__(self, state: State, lifecycle: Lifecycle, cache: ResultCache) -> None:
        self._state = state
        self._lifecycle = lifecycle
        self._cache = cache
        #: submissions that wait for the same look-up, by (principal, key)
        self._asked: dict[tuple[str, str], list[_Wish]] = {}

    def submit(self, session: Session, message: Submit) -> None:
        """One message of a submission."""
        if message.dry_run:
            plans = plans_of(self._state, session.name, message)
            self._state.send(session.session, Preview(message.request_id, plans))
            return
        if not message.tasks:
            raise Refusal(Code.BAD_INPUT, "a submission without tasks")
        if message.parts <= 1:
            self._whole(session, message, message.tasks)
            return
        if not self._is_repeated(session, message):
            self._stage(session, message)

    def _is_repeated(self, session: Session, message: Submit) -> bool:
        """Whether this part of an accepted submission was answered again: staged once more, it would stay so."""
        known = session.answered.get(message.idempotency_key)
        if known is None or len(known.part_digests) != message.parts or message.part >= message.parts:
            return False
        if message.idempotency_key in session.staged:
            return False  # other parts came meanwhile: all of it decides whether it is the same submission
        if known.part_digests[message.part] != submission_digest(message.tasks, as_batch=message.as_batch):
            return False
        if message.part == message.parts - 1:
            self._state.send(session.session, replace(known.submitted, request_id=message.request_id))
        else:
            self._state.send(session.session, PartStaged(message.request_id, message.part))
        return True

    def _stage(self, session: Session, message: Submit) -> None:
        limits = self._state.settings.limits
        if message.part >= message.parts:
            text = f"part {message.part} of {message.parts}: parts count from 0"
            raise Refusal(Code.BAD_INPUT, text)
        key = message.idempotency_key
        staged = session.staged.get(key)
        if staged is None or staged.parts != message.parts or staged.as_batch != message.as_batch:
            if staged is None:
                self._drop_idle(session)
            if staged is None and len(session.staged) >= limits.staged_per_session:
                text = f"{len(session.staged)} submissions are half sent, the limit staged_per_session"
                raise Refusal(Code.BUSY, text, retry_after_s=_STAGED_RETRY_S)
            staged = session.staged[key] = Staged(message.parts, message.as_batch, self._state.now.mono_s)
        others = sum(len(specs) for part, specs in staged.specs.items() if part != message.part)
        if others + len(message.tasks) > limits.batch_tasks:
            del session.staged[key]
            raise _too_many(others + len(message.tasks), limits.batch_tasks)
        self._check_staged(session, message.tasks)
        staged.specs[message.part] = message.tasks
        staged.touched_s = self._state.now.mono_s
        if message.part < message.parts - 1:
            self._state.send(session.session, PartStaged(message.request_id, message.part))
            return
        missing = next((part for part in range(message.parts) if part not in staged.specs), None)
        if missing is not None:
            text = f"part {missing} of this submission is not here (the broker or the connection was restarted)"
            raise Refusal(Code.BUSY, text, "send all parts again, from the first")
        del session.staged[key]
        parts = [staged.specs[part] for part in range(message.parts)]
        digests = tuple(submission_digest(part, as_batch=message.as_batch) for part in parts)
        self._whole(session, message, tuple(spec for part in parts for spec in part), digests)

    def _drop_idle(self, session: Session) -> None:
        """Make room: a late copy of a first part, or a sender that gave up, must not hold a place for ever."""
        since_s = self._state.now.mono_s - STAGED_IDLE_S
        for key in [key for key, staged in session.staged.items() if staged.touched_s < since_s]:
            del session.staged[key]

    def _check_staged(self, session: Session, more: tuple[TaskSpec, ...]) -> None:
        """Raise a Refusal where a principal would have more half sent, over all its sessions, than memory is for."""
        most = self._state.settings.limits.staged_per_client
        have = sum(
            _places(specs)
            for one in self._state.sessions.values()
            if one.name == session.name
            for staged in one.staged.values()
            for specs in staged.specs.values()
        )
        if have and have + _places(more) > most:
            text = f"{have:,} tasks and files of yours are half sent; the limit staged_per_client is {most:,}"
            raise Refusal(Code.BUSY, text, retry_after_s=_STAGED_RETRY_S)

    def _whole(
        self, session: Session, message: Submit, specs: tuple[TaskSpec, ...], part_digests: tuple[bytes, ...] = ()
    ) -> None:
        state = self._state
        if len(specs) > state.settings.limits.batch_tasks:
            raise _too_many(len(specs), state.settings.limits.batch_tasks)
        as_batch = message.as_batch or len(specs) > 1
        digest = submission_digest(specs, as_batch=as_batch)
        key = message.idempotency_key
        wish = _Wish(session.session, message.request_id, key, specs, as_batch, digest, part_digests, state.refused)
        if submission_hash(session.name, key) not in state.submission_hashes:
            self._accept(session.name, wish)
            return
        waiting = self._asked.get((session.name, key))
        if waiting is not None:
            waiting.append(wish)
            return
        principal = session.name

        def then(found: Found) -> None:
            self._found(principal, key, found)

        def failed(refusal: Refusal) -> None:
            for one in self._asked.pop((principal, key), ()):
                state.refuse(one.session, one.request_id, refusal)

        state.lookup(session.session, FindSubmission(principal, key), then, message.request_id, failed=failed)
        self._asked[principal, key] = [wish]

    def _found(self, principal: str, key: str, found: Found) -> None:
        submission = found.submission
        states = {row.task.task_id: self._state.truth(row).state for row in found.tasks}
        for wish in self._asked.pop((principal, key), ()):
            if wish.session not in self._state.sessions:
                continue
            try:
                if submission is None:
                    # Another key has the same hash. Who waits beside us has the same key.
                    submission = self._accept(principal, wish)
                    ids = range(submission.first_task_id, submission.first_task_id + submission.count)
                    states = {task_id: self._state.tasks[task_id].state for task_id in ids}
                elif submission.digest != wish.digest:
                    raise Refusal(
                        Code.CONFLICT,
                        f"the idempotency key {key!r} was used for another submission"
                        f" (task {submission.first_task_id})",
                        "use a new key for a new submission",
                    )
                else:
                    first = submission.first_task_id
                    refs = tuple(
                        TaskRef(task_id, states[task_id], existing=True)
                        for task_id in range(first, first + submission.count)
                        if task_id in states  # retention may have taken some
                    )
                    self._answer(wish, Submitted(wish.request_id, submission.batch_id, refs))
            except Refusal as refusal:
                self._state.refuse(wish.session, wish.request_id, refusal)

    def _accept(self, principal: str, wish: _Wish) -> Submission:
        state = self._state
        refused = state.refused or wish.refused
        if refused is not None:
            reason, retry_after_s = refused
            raise Refusal(Code.STORE_FULL, reason, "nothing was accepted; try again later", retry_after_s)
        check_quota(state, principal, wish.specs)
        tasks = self._checked(principal, wish.specs)
        batch_id = 0
        if wish.as_batch:
            batch_id = state.next_batch_id
            state.next_batch_id += 1
        first = state.next_task_id
        state.next_task_id += len(tasks)
        submission = Submission(principal, wish.key, wish.digest, batch_id, first, len(tasks), state.now.wall_ms)
        state.submission_hashes.add(submission_hash(principal, wish.key))
        state.save(submission)
        asks_cache = self._cache.is_asked_for(wish.session, tasks)
        asked: list[tuple[Task, tuple[bytes, ...]]] = []
        for index, task in enumerate(tasks):
            spec = replace(
                task,
                task_id=first + index,
                batch_id=batch_id,
                batch_index=index + 1 if batch_id else 0,
                idempotency_key=wish.key if index == 0 else "",
            )
            keys = self._cache.keys_of(spec) if asks_cache else ()
            admitted = Task(spec, asks_cache=bool(keys))
            self._lifecycle.admit(admitted, principal)
            if keys:
                asked.append((admitted, keys))
        refs = tuple(
            TaskRef(task_id, state.tasks[task_id].state, existing=False) for task_id in range(first, first + len(tasks))
        )
        self._answer(wish, Submitted(wish.request_id, batch_id, refs))
        if asked:
            self._cache.ask(wish.session, asked)
        return submission

    def _answer(self, wish: _Wish, submitted: Submitted) -> None:
        self._state.send(wish.session, submitted)
        session = self._state.sessions.get(wish.session)
        if wish.part_digests and session is not None:
            if len(session.answered) >= _ANSWERS_KEPT:
                del session.answered[next(iter(session.answered))]
            session.answered[wish.key] = Answered(submitted, wish.part_digests)

    def _checked(self, principal: str, specs: tuple[TaskSpec, ...]) -> list[NewTask]:
        tasks: list[NewTask] = []
        for index, spec in enumerate(specs):
            task = new_task(self._state, spec, principal)
            try:
                check_spec(self._state, spec, task)
            except Refusal as refusal:
                if len(specs) == 1:
                    raise
                which = f"task {index + 1} of {len(specs)}{f' ({spec.custom_id})' if spec.custom_id else ''}"
                text = f"{which}: {refusal.message}; none was accepted"
                raise Refusal(refusal.code, text, refusal.hint, refusal.retry_after_s) from refusal
            tasks.append(task)
        return with_versions(self._state, tasks, [spec.same_digest for spec in specs])


def _places(specs: tuple[TaskSpec, ...]) -> int:
    return sum(1 + len(spec.files) for spec in specs)


def _too_many(tasks: int, most: int) -> Refusal:
    text = f"{tasks:,} tasks in one submission; the limit batch_tasks is {most:,}"
    return Refusal(Code.TOO_LARGE, text, "submit several batches")
