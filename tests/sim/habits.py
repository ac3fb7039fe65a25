"""What only some people set and ask for: told by the seed, and by what a task is called, apart from all other draws."""

import random
from dataclasses import dataclass, replace
from typing import Any

from koubou_common.messages.values import Label, Option, TaskSpec

_AGING_S = 1_800.0  # the default: next to nothing within a run
_QUESTIONS = 4  # that are asked again and again, by everybody
_ASKED_BEFORE = 0.6  # of the tasks, where answers are kept
_AGAIN = 0.1  # of the tasks: a new answer is wanted
_ALIKE = 0.4  # of the submissions, where people care for versions
_VISION = "vision"
_LAB = Label("room", "lab")
_NARROW_TOKENS, _WIDE_TOKENS = 8_192, 1_000_000  # windows; all that is ever asked fits the wide one
_ASKED_TOKENS = 16_384


@dataclass(frozen=True, slots=True)
class Habits:
    """Of the people of one seed; none of all this unless `of_seed` says so."""

    seed: int = 0
    cache_days: float = 0.0
    pulls_every_s: float = 0.0  # each box has another version of its models from then on
    wants_alike: bool = False  # some submissions are to be answered by one version
    is_demanding: bool = False  # some tasks ask for capabilities, labels, windows; not every box has them
    aging_s: float = _AGING_S
    curious_every_s: float = 0.0  # somebody asks what may be asked, and for what may not be seen

    @classmethod
    def of_seed(cls, seed: int) -> "Habits":
        """As this seed says."""
        draws = random.Random(f"habits of {seed}")
        return cls(
            seed=seed,
            cache_days=draws.choice((0.0, 0.0, 30.0, 30.0, 0.003)),
            pulls_every_s=draws.choice((0.0, 0.0, 150.0, 400.0)),
            wants_alike=draws.random() < 0.5,
            is_demanding=draws.random() < 0.3,
            aging_s=draws.choice((_AGING_S, 60.0)),
            curious_every_s=draws.choice((0.0, 0.0, 60.0)),
        )

    def worker(self, index: int) -> dict[str, Any]:
        """What workers.yaml says of a box beyond the usual; the first one can do everything."""
        # Only what is always the likeliest word is kept and given again.
        options = (Option("temperature", 0),) if self.cache_days else ()
        said: dict[str, Any] = {"options": (Option("num_ctx", _WIDE_TOKENS), *options)}
        if not self.is_demanding:
            return said
        draws = random.Random(f"box {index} of {self.seed}")
        is_able, is_labelled, is_wide = (not index or draws.random() < 0.5 for _ in range(3))
        if is_able:
            said["capabilities"] = ("general", _VISION)
        if is_labelled:
            said["labels"] = (_LAB,)
        if not is_wide:
            said["model_options"] = (("m", (Option("num_ctx", _NARROW_TOKENS),)),)
        return said

    def question(self, tag: str) -> str:
        """What the task of this name asks: the name itself, or what others have asked too."""
        draws = random.Random(f"{self.seed}, question of {tag}")
        if not self.cache_days or draws.random() >= _ASKED_BEFORE:
            return tag
        return f"question {draws.randrange(_QUESTIONS)} of {self.seed}"

    def is_alike(self, key: str) -> bool:
        """Whether all tasks of this submission are to be answered by one version of their model."""
        return self.wants_alike and random.Random(f"{self.seed}, {key}").random() < _ALIKE

    def asked_for(self, tag: str, spec: TaskSpec) -> TaskSpec:
        """The task with what else its person asks for."""
        draws = random.Random(f"{self.seed}, wishes of {tag}")
        if self.cache_days:
            spec = replace(spec, use_cache=draws.random() >= _AGAIN)
        if not self.is_demanding:
            return spec
        return replace(
            spec,
            capabilities=draws.choice(((), (), (_VISION,))),
            labels=draws.choice(((), (), (_LAB,))),
            min_context=draws.choice((0, 0, _ASKED_TOKENS)),
        )
