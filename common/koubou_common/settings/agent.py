"""agent.yaml: what only the box knows; models, slots and options come from the broker's workers.yaml."""

from collections.abc import Iterator

from pydantic import Field, ModelWrapValidatorHandler, ValidationError, model_validator

from koubou_common.addresses import (
    DEFAULT_BROKER_ADDRESS,
    DEFAULT_OLLAMA_URL,
    AddressError,
    check_ollama_url,
)
from koubou_common.logs import LogFormat
from koubou_common.messages.values import WorkerLimits
from koubou_common.settings.base import (
    BrokerAddresses,
    Bytes,
    Days,
    Fault,
    FilePath,
    LogLevel,
    NameText,
    PublicKey,
    Seconds,
    SettingsModel,
    raise_faults,
)

_GIB = 1 << 30


class AgentLimits(SettingsModel):
    """The box's own ceilings on what workers.yaml allows."""

    connect_s: Seconds | None = Field(None, description="Longest wait for a connection to Ollama, in seconds.")
    load_s: Seconds | None = Field(None, description="Longest load of a model into memory, in seconds.")
    first_token_s: Seconds | None = Field(None, description="Longest wait for the first token, in seconds.")
    idle_s: Seconds | None = Field(None, description="Longest silence between two tokens, in seconds.")
    total_s: Seconds | None = Field(None, description="Longest attempt altogether, in seconds.")

    def capped(self, limits: WorkerLimits) -> WorkerLimits:
        """What workers.yaml says, nowhere above the box's own ceilings."""
        return WorkerLimits(
            connect_s=_lower(limits.connect_s, self.connect_s),
            load_s=_lower(limits.load_s, self.load_s),
            first_token_s=_lower(limits.first_token_s, self.first_token_s),
            idle_s=_lower(limits.idle_s, self.idle_s),
            total_s=_lower(limits.total_s, self.total_s),
            output_bytes=limits.output_bytes,
        )


class AgentSettings(SettingsModel):
    """The whole of agent.yaml."""

    worker_id: NameText | None = Field(
        None, description="The worker this agent is, as workers.yaml names it; --worker-id beats it."
    )
    broker_addresses: BrokerAddresses = Field(
        (DEFAULT_BROKER_ADDRESS,), description="The broker: one address, or a list tried in turn."
    )
    broker_public_key: PublicKey | None = Field(
        None, description="The broker's public key; null: that of the broker in this KOUBOU_HOME."
    )
    key_file: FilePath | None = Field(
        None, description="This agent's own key; null: keys/agents/<worker_id>.key in KOUBOU_HOME."
    )
    ollama_url: str = Field(DEFAULT_OLLAMA_URL, description="The Ollama beside this agent.")
    allow_remote_ollama: bool = Field(
        False,
        description="Whether ollama_url may be another machine; prompts then cross the network in the clear.",
    )
    ollama_parallel: int = Field(
        1,
        ge=1,
        le=64,
        description="OLLAMA_NUM_PARALLEL of that Ollama, which cannot be asked for it; more tasks at a time"
        " would only wait inside Ollama.",
    )
    slots_ceiling: int | None = Field(
        None, ge=1, le=64, description="Tasks at the same time this box allows; null: as workers.yaml says."
    )
    limits: AgentLimits = Field(
        default_factory=AgentLimits,
        description="Ceilings of this box, in seconds; null: as workers.yaml says.",
    )
    cli_python: FilePath | None = Field(
        None,
        description="The interpreter that runs gemini-repo-cli; null: the one of `koubou-agent setup-cli`.",
    )
    work_dir: FilePath | None = Field(
        None,
        description="Where attempts run, each in a folder deleted afterwards; null:"
        " state/agents/<worker_id>/work in KOUBOU_HOME, from which relative paths count too.",
    )
    spool_dir: FilePath | None = Field(
        None,
        description="Results the broker has not stored yet; null: state/agents/<worker_id>/spool.",
    )
    cache_dir: FilePath | None = Field(
        None, description="Context files fetched before; null: state/agents/<worker_id>/cache."
    )
    cache_bytes: Bytes = Field(_GIB, description="Most the cache may hold, in bytes.")
    cache_days: Days = Field(7, description="Time an unused file stays in the cache, in days.")
    preload: bool = Field(True, description="Whether the default model is loaded before the first task comes.")
    log_level: LogLevel = Field("info", description="debug, info, warning or error.")
    log_format: LogFormat = Field("auto", description="text, json, or auto: what fits a terminal, systemd or a file.")

    @model_validator(mode="wrap")
    @classmethod
    def _ollama_is_beside_us(
        cls, written: object, handler: ModelWrapValidatorHandler["AgentSettings"]
    ) -> "AgentSettings":
        # Looked at as written: a fault elsewhere must not hide this one.
        faults = list(_ollama_faults(written))
        try:
            made = handler(written)
        except ValidationError as error:
            raise_faults(faults, error)
            raise
        raise_faults(faults)
        return made


def _ollama_faults(written: object) -> Iterator[Fault]:
    url = written.get("ollama_url") if isinstance(written, dict) else None
    if not isinstance(url, str):
        return
    remote_too = isinstance(written, dict) and written.get("allow_remote_ollama") is True
    try:
        check_ollama_url(url, loopback_only=not remote_too)
    except AddressError as error:
        hint = error.hint or "run the agent on that box, or set allow_remote_ollama: true"
        yield Fault(f"{error.message} (got {url!r})", hint, ("ollama_url",))


def _lower(value: float, ceiling: float | None) -> float:
    return value if ceiling is None else min(value, ceiling)
