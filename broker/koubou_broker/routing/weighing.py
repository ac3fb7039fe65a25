"""Each worker weighed for a task: why not, or how it stands and when it would have it done. Pure."""

import math
from collections.abc import Iterable, Mapping, Sequence

from koubou_broker.core_settings import LOCAL, REMOTE, CoreSettings
from koubou_broker.routing.fitting import Fitting
from koubou_broker.routing.performance import Performance
from koubou_broker.routing.queue import Need
from koubou_broker.routing.roster import obstacle_of, room_of
from koubou_broker.routing.score import standing_of, times_of
from koubou_broker.routing.strategies import Choice, first_of_all
from koubou_broker.routing.versions import differs_text
from koubou_broker.routing.workers import LiveWorker
from koubou_common.messages.values import Candidate
from koubou_common.reasons import Reason

# One answer may well be so much longer than the mean, a sum of many is not: a slow box that is still at one when all
# others are done costs more than one that stood idle meanwhile. Decision 22 has what was measured.
ANSWERS_VARY = 2.0
_SPEED_LASTS_S = 1.0  # the sum of all speeds is looked up for most decisions and changes slowly
_SENTENCE_CHARS = 2_000


class Scales:
    """Weighs the workers it is given; changes none of them."""

    def __init__(
        self,
        settings: CoreSettings,
        workers: Mapping[str, LiveWorker],
        fitting: Fitting,
        performance: Performance,
    ) -> None:
        self._settings = settings
        self._workers = workers
        self._fitting = fitting
        self._performance = performance
        self._speed = 0.0
        self._speed_at_s = -math.inf

    def workers_changed(self) -> None:
        """Forget what was computed for another set of workers."""
        self._speed_at_s = -math.inf

    def preferred(self, need: Need) -> tuple[str, ...]:
        """The groups that the task's rule prefers, in order."""
        return self._settings.rules[need.rule].preferred_workers if need.rule >= 0 else ()

    def group(self, need: Need, worker: LiveWorker) -> int:
        """Which of the rule's preferred groups the worker is in; their number: in none."""
        words = self.preferred(need)
        return next((nth for nth, word in enumerate(words) if self._is_in(word, worker)), len(words))

    def obstacle(self, need: Need, worker: LiveWorker, now_s: float) -> Reason | None:
        """Why the worker is not eligible; None: it is. Of those who never will be, `misfit` knows the very reason."""
        if worker.worker_id in need.unfit:
            return Reason.EXCLUDED if worker.lists_model(need.model) else Reason.MODEL_NOT_LISTED
        reason = obstacle_of(worker, self._settings, now_s)
        if reason is not None:
            return reason
        if not worker.has_model(need.model):
            return Reason.MODEL_ABSENT if worker.lists_model(need.model) else Reason.MODEL_NOT_LISTED
        if need.digest and worker.digest_of(need.model) != need.digest:
            return Reason.DIGEST_DIFFERS
        return None

    def no_room(self, worker: LiveWorker) -> Reason | None:
        """Why an eligible worker is not available; None: it is."""
        return room_of(worker)

    def in_words(self, need: Need, worker: LiveWorker, reason: Reason) -> str:
        """The reason with what is known of this worker."""
        if reason is Reason.CANNOT_WORK:
            return worker.health.issue or reason.text
        if reason is Reason.MODEL_NOT_LISTED:
            return f"has no model {need.model}" if need.model else "has no default model"
        if reason is Reason.MODEL_ABSENT:
            return f"its Ollama does not have {worker.model_for(need.model)} now"
        if reason is Reason.BUSY:
            busy = f"busy: {worker.in_use} of {worker.slots} slots in use"
            return f"{busy}; no more until one succeeds" if worker.is_doubted else busy
        if reason is Reason.DIGEST_DIFFERS:
            return differs_text(worker, need.model, need.digest)
        if reason is Reason.FOREIGN_LOAD:
            return f"{reason.text} ({worker.foreign.text})"
        return reason.text

    def choice(self, need: Need, worker: LiveWorker) -> Choice:
        """An available worker, and what is expected of it."""
        model = worker.model_for(need.model)
        tokens = self._fitting.estimate_tokens(model, need.prompt_bytes)
        shared = self._fitting.estimate_tokens(model, need.prefix_bytes) if need.prefix else 0
        times = times_of(need, worker, self._performance, tokens, shared)
        is_doubtful = worker.worker_id in need.doubtful
        return Choice(
            worker=worker,
            group=self.group(need, worker),
            is_doubtful=is_doubtful,
            standing=standing_of(need, worker, self._performance, times),
            times=times,
            window=worker.num_ctx_for(need.model) if is_doubtful else 0,
        )

    def otherwise_s(
        self, need: Need, choices: Sequence[Choice], busy: Iterable[LiveWorker], work_s: float, now_s: float
    ) -> float | None:
        """In how many seconds the workers that are busy now would surely have the task done, without `choices`.

        `busy`: those that are eligible for it. `work_s`: seconds of work, at factor 1.0, that goes no later than this
        task, itself included. They would not be done before all of that is, nor before one of them has come free and
        has run this task. None: nobody is busy whom a task that waits would not be kept from by `choices`.
        """
        fluid_s = work_s / (ANSWERS_VARY * self._whole_speed(now_s)) if work_s else 0.0
        if fluid_s >= max(choice.finish_s for choice in choices):
            return fluid_s  # even with every box at work on it: no need to ask which of them may
        # Who comes after those who are free by the rule, or may not fit it, would not get it when free either.
        first = min(first_of_all(choice) for choice in choices)
        soonest_s, speed, running_s = math.inf, 0.0, 0.0
        for worker in busy:
            there = self.choice(need, worker)
            if first_of_all(there) > first:
                continue
            there_s = there.finish_s
            left_s = worker.left_s(now_s, there_s)
            factor = self._performance.factor(worker) * worker.speed_share
            speed += factor * (worker.slots - worker.held_back)
            running_s += factor * sum(left_s)
            soonest_s = min(soonest_s, min(left_s) + there_s)
        return None if math.isinf(soonest_s) else max(soonest_s, (work_s + running_s) / (ANSWERS_VARY * speed))

    def candidate(self, choice: Choice, need: Need, reason: Reason | None = None) -> Candidate:
        """An eligible worker in public; `reason`: why it is not available."""
        return Candidate(
            worker_id=choice.worker.worker_id,
            eligible=True,
            available=reason is None,
            score=choice.standing.score,
            reason="" if reason is None else self.in_words(need, choice.worker, reason)[:_SENTENCE_CHARS],
            code=reason,
            parts=choice.standing.parts(),
            group=choice.group,
            finish_s=round(choice.finish_s, 1),
        )

    def rejected(self, need: Need, worker: LiveWorker, reason: Reason, text: str = "") -> Candidate:
        """A worker that is not eligible, in public; `text`: the reason with its details."""
        said = (text or self.in_words(need, worker, reason))[:_SENTENCE_CHARS]
        return Candidate(worker.worker_id, eligible=False, available=False, score=0.0, reason=said, code=reason)

    def _is_in(self, word: str, worker: LiveWorker) -> bool:
        if word == LOCAL:
            return worker.settings.location == LOCAL
        if word == REMOTE:
            return worker.settings.location != LOCAL
        return worker.worker_id == word or word not in self._workers

    def _whole_speed(self, now_s: float) -> float:
        if now_s - self._speed_at_s >= _SPEED_LASTS_S:
            self._speed = sum(self._performance.factor(one) * one.slots for one in self._workers.values())
            self._speed_at_s = now_s
        return self._speed or math.inf
