"""What an attempt may take on a worker: the limits that follow from its rates, and how people are shown them."""

from collections.abc import Iterable

from koubou_broker.core.state import State
from koubou_broker.records import NewTask
from koubou_broker.routing.fitting import model_bytes_of
from koubou_broker.routing.performance import TimeLimits
from koubou_broker.routing.workers import LiveWorker
from koubou_common.messages.values import ModelWindow, Option
from koubou_common.models import normal_model

_NUM_PREDICT = 4_096  # tokens; what an agent sends where nobody names it
_BYTES_PER_TOKEN_LEAST = 3.0  # a high estimate of the tokens is the safe one: code reaches it


def limits_of(state: State, worker: LiveWorker, model: str, spec: NewTask) -> TimeLimits | None:
    """The limits of an attempt at this task there; None: those of the worker's settings hold."""
    bytes_per_token = state.router.fitting.bytes_per_token(model) or _BYTES_PER_TOKEN_LEAST
    prompt_tokens = min(worker.num_ctx_for(model), round(model_bytes_of(spec) / bytes_per_token))
    most = _answer_tokens_most(worker, model, spec.options)
    return state.router.performance.limits(worker, model, prompt_tokens, most)


def model_windows(state: State, worker: LiveWorker, most: int) -> tuple[ModelWindow, ...]:
    """Each model that the worker is known to run: its window, its measured rates, the limits of a full window."""
    performance = state.router.performance
    own = [worker.settings.default_model, *worker.known_models(), *performance.measured_models(worker)]
    windows = []
    for model in list(dict.fromkeys(normal_model(name) for name in own if name))[:most]:
        reads, says = performance.measured_rates(worker, model)
        num_ctx = worker.num_ctx_for(model)
        limits = performance.limits(worker, model, num_ctx, _answer_tokens_most(worker, model, ()))
        windows.append(
            ModelWindow(
                model=model,
                num_ctx=num_ctx,
                digest=worker.digest_of(model)[:255],
                prompt_tokens_per_s=round(reads, 1),
                output_tokens_per_s=round(says, 1),
                first_token_limit_s=limits.first_token_s if limits is not None else 0.0,
                total_limit_s=limits.total_s if limits is not None else 0.0,
            )
        )
    return tuple(windows)


def _answer_tokens_most(worker: LiveWorker, model: str, options: Iterable[Option]) -> int:
    """What the model may say, thinking included: the task's options over the model's over the worker's."""
    wanted = _NUM_PREDICT
    for option in (*worker.settings.options, *worker.models.options(model), *options):
        if option.name == "num_predict" and isinstance(option.value, int):
            wanted = option.value
    num_ctx = worker.num_ctx_for(model)
    return min(wanted + worker.settings.thinking_allowance, num_ctx) if wanted > 0 else num_ctx
