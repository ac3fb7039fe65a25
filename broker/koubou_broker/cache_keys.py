"""Which questions are the same one: a sha256 over all that makes a model's answer, where it is repeatable. Pure."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from koubou_broker.records import NewTask
from koubou_common.messages.values import Option, Scalar

_FORM = b"1"  # of what is hashed: another one makes all earlier keys unknown
_RANDOM_SEED = -1  # what Ollama takes for "draw one"


@dataclass(frozen=True, slots=True)
class Answerer:
    """What answers on one worker: as far as it shapes the answer, and no further."""

    model: str  # normal spelling
    digest: str
    options: tuple[Option, ...]  # the worker's general ones, those for the model over them
    thinking_allowance: int
    software: str  # of the agent, which frames the question and cuts the answer out
    ollama_version: str


def answer_key(task: NewTask, answerer: Answerer) -> bytes | None:
    """The key of this task's answer by this worker; None: another run may give another one, or the model is unknown."""
    options = _merged(answerer.options, task.options)
    if not answerer.digest or not _is_repeatable(options):
        return None
    # repr of a tuple of plain values says where each ends, so that no two questions run into each other.
    # What is named here reaches the model or decides what of its answer is kept; a task's type, say, does neither.
    asked = (
        task.principal,
        task.prompt.sha256,
        tuple((file.name, file.body.sha256) for file in task.files),
        task.repo,
        task.target,
        task.strict_output,
    )
    answered_by = (
        answerer.model,
        answerer.digest,
        tuple(sorted((name, repr(value)) for name, value in options.items())),
        answerer.thinking_allowance,
        answerer.software,
        answerer.ollama_version,
    )
    return hashlib.sha256(_FORM + repr((asked, answered_by)).encode("utf-8", "surrogatepass")).digest()


def _merged(general: tuple[Option, ...], own: tuple[Option, ...]) -> dict[str, Scalar | tuple[str, ...]]:
    return {option.name: option.value for option in (*general, *own)}


def _is_repeatable(options: Mapping[str, Scalar | tuple[str, ...]]) -> bool:
    """Whether the same question gives the same answer: a fixed seed, or always the likeliest word."""
    return options.get("seed", _RANDOM_SEED) != _RANDOM_SEED or options.get("temperature") == 0
