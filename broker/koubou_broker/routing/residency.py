"""Which models an Ollama has loaded, and which prompts it read last, as far as the broker can know. Pure."""

from collections import deque
from collections.abc import Collection

from koubou_common.models import normal_model

_PAIRS_KEPT = 256  # of models seen loaded together: more than any box has room for


class Residency:
    """What is loaded on one box: by its agent's last word, and by what was sent there since."""

    def __init__(self) -> None:
        self._resident: frozenset[str] = frozenset()
        self._known: frozenset[str] = frozenset()  # by the last evidence, before what is still being loaded
        self._coming = ""  # dispatched last, and nobody has said yet that it is loaded
        self._together: set[frozenset[str]] = set()  # pairs that were reported loaded at the same time
        self._read: deque[tuple[str, str]] = deque()  # model and prefix of the last prompts, newest last

    def is_resident(self, model: str) -> bool:
        """Whether the model is loaded, or is being loaded for what was sent there last."""
        return bool(self._resident) and normal_model(model) in self._resident

    def would_swap(self, model: str) -> bool:
        """Whether loading the model would push out another one that is loaded."""
        if not self._resident:
            return False
        model = normal_model(model)
        return model not in self._resident and self._beside(model, self._resident) != self._resident

    def holds_prefix(self, model: str, prefix: str) -> bool:
        """Whether the beginning of the prompt was read there lately, and the model has not left since."""
        return bool(prefix) and bool(self._read) and (normal_model(model), prefix) in self._read

    def prefixes_of(self, model: str) -> frozenset[str]:
        """How the prompts begin that the model has read there lately."""
        if not self._read:
            return frozenset()
        model = normal_model(model)
        return frozenset(prefix for one, prefix in self._read if prefix and one == model)

    def dispatched(self, model: str, prefix: str, prompts_kept: int) -> None:
        """A task of `model` was sent there; Ollama keeps what it read of one prompt for each of its slots."""
        model = normal_model(model)
        # Health lags behind: who was sent last is there, what has to leave for it is not.
        self._become({model} | self._beside(model, self._resident))
        self._coming = model
        key = (model, prefix)
        if prefix and key in self._read:
            self._read.remove(key)
        self._read.append(key)  # also without a prefix: it takes the place of one
        while len(self._read) > max(1, prompts_kept):
            self._read.popleft()

    def reported(self, loaded: Collection[str]) -> None:
        """The agent tells what is loaded; it may have looked before the last dispatch had any effect."""
        seen = frozenset(normal_model(model) for model in loaded)
        self._learn(seen)
        before, self._known = self._known, seen
        if self._coming and self._coming not in seen:
            self._become({self._coming} | self._beside(self._coming, seen))
            return
        if self._coming:
            # What was loaded and went when it came had no room beside it.
            self._together -= {frozenset({self._coming, gone}) for gone in before - seen}
        self._coming = ""
        self._become(seen)

    def answered(self, model: str) -> None:
        """A task of `model` succeeded there: it was loaded just now, whatever was reported before."""
        model = normal_model(model)
        self._known = frozenset({model}) | self._beside(model, self._known)
        if self._coming == model:
            self._coming = ""
        coming = {self._coming} if self._coming else set()
        self._become(coming | (self._beside(self._coming, self._known) if coming else self._known))

    def idle(self) -> None:
        """Nothing runs there: what has not come by now does not come any more."""
        if self._coming:
            self._coming = ""
            self._become(self._known)

    def _beside(self, model: str, others: frozenset[str]) -> frozenset[str]:
        """Those of the others that stay when the model is loaded."""
        return frozenset(one for one in others if one == model or frozenset({one, model}) in self._together)

    def _become(self, resident: Collection[str]) -> None:
        self._resident = frozenset(resident)
        if any(model not in self._resident for model, _ in self._read):
            # A model that leaves takes along what it has read.
            self._read = deque(key for key in self._read if key[0] in self._resident)

    def _learn(self, seen: frozenset[str]) -> None:
        if len(seen) < 2:
            return
        if len(self._together) > _PAIRS_KEPT:
            self._together.clear()
        self._together |= {frozenset({one, other}) for one in seen for other in seen if one != other}
