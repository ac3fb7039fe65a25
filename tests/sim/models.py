"""Which models a seed's workshop has and how it chooses: told by the seed alone, so its draws stay as they were."""

import hashlib
from dataclasses import dataclass

from koubou_common.messages.values import AgentHealth, ModelSeen

_MODELS = ("m", "n")  # a box has memory for one of them
PATIENCE_S = 600.0  # for a loaded model's sake: shorter than what waits behind one slot
_EARLIEST_EVERY = 3  # one seed in so many


def models_of(seed: int) -> tuple[str, ...]:
    """The models of every box."""
    return _MODELS if seed % 2 else _MODELS[:1]


def model_for(seed: int, prompt: bytes) -> str:
    """The model that a task asks for."""
    models = models_of(seed)
    return models[hashlib.sha256(prompt).digest()[0] % len(models)]


def strategy_of(seed: int) -> str:
    """How the broker chooses among workers."""
    return "priority_based" if seed // 2 % _EARLIEST_EVERY else "earliest_finish"


@dataclass(slots=True)
class Ollama:
    """Of one box; it goes on when the agent's process ends."""

    seed: int
    loaded: str = ""  # the model in memory
    version: int = 1  # of all its models

    def load(self, model: str) -> bool:
        """Whether another model had to go for it, or none was there."""
        is_new, self.loaded = model != self.loaded, model
        return is_new

    def pull(self) -> None:
        """Another version of its models; the next time the one before again, which others may still have."""
        self.version = 3 - self.version

    def digest_of(self, model: str) -> str:
        """The version of a model that answers from now on."""
        return f"v{self.version} of {model.removesuffix(':latest')}"

    def health(self) -> AgentHealth:
        """What a probe sees."""
        models = tuple(
            ModelSeen(f"{name}:latest", digest=self.digest_of(name), loaded=name == self.loaded)
            for name in models_of(self.seed)
        )
        return AgentHealth(True, "0.24.0", models)
