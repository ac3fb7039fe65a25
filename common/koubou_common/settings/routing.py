"""routing_policy of workers.yaml: which workers a priority prefers."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator

from koubou_common.did_you_mean import did_you_mean
from koubou_common.messages.limits import PRIORITY_HIGHEST, PRIORITY_LOWEST
from koubou_common.settings.base import SECONDS_MAX, SettingsModel, fault
from koubou_common.worker_settings import Location

GROUPS: tuple[Location, ...] = ("local", "remote")  # what a rule may name beside a worker_id

_RULES_MAX = 100
_STRATEGIES = ("priority_based", "earliest_finish")


def _two_priorities(written: object) -> object:
    if not isinstance(written, list | tuple) or len(written) != 2:
        raise fault("should be two numbers, the lowest and the highest priority", "an example: [8, 10]")
    return tuple(written)


Priority = Annotated[int, Field(ge=PRIORITY_LOWEST, le=PRIORITY_HIGHEST)]


class Rule(SettingsModel):
    """Which workers a range of priorities prefers."""

    priority_range: Annotated[tuple[Priority, Priority], BeforeValidator(_two_priorities)] = Field(
        description="The lowest and the highest priority it is for, 1 to 10 (10 first)."
    )
    preferred_workers: Annotated[tuple[str, ...], Field(strict=False, min_length=1, max_length=100)] = Field(
        description="Groups in order: local, remote or a worker_id; the first with a free worker wins."
    )
    reason: str = Field("", max_length=500, description="Why, in your words; `koubou-ctl show` repeats it.")
    overflow_after_s: Annotated[float, Field(ge=0, le=SECONDS_MAX)] | None = Field(
        None,
        description="Seconds a task waits for them before any other worker may take it; null: at once.",
    )

    @field_validator("priority_range")
    @classmethod
    def _lowest_first(cls, written: tuple[int, int]) -> tuple[int, int]:
        low, high = written
        if low > high:
            raise fault("the lowest priority comes first", f"write [{high}, {low}]")
        return written


class RoutingPolicy(SettingsModel):
    """How a worker is chosen."""

    strategy: Literal["priority_based", "earliest_finish"] = Field(
        "priority_based",
        description=(
            "priority_based: by the rules below, then by score. earliest_finish: by the rules below, then who is"
            " expected to have it done first, waiting for a fast worker near the end of the work."
        ),
    )
    rules: Annotated[tuple[Rule, ...], Field(strict=False, max_length=_RULES_MAX)] = Field(
        (), description="The first rule that holds a task's priority decides; no rule: all workers, by score."
    )
    aging_s: Annotated[float, Field(ge=0, le=SECONDS_MAX)] = Field(
        1_800.0,
        description="Seconds after which waiting raises a task's priority by one, again and again, to 7 at most"
        " (8 to 10 are for people who wait now); 0: never.",
    )
    patience_s: Annotated[float, Field(ge=0, le=SECONDS_MAX)] = Field(
        900.0,
        description="Seconds for which others of its priority may go before a task because a box has their model"
        " loaded; then the box loads the other one. 0: strictly in order.",
    )

    @field_validator("strategy", mode="before")
    @classmethod
    def _known_strategy(cls, written: object) -> object:
        if isinstance(written, str) and written not in _STRATEGIES:
            known = " or ".join(repr(name) for name in _STRATEGIES)
            raise fault(f"should be {known} (got {written!r})", did_you_mean(written, _STRATEGIES))
        return written
