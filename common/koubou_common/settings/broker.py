"""broker.yaml: where the broker listens, what it admits, how it retries, what it keeps."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)

from koubou_common.addresses import DEFAULT_BROKER_ADDRESS, AddressError, check_bind, check_connect
from koubou_common.logs import LogFormat
from koubou_common.messages import limits as wire
from koubou_common.settings.base import (
    Bytes,
    Days,
    Fault,
    FilePath,
    LogLevel,
    Seconds,
    SettingsModel,
    default_of,
    from_address,
    one_or_several,
    part_of,
    raise_faults,
)
from koubou_common.yaml_marks import Route, dotted

_GIB = 1 << 30


class BrokerLimits(SettingsModel):
    """How large and how many; a refusal names its limit."""

    prompt_bytes: Bytes = Field(wire.PROMPT_BYTES, description="Largest prompt, in bytes.")
    file_bytes: Bytes = Field(wire.FILE_BYTES, description="Largest context file, in bytes.")
    task_bytes: Bytes = Field(wire.TASK_BYTES, description="Prompt and context files of one task together, in bytes.")
    files: int = Field(wire.TASK_FILES, ge=0, le=wire.TASK_FILES, description="Context files of one task.")
    result_bytes: Bytes = Field(wire.RESULT_BYTES, description="Largest answer of a model, in bytes.")
    name_bytes: int = Field(
        255, ge=1, le=255, description="Longest name of a file, target, repository or model, in bytes."
    )
    queue_tasks: int = Field(
        200_000, ge=1, le=10_000_000, description="Tasks that have not ended, of all clients together."
    )
    queue_per_client: int = Field(100_000, ge=1, le=10_000_000, description="Tasks of one client that have not ended.")
    files_per_client: int = Field(
        1_000_000, ge=1, le=100_000_000, description="Context files named by one client's tasks that have not ended."
    )
    bytes_per_client: Bytes = Field(
        4 * _GIB,
        description="Prompts and files of one client's tasks that have not ended, each text once, in bytes.",
    )
    unreferenced_bytes_per_client: Bytes = Field(
        2 * _GIB,
        description="What one client may send within a day for submissions that are not accepted, in bytes.",
    )
    max_workers: int = Field(
        256,
        ge=1,
        le=500,  # one message shows them all
        description="Workers that may be enrolled, whatever workers.yaml says.",
    )
    max_sessions: int = Field(1_000, ge=1, le=65_535, description="Agents and clients connected at the same time.")
    sessions_per_client: int = Field(64, ge=1, le=65_535, description="Connections of one client at the same time.")


class Retry(SettingsModel):
    """How often a task is tried again, and when."""

    transient_attempts: int = Field(
        5,
        ge=1,
        le=20,
        description="Attempts while failures may pass (5xx, refused, stalled, timeout).",
    )
    total_attempts: int = Field(20, ge=1, le=1_000, description="Attempts whatever the reason.")
    poison_deaths: int = Field(3, ge=1, le=100, description="Agents that may die on a task before it fails as poison.")
    backoff_base_s: Seconds = Field(
        2.0, description="The wait before attempt n + 1 is random between 0 and this x 2^n, in seconds."
    )
    backoff_cap_s: Seconds = Field(300.0, description="Longest such wait, in seconds.")


class Breaker(SettingsModel):
    """When a worker that keeps failing gets no tasks for a while."""

    failures: int = Field(5, ge=1, le=1_000, description="Failures in a row that stop a worker.")
    cooldown_s: Seconds = Field(60.0, description="Rest before one trial task, in seconds.")


class Retention(SettingsModel):
    """What is kept after a task has ended."""

    bodies_days: Days = Field(30, description="Prompts, files and outputs, in days.")
    history_days: Days = Field(365, description="The record of the task without them, in days.")


class ResultCache(SettingsModel):
    """Whether a question that was answered before is answered at once, without a worker."""

    enabled: bool = Field(
        False,
        description="Whether a task whose question was answered before, for the same client, gets that answer at once:"
        " the same prompt, files, target, version of the model and options, with `seed` set or temperature 0.",
    )
    keep_days: Days = Field(
        30, description="How old such an answer may be, in days; it goes with its task's output at the latest."
    )


class Disk(SettingsModel):
    """Room kept free, so that a full disk loses nothing."""

    reserve_bytes: int = Field(
        64 * wire.MIB,
        ge=0,
        le=_GIB,
        description="A file held back and given up when the disk is full, in bytes.",
    )
    min_free_bytes: int = Field(
        _GIB, ge=0, le=1 << 50, description="Below this much free space new tasks are refused, in bytes."
    )


class BrokerSettings(SettingsModel):
    """The whole of broker.yaml."""

    bind: Annotated[
        tuple[str, ...],
        Field(strict=False, min_length=1, max_length=16),
        BeforeValidator(one_or_several, json_schema_input_type=str | list[str]),
    ] = Field(
        (DEFAULT_BROKER_ADDRESS,),
        description="Where the broker listens: one address or a list. Boxes reach it only if an address of"
        " the private network is among them.",
    )
    allow_public: bool = Field(False, description="Whether `bind` may be a public address or all interfaces.")
    advertise: Annotated[
        tuple[Annotated[str, AfterValidator(from_address(check_connect))], ...],
        Field(strict=False, max_length=16),
        BeforeValidator(one_or_several, json_schema_input_type=str | list[str]),
    ] = Field((), description="Addresses that invitations name; empty: those of `bind`.")
    allow_remote_ollama: bool = Field(
        False,
        description="Whether this host may drive an Ollama over the network (`agent: here` in workers.yaml);"
        " that Ollama is then open to everybody on it.",
    )
    workers_file: FilePath = Field(
        Path("config/workers.yaml"),
        description="The list of workers; a relative path counts from KOUBOU_HOME.",
    )
    heartbeat_s: Seconds = Field(5.0, description="Time between two signs of life, either way, in seconds.")
    lease_s: Seconds = Field(30.0, description="Silence after which an attempt is given to another worker, in seconds.")
    limits: BrokerLimits = Field(default_factory=BrokerLimits, description="How large and how many.")
    retry: Retry = Field(default_factory=Retry, description="How often a task is tried again.")
    breaker: Breaker = Field(default_factory=Breaker, description="When a failing worker rests.")
    retention: Retention = Field(default_factory=Retention, description="What is kept of ended tasks.")
    result_cache: ResultCache = Field(default_factory=ResultCache, description="Answers given before, given again.")
    disk: Disk = Field(default_factory=Disk, description="Room kept free.")
    log_level: LogLevel = Field("info", description="debug, info, warning or error.")
    log_format: LogFormat = Field("auto", description="text, json, or auto: what fits a terminal, systemd or a file.")

    @model_validator(mode="wrap")
    @classmethod
    def _values_agree(cls, written: object, handler: ModelWrapValidatorHandler["BrokerSettings"]) -> "BrokerSettings":
        # Looked at as written: a fault elsewhere must hide neither a public address nor a wrong order.
        faults = [*_bind_faults(written), *_order_faults(written)]
        try:
            made = handler(written)
        except ValidationError as error:
            raise_faults(faults, error)
            raise
        raise_faults(faults)
        return made


# Pairs of which the first, so many times, must not exceed the second; and why.
_ORDERS: tuple[tuple[Route, int, Route, str], ...] = (
    (("heartbeat_s",), 2, ("lease_s",), "one lost sign of life would end an attempt"),
    (("limits", "prompt_bytes"), 1, ("limits", "task_bytes"), "a task holds its prompt"),
    (("limits", "file_bytes"), 1, ("limits", "task_bytes"), "a task holds its files"),
    (("limits", "queue_per_client"), 1, ("limits", "queue_tasks"), "the whole queue holds it"),
    (("limits", "task_bytes"), 1, ("limits", "bytes_per_client"), "one task would be too much"),
    (("limits", "task_bytes"), 1, ("limits", "unreferenced_bytes_per_client"), "one task would be too much"),
    (("retry", "transient_attempts"), 1, ("retry", "total_attempts"), "the total counts them too"),
    (("retry", "backoff_base_s"), 1, ("retry", "backoff_cap_s"), "the cap would always hold"),
    (("retention", "bodies_days"), 1, ("retention", "history_days"), "bodies go with their record"),
)


def _bind_faults(written: object) -> Iterator[Fault]:
    if not isinstance(written, dict):
        return
    bind = written.get("bind", ())
    several = bind if isinstance(bind, list | tuple) else (bind,)
    for number, address in enumerate(several):
        if not isinstance(address, str):
            continue
        try:
            check_bind(address, allow_public=written.get("allow_public") is True)
        except AddressError as error:
            yield Fault(f"{error.message} (got {address!r})", error.hint, ("bind", number))


def _order_faults(written: object) -> Iterator[Fault]:
    for small, times, large, why in _ORDERS:
        low, high = _number(written, small), _number(written, large)
        if low is None or high is None or low * times <= high:
            continue
        most = f"{dotted(large)} ({high:.12g})" if times == 1 else f"{dotted(large)} / {times} ({high / times:g})"
        hint = f"lower it, or raise {dotted(large)}"
        # Of a pair only one may be in the file: that one is to be shown.
        at, shown = (small, "is") if _written(written, small) is not None else (large, f"{dotted(small)} is")
        yield Fault(f"{shown} above {most}: {why}", hint if at == small else "raise it", at)


def _number(written: object, route: Route) -> float | None:
    value = _written(written, route)
    if value is None:
        fields = BrokerSettings.model_fields
        value = default_of(fields[str(route[0])])
        for name in route[1:]:
            value = part_of(value, str(name))
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _written(written: object, route: Route) -> object:
    for name in route:
        written = part_of(written, str(name))
    return written
