"""Which worker gets a task: eligible, available, the first rule that applies, the best score. Pure."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from koubou_broker.core_settings import LOCAL, REMOTE, CoreSettings
from koubou_broker.queue import Need
from koubou_broker.records import NewTask
from koubou_broker.workers import RELEASING, LiveWorker
from koubou_common.messages.values import Candidate, Label, WorkerMode
from koubou_common.models import normal_model

FACTOR_WEIGHT = 100.0
IDLE_BONUS = 50.0
BUSY_MALUS = 30.0
SUCCESS_WEIGHT = 30.0
CAPABILITY_BONUS = 20.0

BYTES_PER_TOKEN_MOST = 16.0  # real text reaches 10: beyond this a prompt surely does not fit
BYTES_PER_TOKEN_USUAL = 3.5  # for the estimate people are shown where nothing is measured
MEASURED_MARGIN = 2.0  # a measured ratio is an average over other texts
ANSWER_TOKENS_LEAST = 256  # of the window, kept for the answer
# What reaches the model beside prompt and files: gemini-repo-cli's headings and instructions (some 860 bytes)
# and the gateway's system text (some 300). Small prompts are mostly that.
_FRAME_BYTES = 1_150
_FRAME_BYTES_A_FILE = 40  # its heading and fences; the name, printed once, comes on top
_PLACEMENT_NAMES = 8  # the winner and the next seven
_FITS_KEPT = 1_000  # remembered combinations of what tasks ask for


@dataclass(frozen=True, slots=True)
class _Fit:
    """For one combination of what tasks ask for: who never fits, and how many bytes fit the others."""

    unfit: frozenset[str]
    room_bytes: tuple[tuple[str, float], ...]


class TaskRouter:
    """Decides by the state of the workers it is given; keeps nothing but what it computed before."""

    def __init__(self, settings: CoreSettings, workers: Mapping[str, LiveWorker]) -> None:
        self._settings = settings
        self._workers = workers
        self._bytes_per_token: dict[str, float] = {}
        self._fits: dict[tuple[object, ...], _Fit] = {}
        self._capabilities: frozenset[str] = frozenset()
        self.workers_changed()

    def workers_changed(self) -> None:
        """Forget what was computed for another set of workers."""
        self._fits.clear()
        self._capabilities = frozenset(
            word for worker in self._workers.values() for word in worker.settings.capabilities
        )

    def measured(self, model: str, bytes_per_token: float) -> None:
        """Take over a measured ratio."""
        model = normal_model(model)
        before = self._bytes_per_token.get(model, 0.0)
        if abs(before - bytes_per_token) > 0.05 * before:
            self._bytes_per_token[model] = bytes_per_token
            self._fits.clear()

    def bytes_per_token(self, model: str) -> float:
        """What was measured for this model; 0: nothing."""
        return self._bytes_per_token.get(normal_model(model), 0.0) if model else 0.0

    def estimate_tokens(self, model: str, size_bytes: int) -> int:
        """About how many tokens this is, for people."""
        return round(size_bytes / (self.bytes_per_token(model) or BYTES_PER_TOKEN_USUAL))

    def rule_of(self, priority: int) -> int:
        """Index of the first rule whose range holds the priority; -1: none."""
        for index, rule in enumerate(self._settings.rules):
            if rule.lowest <= priority <= rule.highest:
                return index
        return -1

    def rule_text(self, rule: int) -> str:
        """A rule in words."""
        if rule < 0:
            return "no rule: all workers"
        chosen = self._settings.rules[rule]
        who = ", ".join(chosen.preferred_workers) or "all"
        return f"priority {chosen.lowest}-{chosen.highest}: {who}{f' ({chosen.reason})' if chosen.reason else ''}"

    def overflow_after_s(self, rule: int) -> float:
        """How long a task of this rule waits for a preferred worker."""
        return (self._settings.rules[rule].overflow_after_s or 0.0) if rule >= 0 else 0.0

    def need_of(self, spec: NewTask, excluded: Collection[str], avoid: str) -> Need:
        """The bucket of a task."""
        model = spec.model
        fit = self._fit(model, spec.worker, spec.labels, spec.min_context)
        size = model_bytes_of(spec)
        cramped = [worker_id for worker_id, room in fit.room_bytes if room < size]
        unfit = fit.unfit.union(cramped, excluded) if cramped or excluded else fit.unfit
        return Need(
            model=model,
            rule=self.rule_of(spec.priority),
            task_type=spec.task_type if spec.task_type in self._capabilities else "",
            avoid=avoid,
            unfit=unfit,
        )

    def could_run(self, need: Need) -> list[LiveWorker]:
        """Known workers, also those away, that might run this one day."""
        return [
            worker
            for worker_id, worker in self._workers.items()
            if worker_id not in need.unfit and worker.may_have_model(need.model)
        ]

    def place(self, need: Need, now_s: float, waited_s: float) -> LiveWorker | None:
        """The worker that gets it now, if one is available and the rule does not say to wait."""
        # Slots first, as under load most workers have none: the rest is asked of few.
        free = [worker for worker in self._workers.values() if worker.free]
        available = [worker for worker in free if not self.obstacle(need, worker, now_s)]
        if need.avoid and available and self._has_others(need, now_s):
            # Better to wait for another one than to fail on the same box again.
            available = [worker for worker in available if worker.worker_id != need.avoid]
        best = min(available, key=lambda worker: self._order(need, worker), default=None)
        if best is None:
            return None
        is_preferred = self._group(need, best) < len(self._preferred(need))
        return best if is_preferred or waited_s >= self.overflow_after_s(need.rule) else None

    def obstacle(self, need: Need, worker: LiveWorker, now_s: float) -> str:
        """Why the worker is not eligible; empty: it is."""
        if worker.worker_id in need.unfit:
            return "cannot run it"
        if not worker.session:
            return "not connected"
        if not worker.is_alive(now_s, self._settings):
            return "stopped answering"
        if worker.mode is not WorkerMode.ACTIVE:
            return str(worker.mode)
        if not worker.health.can_work:
            return worker.health.issue or "cannot work"
        if worker.is_cooling(now_s):
            return "cooling down after failures"
        if not worker.has_model(need.model):
            return f"has no model {need.model}" if need.model else "has no default model"
        return ""

    def misfit(self, spec: NewTask, excluded: Collection[str], worker: LiveWorker) -> str:
        """Why the worker can never run the task, in words; empty: it might."""
        if spec.worker and spec.worker != worker.worker_id:
            return f"worker {spec.worker} was asked for"
        for label in spec.labels:
            if label not in worker.settings.labels:
                return f"has no label {label.key}={label.value}"
        model = spec.model
        if not worker.lists_model(model):
            return f"has no model {model}" if model else "has no default model"
        if worker.num_ctx < spec.min_context:
            return f"its window of {worker.num_ctx} tokens is below --min-context {spec.min_context}"
        if self._room_bytes(model, worker) < model_bytes_of(spec):
            return f"the prompt cannot fit its window of {worker.num_ctx} tokens"
        if worker.worker_id in excluded:
            return "failed on this task in a way that would repeat"
        return ""

    def weigh(self, spec: NewTask, excluded: Collection[str], avoid: str, now_s: float) -> list[Candidate]:
        """Every known worker with its score, or why not; first who would get the task now, then who next."""
        need = self.need_of(spec, excluded, avoid)
        weighed = [self._weighed(spec, excluded, need, worker, now_s) for worker in self._workers.values()]

        def place(one: Candidate) -> tuple[object, ...]:
            worker = self._workers[one.worker_id]
            order = (self._group(need, worker), -one.score, worker.idle_since_s, one.worker_id)
            return not one.available, not one.eligible, one.worker_id == need.avoid, order

        return sorted(weighed, key=place)

    def placement(self, spec: NewTask, excluded: Collection[str], avoid: str, winner: LiveWorker, now_s: float) -> str:
        """The decision in words: the winner, the next, how many were out for which reason."""
        candidates = self.weigh(spec, excluded, avoid, now_s)
        able = [one for one in candidates if one.available and one.worker_id != winner.worker_id]
        need = self.need_of(spec, excluded, avoid)
        names = [f"{winner.worker_id} {self._score(need, winner):.0f}"]
        names += [f"{one.worker_id} {one.score:.0f}" for one in able[: _PLACEMENT_NAMES - 1]]
        text = f"{self.rule_text(need.rule)}; {' > '.join(names)}"
        reasons = Counter(one.reason for one in candidates if not one.available)
        if reasons:
            text += f"; not: {', '.join(f'{count} {reason}' for reason, count in reasons.most_common(7))}"
        return text[:2_000]

    def _fit(self, model: str, asked: str, labels: tuple[Label, ...], min_context: int) -> _Fit:
        key = (model, asked, labels, min_context)
        fit = self._fits.get(key)
        if fit is not None:
            return fit
        unfit: list[str] = []
        room: list[tuple[str, float]] = []
        for worker_id, worker in self._workers.items():
            if (
                asked in ("", worker_id)
                and all(label in worker.settings.labels for label in labels)
                and worker.lists_model(model)
                and worker.num_ctx >= min_context
            ):
                room.append((worker_id, self._room_bytes(model, worker)))
            else:
                unfit.append(worker_id)
        if len(self._fits) >= _FITS_KEPT:
            self._fits.clear()
        fit = self._fits[key] = _Fit(frozenset(unfit), tuple(room))
        return fit

    def fewest_tokens(self, model: str, spec: NewTask, worker: LiveWorker) -> int:
        """What the task's text takes at the very least on this worker."""
        return round(model_bytes_of(spec) / self._most_bytes_a_token(model, worker))

    def _room_bytes(self, model: str, worker: LiveWorker) -> float:
        return (worker.num_ctx - ANSWER_TOKENS_LEAST) * self._most_bytes_a_token(model, worker)

    def _most_bytes_a_token(self, model: str, worker: LiveWorker) -> float:
        measured = self.bytes_per_token(worker.model_for(model))
        return min(BYTES_PER_TOKEN_MOST, measured * MEASURED_MARGIN) if measured else BYTES_PER_TOKEN_MOST

    def _has_others(self, need: Need, now_s: float) -> bool:
        """Whether anybody but the worker to be avoided is eligible, busy or not."""
        return any(
            worker.worker_id != need.avoid and not self.obstacle(need, worker, now_s)
            for worker in self._workers.values()
        )

    def _is_in(self, word: str, worker: LiveWorker) -> bool:
        if word == LOCAL:
            return worker.settings.location == LOCAL
        if word == REMOTE:
            return worker.settings.location != LOCAL
        return worker.worker_id == word or word not in self._workers

    def _preferred(self, need: Need) -> tuple[str, ...]:
        return self._settings.rules[need.rule].preferred_workers if need.rule >= 0 else ()

    def _group(self, need: Need, worker: LiveWorker) -> int:
        """Which of the rule's preferred groups the worker is in; their number: in none."""
        words = self._preferred(need)
        return next((nth for nth, word in enumerate(words) if self._is_in(word, worker)), len(words))

    def _order(self, need: Need, worker: LiveWorker) -> tuple[int, float, float, str]:
        """The smallest gets the task: by the rule's groups first, then by score; ties go to the longest idle."""
        return self._group(need, worker), -self._score(need, worker), worker.idle_since_s, worker.worker_id

    def _score(self, need: Need, worker: LiveWorker) -> float:
        score = worker.settings.performance_factor * FACTOR_WEIGHT + worker.success_rate * SUCCESS_WEIGHT
        score += -BUSY_MALUS if worker.in_use else IDLE_BONUS
        if need.task_type and need.task_type in worker.settings.capabilities:
            score += CAPABILITY_BONUS
        return score

    def _weighed(
        self, spec: NewTask, excluded: Collection[str], need: Need, worker: LiveWorker, now_s: float
    ) -> Candidate:
        reason = self.misfit(spec, excluded, worker) or self.obstacle(need, worker, now_s)
        eligible = not reason
        if eligible and not worker.free:
            busy = f"busy: {worker.in_use} of {worker.slots} slots in use"
            reason = RELEASING if worker.is_releasing else busy
        score = self._score(need, worker) if eligible else 0.0
        return Candidate(worker.worker_id, eligible, eligible and not reason, score, reason[:2_000])


def size_bytes_of(spec: NewTask) -> int:
    """Bytes of prompt and files together."""
    return spec.prompt.size_bytes + sum(file.body.size_bytes for file in spec.files)


def model_bytes_of(spec: NewTask) -> int:
    """About how many bytes the model reads: prompt and files in their frame."""
    return _FRAME_BYTES + size_bytes_of(spec) + sum(_FRAME_BYTES_A_FILE + len(file.name) for file in spec.files)


def largest_window(workers: Sequence[LiveWorker]) -> LiveWorker | None:
    """The worker with the largest window."""
    return max(workers, key=lambda worker: worker.num_ctx, default=None)
