"""The model options a worker or a task may set, checked before Ollama can accept them and go wrong."""

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

NUM_PREDICT_MIN = 1  # 0 never ends (recorded: seven minutes), -1 means ten windows
NUM_CTX_MIN = 256  # Ollama takes 0 and negative values and leaves a window of a few tokens
_INT_MAX = 2**31 - 1  # Ollama's runner keeps them in 32 bits
_STOPS_MAX = 16  # strings that end an answer; more is a mistake
_STOP_CHARS_MAX = 256
_CLOSE = 0.6  # difflib's own default likeness for "did you mean"


def check_options(options: Mapping[str, object], *, from_task: bool) -> list[str]:
    """Every fault of `options`, each a sentence for a person; a task may not set what reloads the model."""
    faults: list[str] = []
    for name, value in options.items():
        fault = _check(name, value, from_task=from_task)
        if fault:
            faults.append(fault)
    return faults


@dataclass(frozen=True, slots=True)
class _Rule:
    """How one option must look; `reloads` marks what belongs to worker and model, never to a task."""

    check: Callable[[object], str]
    reloads: bool = False


def _check(name: str, value: object, *, from_task: bool) -> str:
    rule = _RULES.get(name)
    if rule is None:
        return _unknown(name, from_task=from_task)
    if from_task and name == "num_ctx":
        return (
            "num_ctx belongs to the worker and its model (another value would reload the model);"
            " use --min-context N to ask for a worker whose window is large enough"
        )
    if from_task and rule.reloads:
        return f"{name} belongs to the worker and its model: another value would reload the model"
    fault = rule.check(value)
    return f"{name} {fault}, not {_shown(value)}" if fault else ""


def _unknown(name: str, *, from_task: bool) -> str:
    if name in _ELSEWHERE:
        return f"{name} is not a model option: {_ELSEWHERE[name]}"
    known = [known for known, rule in _RULES.items() if not (from_task and rule.reloads)]
    close = difflib.get_close_matches(name.lower().replace("-", "_"), known, n=1, cutoff=_CLOSE)
    hint = f"did you mean {close[0]}?" if close else f"known are: {', '.join(sorted(known))}"
    return f"{name} is not a model option; {hint}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _integer(lowest: int, highest: int = _INT_MAX) -> Callable[[object], str]:
    def check(value: object) -> str:
        # A bool is an int to Python, and Ollama floors 4096.5 without a word.
        if isinstance(value, bool) or not isinstance(value, int):
            return "must be a whole number"
        if value < lowest:
            return f"must be at least {lowest}"
        if value > highest:
            return f"must be at most {highest}"
        return ""

    return check


def _number(lowest: float, highest: float) -> Callable[[object], str]:
    def check(value: object) -> str:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return "must be a number"
        # Infinity and NaN are no JSON; a huge whole number cannot become a float.
        if isinstance(value, float) and not math.isfinite(value):
            return "must be a finite number"
        if not lowest <= value <= highest:
            return f"must be between {lowest:g} and {highest:g}"
        return ""

    return check


def _yes_or_no(value: object) -> str:
    return "" if isinstance(value, bool) else "must be true or false"


def _stops(value: object) -> str:
    if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
        return 'must be a list of texts (["END"])'
    if len(value) > _STOPS_MAX:
        return f"must hold at most {_STOPS_MAX} texts"
    if not all(0 < len(one) <= _STOP_CHARS_MAX for one in value):
        return f"must hold texts of 1 to {_STOP_CHARS_MAX} characters"
    return ""


_RULES: Mapping[str, _Rule] = {
    "num_predict": _Rule(_integer(NUM_PREDICT_MIN)),
    "num_keep": _Rule(_integer(0)),
    "seed": _Rule(_integer(-_INT_MAX)),
    "temperature": _Rule(_number(0, 5)),
    "top_k": _Rule(_integer(0)),
    "top_p": _Rule(_number(0, 1)),
    "min_p": _Rule(_number(0, 1)),
    "typical_p": _Rule(_number(0, 1)),
    "repeat_last_n": _Rule(_integer(-1)),
    "repeat_penalty": _Rule(_number(0, 10)),
    "presence_penalty": _Rule(_number(-10, 10)),
    "frequency_penalty": _Rule(_number(-10, 10)),
    "stop": _Rule(_stops),
    "num_ctx": _Rule(_integer(NUM_CTX_MIN), reloads=True),
    "num_batch": _Rule(_integer(1), reloads=True),
    "num_gpu": _Rule(_integer(-1), reloads=True),
    "main_gpu": _Rule(_integer(0), reloads=True),
    "num_thread": _Rule(_integer(0), reloads=True),
    "use_mmap": _Rule(_yes_or_no, reloads=True),
}

# What Ollama knows as a field of the request, where people look for it among the options.
_ELSEWHERE: Mapping[str, str] = {
    "think": "Koubou turns thinking off, or as low as the model lets it",
    "keep_alive": "set OLLAMA_KEEP_ALIVE at the Ollama server",
    "format": "ask for the form of the answer in the prompt",
    "system": "Koubou sets the system text; put instructions into the prompt",
    "truncate": "Koubou never lets Ollama cut a prompt",
    "shift": "Koubou never lets Ollama drop the head of a prompt",
    "stream": "Koubou always streams from Ollama",
    "model": "use -m MODEL",
}
