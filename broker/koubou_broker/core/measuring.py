"""What every ended attempt leaves behind: its row of worker_metrics, its share in rates and factors."""

from koubou_broker.core.state import State
from koubou_broker.effects import FindSpeeds, Found
from koubou_broker.records import FactorChange, WorkerMetric
from koubou_broker.routing.factors import Factor, has_changed
from koubou_broker.routing.fitting import model_bytes_of
from koubou_broker.routing.speeds import by_normal_model
from koubou_broker.routing.workers import LiveWorker
from koubou_broker.task import LiveAttempt
from koubou_broker.timers import Timer
from koubou_common.errors import ErrorClass
from koubou_common.messages import Result
from koubou_common.messages.values import Metrics
from koubou_common.models import normal_model

ABORTED = "aborted"  # error_type of an attempt that was stopped on our word: by a cancel, another's success, a deadline
_CONFIGURED = "as configured: too few runs were measured"


class Measuring:
    """Works the factors out anew while there is something new to be learned from."""

    def __init__(self, state: State) -> None:
        self._state = state

    def start(self) -> None:
        """Go on with what was measured before."""
        self.measure()

    def measure(self) -> None:
        """Read what the last hours brought."""
        state = self._state
        state.timers.drop(Timer.MEASURE, "")
        since_ms = state.now.wall_ms - round(state.settings.performance.window_s * 1000)
        state.lookup(0, FindSpeeds(max(1, since_ms)), self._take_over)

    def _take_over(self, found: Found) -> None:
        state = self._state
        factors = state.router.performance.take_over(by_normal_model(found.speeds))
        for worker in state.workers.values():
            self._note(worker, factors.get(worker.worker_id))

    def _note(self, worker: LiveWorker, factor: Factor | None) -> None:
        counts = worker.performance_factor
        if not has_changed(worker.noted_factor, counts):
            return
        state = self._state
        worker.noted_factor = counts
        samples, baseline = (factor.samples, factor.baseline) if factor is not None else (0, _CONFIGURED)
        state.save(FactorChange(worker.worker_id, state.now.wall_ms, counts, samples, baseline))
        state.save(worker.record())


def note_success(state: State, attempt: LiveAttempt, worker: LiveWorker, result: Result) -> None:
    """An attempt succeeded."""
    model = result.model or worker.model_for(attempt.task.spec.model)
    _save(state, attempt, result.metrics, model=model, output_length=result.output_length)
    state.router.performance.learn(worker, model, result.metrics)


def note_end(
    state: State, attempt: LiveAttempt, error_class: ErrorClass | None, metrics: Metrics | None = None
) -> None:
    """An attempt failed, was lost, or (no class) was stopped on our word; its metrics, where its agent told any."""
    worker = state.workers.get(attempt.record.worker_id)
    model = attempt.task.spec.model or (worker.settings.default_model if worker is not None else "")
    known = metrics if metrics is not None else Metrics(output_tokens=attempt.tokens)
    _save(state, attempt, known, model=model, error_type=error_class or ABORTED)


def _save(
    state: State, attempt: LiveAttempt, metrics: Metrics, *, model: str, output_length: int = 0, error_type: str = ""
) -> None:
    elapsed_ms = max(0, state.now.wall_ms - attempt.record.started_ms)
    state.save(
        WorkerMetric(
            worker_id=attempt.record.worker_id,
            task_id=attempt.task.task_id,
            execution_time_ms=metrics.total_ms or elapsed_ms,
            tokens_processed=metrics.prompt_tokens + metrics.thinking_tokens + metrics.output_tokens,
            prompt_length=model_bytes_of(attempt.task.spec),
            output_length=output_length,
            success=not error_type,
            error_type=error_type,
            measured_ms=state.now.wall_ms,
            model=normal_model(model) if model else "",
            prompt_tokens=metrics.prompt_tokens,
            output_tokens=metrics.output_tokens,
            eval_ms=metrics.eval_ms,
            thinking_tokens=metrics.thinking_tokens,
            prompt_ms=metrics.prompt_ms,
            load_ms=metrics.load_ms,
            first_token_ms=metrics.first_token_ms,
            slot_wait_ms=metrics.slot_wait_ms,
        )
    )
    if state.timers.due_s(Timer.MEASURE, "") is None:
        state.timers.set(Timer.MEASURE, "", state.now.mono_s + state.settings.performance.update_s)
