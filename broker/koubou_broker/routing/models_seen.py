"""What a worker gives each model: its window and options by workers.yaml, its version as its Ollama told. Pure."""

from collections.abc import Mapping, Sequence

from koubou_broker.core_settings import WorkerSettings
from koubou_common.messages.values import ModelSeen, Option
from koubou_common.models import normal_model

DEFAULT_NUM_CTX = 8192  # tokens; what an agent gives where workers.yaml says nothing


class ModelsSeen:
    """One worker's models: settings that never change, and what its agent last reported of its Ollama."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._general_ctx = _num_ctx(settings.options) or DEFAULT_NUM_CTX
        self._options: Mapping[str, tuple[Option, ...]] = {
            normal_model(name): options for name, options in settings.model_options
        }
        self._takes_options = True
        self._trained: dict[str, int] = {}  # tokens, of models whose training ends below the window they would get
        self._digests: dict[str, str] = {}

    def options(self, model: str) -> tuple[Option, ...]:
        """What the worker sets for this model over its general options."""
        return self._options.get(normal_model(model), ()) if model and self._takes_options else ()

    def num_ctx(self, model: str) -> int:
        """The model's window there in tokens; never more than the model was trained for."""
        if not model:
            return self._general_ctx
        name = normal_model(model)
        return min(self._wanted_ctx(name), self._trained.get(name, self._wanted_ctx(name)))

    def digest(self, model: str) -> str:
        """Which version of the model its Ollama has; empty: nobody has told."""
        return self._digests.get(normal_model(model), "") if model else ""

    @property
    def digests(self) -> Mapping[str, str]:
        """The version of every model, by normal name."""
        return self._digests

    def takes_options(self, told: bool) -> bool:
        """Whether its agent knows options by model (older ones do not); true when windows change with it."""
        changed, self._takes_options = told is not self._takes_options and bool(self._options), told
        return changed

    def reported(self, models: Sequence[ModelSeen]) -> bool:
        """Take over what its Ollama has; true when a window became another one."""
        named = {normal_model(model.name): model for model in models}
        self._digests = {name: model.digest for name, model in named.items() if model.digest}
        before = self._trained
        self._trained = {
            name: model.context_length
            for name, model in named.items()
            if 0 < model.context_length < self._wanted_ctx(name)
        }
        return self._trained != before

    def _wanted_ctx(self, name: str) -> int:
        own = self._options.get(name, ()) if self._takes_options else ()
        return _num_ctx(own) or self._general_ctx


def _num_ctx(options: Sequence[Option]) -> int:
    for option in options:
        if option.name == "num_ctx" and isinstance(option.value, int):
            return option.value
    return 0
