"""From what the broker asks, the worker's settings and the box's facts to the plan of one call. Pure."""

from dataclasses import dataclass

from koubou_agent.call_plan import CallPlan, Limits
from koubou_common.messages import Dispatch
from koubou_common.messages.values import Option, WorkerConfig, WorkerLimits

NUM_CTX_DEFAULT = 8192  # tokens; of the requirement, as is the next
NUM_PREDICT_DEFAULT = 4096
BYTES_PER_TOKEN_BOUNDS = (1.0, 16.0)  # one byte a token, and more than the longest that real text reaches (10)

# Who set the limit of an attempt's whole time, in the words of the failure that names it.
TOTAL_OF_TASK = "the task's own timeout"
TOTAL_OF_WORKER = "the total_s of its worker's limits"
TOTAL_MEASURED = "the limit that follows from its worker's measured speed"


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the probe last saw of a model and its Ollama."""

    family: str = ""
    can_think: bool = False
    digest: str = ""
    ollama_version: tuple[int, ...] = ()
    context_length: int = 0  # trained, tokens; 0: unknown


def plan_call(
    worker: WorkerConfig,
    dispatch: Dispatch,
    facts: ModelFacts,
    limits: WorkerLimits,
    prompt_tokens_per_s: float | None,
) -> CallPlan:
    """For an attempt; `limits` are the worker's, capped by the box's own, and the rate is the box's own too."""
    total_s, total_of = _total(dispatch, limits)
    return _plan(
        worker,
        dispatch.model,
        facts,
        _limits(limits, total_s, total_of),
        model_options=dispatch.model_options,
        task_options=dispatch.options,
        first_token_s=dispatch.first_token_s or None,
        prompt_tokens_per_s=prompt_tokens_per_s,
        bytes_per_token=_believable(dispatch.bytes_per_token),
    )


def plan_warm_up(worker: WorkerConfig, facts: ModelFacts, limits: WorkerLimits) -> CallPlan:
    """For loading the default model before anybody asks for it."""
    total = _limits(limits, limits.total_s, TOTAL_OF_WORKER)
    return _plan(worker, worker.default_model, facts, total, model_options=worker.default_model_options)


def _plan(
    worker: WorkerConfig,
    model: str,
    facts: ModelFacts,
    limits: Limits,
    *,
    model_options: tuple[Option, ...],
    task_options: tuple[Option, ...] = (),
    first_token_s: float | None = None,
    prompt_tokens_per_s: float | None = None,
    bytes_per_token: float | None = None,
) -> CallPlan:
    """The worker's options under the model's under the task's; the window is never the task's: it would reload."""
    task = {name: value for name, value in _plain(task_options).items() if name != "num_ctx"}
    options = _plain(worker.options) | _plain(model_options) | task
    num_ctx = _integer(options.pop("num_ctx", None), NUM_CTX_DEFAULT)
    return CallPlan(
        model=model,
        # Ollama gives no more than the model was trained for and says nothing: with the larger number every
        # check against the window would be blind, and the model would never seem to be loaded as asked.
        num_ctx=min(num_ctx, facts.context_length or num_ctx),
        num_predict=_integer(options.pop("num_predict", None), NUM_PREDICT_DEFAULT),
        options=options,
        family=facts.family,
        can_think=facts.can_think,
        thinking_allowance=worker.thinking_allowance,
        limits=limits,
        ollama_version=facts.ollama_version,
        first_token_s=first_token_s,
        prompt_tokens_per_s=prompt_tokens_per_s,
        bytes_per_token=bytes_per_token,
    )


def _total(dispatch: Dispatch, limits: WorkerLimits) -> tuple[float, str]:
    """The time of the whole attempt and who set it: a person's word beats a measurement, the box's limit both."""
    asked, whose = dispatch.timeout_s, TOTAL_OF_TASK
    if asked is None:
        asked, whose = dispatch.total_s or None, TOTAL_MEASURED
    if asked is None or asked >= limits.total_s:
        return limits.total_s, TOTAL_OF_WORKER
    return asked, whose


def _limits(limits: WorkerLimits, total_s: float, total_of: str) -> Limits:
    return Limits(
        connect_s=limits.connect_s,
        load_s=limits.load_s,
        first_token_s=limits.first_token_s,
        idle_s=limits.idle_s,
        total_s=total_s,
        total_of=total_of,
        output_bytes=limits.output_bytes,
    )


def _believable(bytes_per_token: float) -> float | None:
    """A measured ratio, if text can have it: one from tiny prompts would leave an answer no room."""
    least, most = BYTES_PER_TOKEN_BOUNDS
    return bytes_per_token if least <= bytes_per_token <= most else None


def _plain(options: tuple[Option, ...]) -> dict[str, object]:
    return {option.name: list(option.value) if isinstance(option.value, tuple) else option.value for option in options}


def _integer(value: object, default: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else default
