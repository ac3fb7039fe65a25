"""Whether a task fits a worker at all: labels, capabilities, models, windows. Pure."""

from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from koubou_broker.records import NewTask
from koubou_broker.routing.token_ratio import TokenRatios
from koubou_broker.routing.versions import differs_text
from koubou_broker.routing.workers import LiveWorker
from koubou_common.messages.values import Label
from koubou_common.reasons import Reason

ANSWER_TOKENS_LEAST = 256  # of the window, kept for the answer
# What reaches the model beside prompt and files: gemini-repo-cli's headings and instructions (some 860 bytes)
# and the gateway's system text (some 300). Small prompts are mostly that.
_FRAME_BYTES = 1_150
_FRAME_BYTES_A_FILE = 40  # its heading and fences; the name, printed once, comes on top
_FITS_KEPT = 1_000  # remembered combinations of what tasks ask for


@dataclass(frozen=True, slots=True)
class Misfit:
    """Why a worker can never run a task, as things are set up."""

    reason: Reason
    text: str  # the reason with what is known of task and worker


@dataclass(slots=True)
class _Rooms:
    """Who is too small for how many bytes: the smallest first, so that a task costs a look-up and no pass."""

    sizes: Sequence[float]
    worker_ids: Sequence[str]
    _below: dict[int, frozenset[str]] = field(default_factory=dict)

    def smaller_than(self, size_bytes: int) -> frozenset[str]:
        """Ids of the workers whose room is below that."""
        count = bisect_left(self.sizes, size_bytes)
        below = self._below.get(count)
        if below is None:
            below = self._below[count] = frozenset(self.worker_ids[:count])
        return below


@dataclass(frozen=True, slots=True)
class _Fit:
    """For one combination of what tasks ask for: who never fits, and how much fits the others."""

    unfit: frozenset[str]
    most: _Rooms  # beyond it surely does not fit
    sure: _Rooms  # up to it surely fits


