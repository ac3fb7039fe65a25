"""One worker as workers.yaml describes it, whichever list it stands in."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from koubou_common.messages.values import Option, WorkerConfig, WorkerLimits

Location = Literal["local", "remote"]
AgentPlace = Literal["there", "here"]

ANY_MODEL = "*"


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What the broker knows of a worker before it ever connected."""

    worker_id: str
    location: Location
    model: str  # the default one
    models: tuple[str, ...]  # ("*",): all its Ollama has
    endpoint_url: str  # its Ollama, as seen from where its agent runs
    agent: AgentPlace  # "here": driven over the network from the main host
    performance_factor: float
    max_concurrent_tasks: int
    capabilities: tuple[str, ...]
    labels: Mapping[str, str]
    options: Mapping[str, object]  # defaults filled in
    model_options: Mapping[str, Mapping[str, object]]  # by model: over `options`
    thinking_allowance: int  # tokens
    limits: WorkerLimits
    total_least_s: float = 600.0  # below it no measured rate brings the limit of an attempt

    def config(self, *, output_bytes: int) -> WorkerConfig:
        """What its agent is told in Welcome; `output_bytes` is the broker's limit of a result."""
        return WorkerConfig(
            worker_id=self.worker_id,
            default_model=self.model,
            models=self.models,
            slots=self.max_concurrent_tasks,
            location=self.location,
            options=wire_options(self.options),
            thinking_allowance=self.thinking_allowance,
            limits=replace(self.limits, output_bytes=output_bytes),
        )


def wire_options(options: Mapping[str, object]) -> tuple[Option, ...]:
    """Options as messages carry them."""
    return tuple(_option(name, value) for name, value in options.items())


def _option(name: str, value: object) -> Option:
    # check_options admitted scalars and lists of text alone when the settings were read.
    match value:
        case bool() | int() | float() | str():
            return Option(name, value)
        case list() | tuple():
            return Option(name, tuple(str(part) for part in value))
        case _:
            raise AssertionError(f"option {name} holds {type(value).__name__}")
