"""What the core is told at its start: workers, rules, limits and times, as plain frozen records."""

from dataclasses import dataclass, field

from koubou_common.messages.limits import (
    BATCH_TASKS,
    FILE_BYTES,
    GIB,
    PROMPT_BYTES,
    RESULT_BYTES,
    TASK_BYTES,
    TASK_FILES,
)
from koubou_common.messages.values import Label, Option, WorkerLimits

LOCAL, REMOTE = "local", "remote"
ANY_MODEL = "*"  # in `models`: all that the worker's Ollama has


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """A worker as workers.yaml names it; what the file says beats what an agent says."""

    worker_id: str
    location: str = LOCAL
    default_model: str = ""
    models: tuple[str, ...] = (ANY_MODEL,)
    slots: int = 2
    performance_factor: float = 1.0
    capabilities: tuple[str, ...] = ("general",)
    labels: tuple[Label, ...] = ()
    options: tuple[Option, ...] = ()
    model_options: tuple[tuple[str, tuple[Option, ...]], ...] = ()  # by model: over `options`
    thinking_allowance: int = 2048  # tokens, for models that cannot stop thinking
    limits: WorkerLimits = field(default_factory=WorkerLimits)
    total_least_s: float = 600.0  # the limit of an attempt that follows from measured rates is not below it
    endpoint_url: str = ""
    agent_here: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """Who is preferred for tasks of priority `lowest`..`highest`.

    A word of `preferred_workers` is `local`, `remote` or a worker_id; any other word means everyone.
    """

    lowest: int
    highest: int
    preferred_workers: tuple[str, ...] = ()
    reason: str = ""
    overflow_after_s: float | None = None  # wait so long for a preferred worker; None: not at all


@dataclass(frozen=True, slots=True)
class Limits:
    """What a peer may ask for; every refusal names its limit by the field's name."""

    prompt_bytes: int = PROMPT_BYTES
    file_bytes: int = FILE_BYTES
    task_bytes: int = TASK_BYTES  # prompt and files together
    task_files: int = TASK_FILES
    result_bytes: int = RESULT_BYTES
    name_bytes: int = 255  # what every common file system takes
    batch_tasks: int = BATCH_TASKS
    queue_tasks: int = 200_000  # tasks that have not ended, of all together
    queue_per_client: int = 100_000  # of one principal
    files_per_client: int = 1_000_000  # that these name
    bytes_per_client: int = 4 * GIB  # of their prompts and files, each body once
    unreferenced_bytes_per_client: int = 2 * GIB  # sent for submissions that were never accepted, in a day
    sessions_max: int = 1_000  # above, the client silent for longest is forgotten
    sessions_per_client: int = 64  # above, that of them silent for longest is
    watched_per_session: int = 50_000
    watched_per_client: int = 100_000
    lookups_per_session: int = 64  # questions to the store not yet answered
    staged_per_session: int = 4  # submissions in parts held at a time
    staged_per_client: int = 500_000  # tasks and files of them, over all sessions


@dataclass(frozen=True, slots=True)
class PerformanceSettings:
    """How the workers' speed is measured."""

    update_s: float = 300.0
    window_s: float = 86_400.0  # only attempts that ended within it count for the factors
    min_samples: int = 5  # successful runs before anything measured counts


@dataclass(frozen=True, slots=True)
class CoreSettings:
    """Everything the core needs to know that is not state."""

    workers: tuple[WorkerSettings, ...] = ()
    rules: tuple[Rule, ...] = ()
    strategy: str = "priority_based"  # a name of `strategies.STRATEGIES`
    aging_s: float = 1_800.0  # waiting so long raises a task's effective priority by 1, at most to 7; 0: never
    patience_s: float = 900.0  # a task is overtaken at most so long for a loaded model's sake; 0: never
    performance: PerformanceSettings = PerformanceSettings()
    min_workers: int = 0  # an alert tells when fewer are connected
    max_workers: int = 500  # no more are invited or enrolled
    default_slots: int = 2  # of a worker that workers.yaml does not name
    default_factor: float = 0.5  # of a worker that workers.yaml does not name: a box somewhere else
    lease_s: float = 30.0
    heartbeat_s: float = 5.0
    transient_attempts: int = 5
    total_attempts: int = 20
    poison_deaths: int = 3
    backoff_base_s: float = 2.0
    backoff_cap_s: float = 300.0
    breaker_failures: int = 5  # in a row, then the worker cools down
    breaker_cooldown_s: float = 60.0
    limits: Limits = Limits()
    cache_days: float = 0.0  # answers are given again for so long; 0: never
    addresses: tuple[str, ...] = ()  # where the broker can be reached, for invitations
    version: str = ""