class Fitting:
    """Remembers what fits whom until the workers or the measured ratios change."""

    def __init__(self, workers: Mapping[str, LiveWorker]) -> None:
        self._workers = workers
        self._ratios = TokenRatios()
        self._fits: dict[tuple[object, ...], _Fit] = {}
        self._joined: dict[tuple[frozenset[str], frozenset[str], tuple[str, ...]], frozenset[str]] = {}

    def workers_changed(self) -> None:
        """Forget what was computed for another set of workers."""
        self._fits.clear()
        self._joined.clear()

    def measured(self, model: str, bytes_per_token: float) -> None:
        """Take over a ratio measured before."""
        if self._ratios.take_over(model, bytes_per_token):
            self.workers_changed()

    def observed(self, model: str, spec: NewTask, prompt_tokens: int) -> None:
        """A task's prompt was counted."""
        if self._ratios.observe(model, model_bytes_of(spec), prompt_tokens):
            self.workers_changed()

    def bytes_per_token(self, model: str) -> float:
        """What was measured for this model; 0: nothing."""
        return self._ratios.bytes_per_token(model)

    def token_error(self, model: str) -> float:
        """Mean relative error of the estimates for this model so far; 0: nothing was measured yet."""
        return self._ratios.error(model)

    def estimate_tokens(self, model: str, size_bytes: int) -> int:
        """About how many tokens this is."""
        return round(size_bytes / self._ratios.usual(model))

    def unfit(self, spec: NewTask, excluded: Collection[str]) -> frozenset[str]:
        """Ids of the workers that can never run the task."""
        fit = self._fit_of(spec)
        cramped = fit.most.smaller_than(model_bytes_of(spec))
        if not cramped and not excluded:
            return fit.unfit
        key = (fit.unfit, cramped, tuple(excluded))
        joined = self._joined.get(key)
        if joined is None:
            if len(self._joined) >= _FITS_KEPT:
                self._joined.clear()
            joined = self._joined[key] = fit.unfit.union(cramped, excluded)
        return joined

    def doubtful(self, spec: NewTask) -> frozenset[str]:
        """Ids of the workers whose window may be too small by the estimate and its error, some of them `unfit`."""
        return self._fit_of(spec).sure.smaller_than(model_bytes_of(spec))

    def misfit(self, spec: NewTask, excluded: Collection[str], worker: LiveWorker) -> Misfit | None:
        """Why the worker can never run the task; None: it might."""
        if spec.worker and spec.worker != worker.worker_id:
            return Misfit(Reason.OTHER_WORKER, f"worker {spec.worker} was asked for")
        for label in spec.labels:
            if label not in worker.settings.labels:
                return Misfit(Reason.LABEL_MISSING, f"has no label {label.key}={label.value}")
        for word in spec.capabilities:
            if word not in worker.settings.capabilities:
                return Misfit(Reason.CAPABILITY_MISSING, f"has no capability {word}")
        model = spec.model
        if not worker.lists_model(model):
            text = f"has no model {model}" if model else "has no default model"
            return Misfit(Reason.MODEL_NOT_LISTED, text)
        num_ctx = worker.num_ctx_for(model)
        if num_ctx < spec.min_context:
            text = f"its window of {num_ctx} tokens is below --min-context {spec.min_context}"
            return Misfit(Reason.WINDOW_TOO_SMALL, text)
        if self._most_bytes(model, worker) < model_bytes_of(spec):
            return Misfit(Reason.WINDOW_TOO_SMALL, f"the prompt cannot fit its window of {num_ctx} tokens")
        if worker.worker_id in excluded:
            return Misfit(Reason.EXCLUDED, self._excluded_text(spec, excluded, worker))
        has = worker.digest_of(model)
        if spec.digest and has and has != spec.digest:
            return Misfit(Reason.DIGEST_DIFFERS, differs_text(worker, model, spec.digest))
        return None

    def fewest_tokens(self, model: str, spec: NewTask, worker: LiveWorker) -> int:
        """What the task's text takes at the very least on this worker."""
        return round(model_bytes_of(spec) / self._ratios.most(worker.model_for(model)))

    def no_larger(self, model: str, num_ctx: int) -> tuple[str, ...]:
        """Workers that give what a task asking for `model` would run no larger window than this."""
        return tuple(
            worker_id
            for worker_id, worker in self._workers.items()
            if worker.lists_model(model) and worker.num_ctx_for(model) <= num_ctx
        )

    def _excluded_text(self, spec: NewTask, excluded: Collection[str], worker: LiveWorker) -> str:
        own = worker.num_ctx_for(spec.model)
        others = [self._workers[one] for one in excluded if one in self._workers and one != worker.worker_id]
        if any(other.num_ctx_for(spec.model) >= own for other in others):
            return f"it, or one with a window no smaller than its {own} tokens, {Reason.EXCLUDED.text}"
        return Reason.EXCLUDED.text

    def _fit_of(self, spec: NewTask) -> _Fit:
        return self._fit(spec.model, spec.worker, spec.labels, spec.capabilities, spec.min_context)

    def _fit(
        self, model: str, asked: str, labels: tuple[Label, ...], capabilities: tuple[str, ...], min_context: int
    ) -> _Fit:
        key = (model, asked, labels, capabilities, min_context)
        fit = self._fits.get(key)
        if fit is not None:
            return fit
        unfit: list[str] = []
        fitting: list[LiveWorker] = []
        for worker_id, worker in self._workers.items():
            if (
                asked in ("", worker_id)
                and all(label in worker.settings.labels for label in labels)
                and all(word in worker.settings.capabilities for word in capabilities)
                and worker.lists_model(model)
                and worker.num_ctx_for(model) >= min_context
            ):
                fitting.append(worker)
            else:
                unfit.append(worker_id)
        if len(self._fits) >= _FITS_KEPT:
            self._fits.clear()
        most = _rooms({worker.worker_id: self._most_bytes(model, worker) for worker in fitting})
        sure = _rooms({worker.worker_id: self._sure_bytes(model, worker) for worker in fitting})
        fit = self._fits[key] = _Fit(frozenset(unfit), most, sure)
        return fit

    def _most_bytes(self, model: str, worker: LiveWorker) -> float:
        return _room_tokens(model, worker) * self._ratios.most(worker.model_for(model))

    def _sure_bytes(self, model: str, worker: LiveWorker) -> float:
        return _room_tokens(model, worker) * self._ratios.sure(worker.model_for(model))


def size_bytes_of(spec: NewTask) -> int:
    """Bytes of prompt and files together."""
    return spec.prompt.size_bytes + sum(file.body.size_bytes for file in spec.files)


def model_bytes_of(spec: NewTask) -> int:
    """About how many bytes the model reads: prompt and files in their frame."""
    return _FRAME_BYTES + size_bytes_of(spec) + sum(_FRAME_BYTES_A_FILE + len(file.name) for file in spec.files)


def largest_window(model: str, workers: Sequence[LiveWorker]) -> LiveWorker | None:
    """The worker that gives a task asking for `model` the largest window."""
    return max(workers, key=lambda worker: worker.num_ctx_for(model), default=None)


def _room_tokens(model: str, worker: LiveWorker) -> int:
    return worker.num_ctx_for(model) - ANSWER_TOKENS_LEAST


def _rooms(bytes_of: Mapping[str, float]) -> _Rooms:
    order = sorted(bytes_of, key=lambda worker_id: bytes_of[worker_id])
    return _Rooms([bytes_of[worker_id] for worker_id in order], order)
