"""workers.yaml: who works, with which models and limits; and that its parts agree."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from koubou_common.addresses import DEFAULT_OLLAMA_PORT, AddressError, check_host, check_ollama_url, ollama_url
from koubou_common.did_you_mean import did_you_mean
from koubou_common.messages.values import WorkerLimits
from koubou_common.models import check_model_name, is_cloud_model, same_model
from koubou_common.options import check_options
from koubou_common.settings.base import (
    Fault,
    NameText,
    Seconds,
    SettingsModel,
    fault,
    from_address,
    part_of,
    raise_faults,
)
from koubou_common.settings.performance import Performance
from koubou_common.settings.routing import GROUPS, RoutingPolicy
from koubou_common.worker_settings import ANY_MODEL, AgentPlace, Location, WorkerSettings

# gemini-repo-cli itself sends temperature 0.3; window and answer are the requirement's, in tokens.
DEFAULT_OPTIONS: Mapping[str, object] = {"num_ctx": 8192, "num_predict": 4096, "temperature": 0.3}

_MODELS_MAX = 500  # what one message to the agent carries
_LABELS_MAX = 32
_WORKERS_MAX = 500  # what one message shows
_DEFAULT_MAX_WORKERS = 5  # the requirement's; a longer list of workers raises it
_LABEL_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/-]{0,63}")


def _model_name(name: str) -> str:
    trouble = check_model_name(name)
    if trouble:
        cloud = is_cloud_model(name)
        raise fault(trouble, "name a model that the box holds" if cloud else "`ollama list` shows its names")
    return name


def _model_or_any(name: str) -> str:
    return name if name == ANY_MODEL else _model_name(name)


def _worker_id(worker_id: str) -> str:
    if worker_id in GROUPS:
        raise fault("is the name of a group of workers", f"an example: {worker_id}_001")
    return worker_id


def _capability(word: str) -> str:
    if not 0 < len(word) <= 64 or not word.isprintable() or word != word.strip():
        raise fault("should be 1 to 64 printable characters")
    return word


ModelName = Annotated[str, AfterValidator(_model_name)]
WorkerId = Annotated[NameText, AfterValidator(_worker_id)]


class Limits(SettingsModel):
    """How long the agent waits for what, in seconds."""

    connect_s: Seconds = Field(3.0, description="Longest wait for a connection to Ollama, in seconds.")
    load_s: Seconds = Field(600.0, description="Longest load of a model into memory, in seconds.")
    first_token_s: Seconds = Field(
        300.0,
        description="Longest wait for the first token, in seconds; a prompt that needs more at the worker's"
        " measured speed gets three times what it needs.",
    )
    total_s: Seconds = Field(
        3600.0,
        description="Longest attempt altogether, in seconds. Where speed was measured an attempt gets three times"
        " what its longest answer needs, between total_least_s and this; a task's own --timeout counts instead.",
    )
    total_least_s: Seconds = Field(
        600.0, description="No attempt is given less by what was measured, in seconds; total_s below it counts."
    )


class _Worker(SettingsModel):
    """What workers of both lists have in common."""

    worker_id: WorkerId = Field(description="Its name, unique in this file: letters, digits, '.', '_', '-'.")
    model: ModelName = Field(description="The model that runs tasks which name none.")
    models: Annotated[
        tuple[Annotated[str, AfterValidator(_model_or_any)], ...],
        Field(strict=False, min_length=1, max_length=_MODELS_MAX),
    ] = Field(
        default_factory=lambda data: (data["model"],),
        description='All models it may run, or ["*"] for all its Ollama has; left out: `model` alone.',
    )
    max_concurrent_tasks: int = Field(
        2,
        ge=1,
        le=64,
        description="Tasks it runs at the same time; its agent lowers this to what its Ollama does in"
        " parallel. Left out: manager.max_active_tasks.",
    )
    capabilities: Annotated[
        tuple[Annotated[str, AfterValidator(_capability)], ...], Field(strict=False, max_length=64)
    ] = Field(
        ("general",),
        description="Types of tasks it is good at; each is worth 20 points for such a task. A task may require some"
        " (submit --capability).",
    )
    labels: dict[str, str] = Field(
        default_factory=dict, description='Labels that tasks may require, {gpu: "3090"} for example.'
    )
    options: dict[str, object] = Field(
        default_factory=lambda: dict(DEFAULT_OPTIONS),
        description="Ollama's options for every call: num_ctx is the window, num_predict the longest answer,"
        " both in tokens; `seed: 42` makes answers repeatable. Options left out keep these values.",
    )
    model_options: dict[Annotated[str, AfterValidator(_model_name)], dict[str, object]] = Field(
        default_factory=dict,
        description='Options for one model, over `options`: {"llama3:8b": {num_ctx: 16384}} gives it a larger'
        " window. An agent of 0.1.0 keeps to `options`.",
    )
    thinking_allowance: int = Field(
        2048,
        ge=0,
        le=1 << 20,
        description="Tokens on top of num_predict for a model that cannot stop thinking.",
    )
    network_timeout: Seconds = Field(300.0, description="Longest silence of Ollama between two tokens, in seconds.")
    limits: Limits = Field(default_factory=Limits, description="How long its agent waits for what.")

    @field_validator("worker_type", mode="before", check_fields=False)
    @classmethod
    def _stands_in_its_list(cls, written: object) -> object:
        own = cls.model_fields["worker_type"].default
        if written in GROUPS and written != own:
            raise fault(f"a {written} worker among the {own} ones", f"move it to {written}_workers")
        return written

    @field_validator("models")
    @classmethod
    def _hold_the_default_one(cls, models: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if ANY_MODEL in models and len(models) > 1:
            raise fault(f'"{ANY_MODEL}" means all models and stands alone', f'write models: ["{ANY_MODEL}"]')
        own = info.data.get("model", models[0])  # a model at fault is reported by itself
        if ANY_MODEL not in models and not any(same_model(own, name) for name in models):
            raise fault(f"does not hold the worker's own model {own!r}", "add it, or leave `models` out")
        return models

    @field_validator("labels")
    @classmethod
    def _labels_fit(cls, labels: dict[str, str]) -> dict[str, str]:
        faults = [
            Fault("a label's name is 1 to 64 letters, digits, '.', '_', '/', '-'", route=(key,))
            for key in labels
            if not _LABEL_KEY.fullmatch(key)
        ]
        faults += [
            Fault("a label's value is at most 255 printable characters", route=(key,))
            for key, value in labels.items()
            if len(value) > 255 or not value.isprintable()
        ]
        if len(labels) > _LABELS_MAX:
            faults.append(Fault(f"a worker has at most {_LABELS_MAX} labels"))
        raise_faults(faults)
        return labels

    @field_validator("options")
    @classmethod
    def _options_fit(cls, options: dict[str, object]) -> dict[str, object]:
        # One at a time, so that each fault is shown where its option is written.
        raise_faults(
            Fault(message, route=(name,))
            for name, value in options.items()
            for message in check_options({name: value}, from_task=False)
        )
        return {**DEFAULT_OPTIONS, **options}

    @field_validator("model_options")
    @classmethod
    def _model_options_fit(
        cls, model_options: dict[str, dict[str, object]], info: ValidationInfo
    ) -> dict[str, dict[str, object]]:
        faults: list[Fault] = []
        models = info.data.get("models", (ANY_MODEL,))  # models at fault are reported by themselves
        for number, (name, options) in enumerate(model_options.items()):
            faults += [
                Fault(message, route=(name, option))
                for option, value in options.items()
                for message in check_options({option: value}, from_task=False)
            ]
            if ANY_MODEL not in models and not any(same_model(name, model) for model in models):
                faults.append(Fault("is not among the worker's models", did_you_mean(name, models), (name,)))
            if any(same_model(name, other) for other in list(model_options)[:number]):
                faults.append(Fault("means the same model as a line above", "write its options once", (name,)))
        raise_faults(faults)
        return model_options

    def _settings(
        self, *, location: Location, endpoint_url: str, agent: AgentPlace, slots: int, factor: float
    ) -> WorkerSettings:
        stated = "max_concurrent_tasks" in self.model_fields_set
        return WorkerSettings(
            worker_id=self.worker_id,
            location=location,
            model=self.model,
            models=self.models,
            endpoint_url=endpoint_url,
            agent=agent,
            performance_factor=factor,
            max_concurrent_tasks=self.max_concurrent_tasks if stated else slots,
            capabilities=self.capabilities,
            labels=dict(self.labels),
            options=dict(self.options),
            model_options={name: dict(options) for name, options in self.model_options.items()},
            thinking_allowance=self.thinking_allowance,
            limits=WorkerLimits(
                connect_s=self.limits.connect_s,
                load_s=self.limits.load_s,
                first_token_s=self.limits.first_token_s,
                idle_s=self.network_timeout,
                total_s=self.limits.total_s,
            ),
            total_least_s=self.limits.total_least_s,
        )


_FACTOR = "Speed beside the main host (1.0 = as fast), until enough runs are measured."
Factor = Annotated[float, Field(gt=0, le=100)]


def _loopback_url(url: str) -> str:
    try:
        return check_ollama_url(url, loopback_only=True)
    except AddressError as error:
        raise AddressError(error.message, error.hint or "list another box under remote_workers") from error


class LocalWorker(_Worker):
    """A worker on the main host, or one that is to be preferred like it."""

    worker_type: Literal["local"] = Field("local", description="The list it stands in.")
    server_host: Annotated[str, AfterValidator(from_address(_loopback_url))] = Field(
        f"http://localhost:{DEFAULT_OLLAMA_PORT}",
        description="Its Ollama, on the loopback of its own box.",
    )
    performance_factor: Factor = Field(1.0, description=_FACTOR)

    def settings(self, slots: int) -> WorkerSettings:
        """The uniform view; `slots` holds where the entry states none."""
        return self._settings(
            location="local",
            endpoint_url=_loopback_url(self.server_host),
            agent="there",
            slots=slots,
            factor=self.performance_factor,
        )


class RemoteWorker(_Worker):
    """A worker on another box of the private network."""

    worker_type: Literal["remote"] = Field("remote", description="The list it stands in.")
    remote_host: Annotated[str, AfterValidator(from_address(check_host))] = Field(
        "localhost", description="The box, by name or address; dialled only with `agent: here`."
    )
    remote_port: int = Field(DEFAULT_OLLAMA_PORT, ge=1, le=65_535, description="The port of its Ollama.")
    performance_factor: Factor = Field(0.5, description=_FACTOR)
    agent: AgentPlace = Field(
        "there",
        description="there: its agent runs on the box and dials out. here: the main host drives it, and its"
        " Ollama must be open to the network (needs allow_remote_ollama in broker.yaml).",
    )

    def settings(self, slots: int) -> WorkerSettings:
        """The uniform view; `slots` holds where the entry states none."""
        return self._settings(
            location="remote",
            endpoint_url=ollama_url(self.remote_host, self.remote_port),
            agent=self.agent,
            slots=slots,
            factor=self.performance_factor,
        )


class Workers(SettingsModel):
    """The two lists."""

    local_workers: Annotated[tuple[LocalWorker, ...], Field(strict=False, max_length=_WORKERS_MAX)] = Field(
        (), description="Workers that rules call `local`; `koubou-ctl up` starts an agent for each."
    )
    remote_workers: Annotated[tuple[RemoteWorker, ...], Field(strict=False, max_length=_WORKERS_MAX)] = Field(
        (), description="Workers that rules call `remote`; they join from their own boxes."
    )


class Manager(SettingsModel):
    """The numbers that the original worker pool knew."""

    min_workers: int = Field(1, ge=0, le=_WORKERS_MAX, description="Fewer connected workers raise an alert.")
    max_workers: int | None = Field(
        None,
        ge=1,
        le=_WORKERS_MAX,
        description=f"No more workers may join; null: {_DEFAULT_MAX_WORKERS}, or as many as are listed.",
    )
    max_active_tasks: int = Field(
        2, ge=1, le=64, description="max_concurrent_tasks of workers that do not state their own."
    )


class WorkersFile(SettingsModel):
    """The whole of workers.yaml."""

    workers: Workers = Field(default_factory=Workers, description="Who works.")
    routing_policy: RoutingPolicy = Field(default_factory=RoutingPolicy, description="Who is preferred for what.")
    performance: Performance = Field(default_factory=Performance, description="How the workers' speed is measured.")
    manager: Manager = Field(default_factory=Manager, description="How many workers are wanted.")

    @model_validator(mode="wrap")
    @classmethod
    def _names_agree(cls, written: object, handler: ModelWrapValidatorHandler["WorkersFile"]) -> "WorkersFile":
        # Looks at what was written, so that a fault in one worker does not hide two of the same name.
        faults = [*_name_faults(written), *_manager_faults(written)]
        try:
            made = handler(written)
        except ValidationError as error:
            raise_faults(faults, error)
            raise
        raise_faults(faults)
        return made

    def all_workers(self) -> tuple[WorkerSettings, ...]:
        """Every worker in the order of the file, local ones first."""
        slots = self.manager.max_active_tasks
        local = (worker.settings(slots) for worker in self.workers.local_workers)
        return (*local, *(worker.settings(slots) for worker in self.workers.remote_workers))

    @property
    def max_workers(self) -> int:
        """The most workers that may join."""
        listed = len(self.workers.local_workers) + len(self.workers.remote_workers)
        stated = self.manager.max_workers
        return max(_DEFAULT_MAX_WORKERS, listed) if stated is None else stated


def _name_faults(written: object) -> Iterator[Fault]:
    ids: dict[str, str] = {}
    for list_name in ("local_workers", "remote_workers"):
        for number, worker in enumerate(_items(part_of(part_of(written, "workers"), list_name))):
            worker_id = part_of(worker, "worker_id")
            if not isinstance(worker_id, str):
                continue
            route = ("workers", list_name, number, "worker_id")
            if worker_id in ids:
                yield Fault(f"the worker_id {worker_id!r} is taken", f"{ids[worker_id]} has it too", route)
            ids.setdefault(worker_id, f"{list_name}.{number}")
    for rule_number, rule in enumerate(_items(part_of(part_of(written, "routing_policy"), "rules"))):
        for number, group in enumerate(_items(part_of(rule, "preferred_workers"))):
            if isinstance(group, str) and group not in GROUPS and group not in ids:
                yield Fault(
                    f"{group!r} is neither local, remote nor a worker_id of this file",
                    did_you_mean(group, (*GROUPS, *ids)),
                    ("routing_policy", "rules", rule_number, "preferred_workers", number),
                )


def _manager_faults(written: object) -> Iterator[Fault]:
    manager, workers = part_of(written, "manager"), part_of(written, "workers")
    most, least = part_of(manager, "max_workers"), part_of(manager, "min_workers")
    if not isinstance(most, int):
        return
    if isinstance(least, int) and most < least:
        yield Fault(f"is below min_workers ({least})", "raise it", ("manager", "max_workers"))
    listed = sum(len(_items(part_of(workers, name))) for name in ("local_workers", "remote_workers"))
    if most < listed:
        message = f"is below the number of workers listed ({listed})"
        yield Fault(message, f"raise it to {listed}, or leave it out", ("manager", "max_workers"))


def _items(written: object) -> Sequence[object]:
    return written if isinstance(written, list | tuple) else ()
