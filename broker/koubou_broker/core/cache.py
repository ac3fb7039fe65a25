"""The result cache: an answer that was given before, to the same principal's same question, is given again."""

from collections.abc import Iterable, Sequence

from koubou_broker.cache_keys import Answerer, answer_key
from koubou_broker.core.lifecycle import Lifecycle
from koubou_broker.core.state import Refusal, State
from koubou_broker.effects import FindCached, Found, StoredTask
from koubou_broker.records import CachedResult, NewTask
from koubou_broker.routing.workers import LiveWorker
from koubou_broker.task import LiveAttempt, Task
from koubou_common.messages import Result
from koubou_common.models import normal_model

# Of the time answers are kept, so much is used: one about to be forgotten must not go while it is handed over.
_USED_PART = 0.99
_DAY_MS = 86_400_000


class ResultCache:
    """Asks the store for earlier answers, and says which new ones are worth keeping. Off: does neither."""

    def __init__(self, state: State, lifecycle: Lifecycle) -> None:
        self._state = state
        self._lifecycle = lifecycle

    def is_asked_for(self, session: int, specs: Iterable[NewTask]) -> bool:
        """Whether a look-up for these tasks makes sense and may be made now; a busy session goes without."""
        return (
            self._state.settings.cache_days > 0
            and any(spec.use_cache for spec in specs)
            and self._state.may_look_up(session)
        )

    def keys_of(self, spec: NewTask) -> tuple[bytes, ...]:
        """Under which keys an answer to this task may have been kept, by the workers that could run it."""
        if not spec.use_cache:
            return ()
        state = self._state
        unfit = state.router.fitting.unfit(spec, ())
        # Many boxes are alike: each kind is hashed once.
        kinds = dict.fromkeys(
            _answerer(worker, worker.model_for(spec.model), worker.digest_of(spec.model))
            for worker in state.workers.values()
            if worker.worker_id not in unfit
        )
        keys = (answer_key(spec, kind) for kind in kinds if spec.digest in ("", kind.digest))
        return tuple(key for key in keys if key is not None)

    def ask(self, session: int, wanted: Sequence[tuple[Task, tuple[bytes, ...]]]) -> None:
        """Look for answers to these tasks, admitted and not yet ready: each ends with one, or becomes ready.

        A start of the broker in between makes them ready without (see Lifecycle.restore).
        """
        state = self._state
        keys = tuple(dict.fromkeys(key for _, some in wanted for key in some))
        since_ms = state.now.wall_ms - round(state.settings.cache_days * _USED_PART * _DAY_MS)

        def then(found: Found) -> None:
            earlier = {one.key: one.stored for one in found.cached}
            for task, some in wanted:
                self._answer(task, [earlier[key] for key in some if key in earlier])

        def failed(refusal: Refusal) -> None:
            del refusal  # the cache may be without an answer at any time: nobody needs to hear why
            for task, _ in wanted:
                self._answer(task, [])

        state.lookup(session, FindCached(keys, since_ms), then, failed=failed)

    def remember(self, attempt: LiveAttempt, worker: LiveWorker, message: Result) -> None:
        """Keep which question this success answers; to be called in the step that records it."""
        state = self._state
        if state.settings.cache_days <= 0:
            return
        record = attempt.record
        if record.started_ms < state.started.wall_ms or record.boot_id != worker.boot_id:
            return  # begun under other settings or by another version of the agent, perhaps
        key = answer_key(attempt.task.spec, _answerer(worker, message.model, message.model_digest))
        if key is not None:
            state.save(CachedResult(key, attempt.task.task_id, state.now.wall_ms))

    def _answer(self, task: Task, earlier: Sequence[StoredTask]) -> None:
        state = self._state
        if state.tasks.get(task.task_id) is not task:
            return  # it ended meanwhile, by a cancel or its deadline; what was opened again since is another one
        for row in sorted(earlier, key=lambda one: (-one.progress.finished_ms, -one.task.task_id)):
            source = state.truth(row)
            # A retry, or somebody who removes its texts, may have been quicker than the rows.
            if source.finished_ms == row.progress.finished_ms and not state.is_going(source.task_id):
                self._lifecycle.answered_from_cache(task, source)
                return
        self._lifecycle.make_ready(task)


def _answerer(worker: LiveWorker, model: str, digest: str) -> Answerer:
    settings = worker.settings
    return Answerer(
        model=normal_model(model) if model else "",
        digest=digest,
        options=(*settings.options, *worker.models.options(model)),
        thinking_allowance=settings.thinking_allowance,
        software=worker.software,
        ollama_version=worker.health.ollama_version,
    )
