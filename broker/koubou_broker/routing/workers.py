"""One worker as the core sees it: its agent's session, slots in use, health, breaker. Pure."""

from collections.abc import Collection
from dataclasses import dataclass, field

from koubou_broker.core_settings import ANY_MODEL, CoreSettings, WorkerSettings
from koubou_broker.records import Worker
from koubou_broker.routing.foreign import ForeignLoad
from koubou_broker.routing.models_seen import ModelsSeen
from koubou_broker.routing.residency import Residency
from koubou_common.errors import Category, ErrorClass, category_of
from koubou_common.messages.values import AgentHealth, WorkerConfig, WorkerMode
from koubou_common.models import normal_model

_RECENT_ATTEMPTS = 100  # the success rate looks back over about so many
_BREAKER_FAILURES = CoreSettings().breaker_failures
_VIRTUAL_SUCCESSES = 3  # come before all others: the first failures of a worker say little
SILENT_HEARTBEATS = 3  # missed, then the worker is fed no more
_OLD_BOOTS_KEPT = 8
_SHARED_SPEED = 0.5  # of two that use one Ollama each gets about half
NEVER_S = float("-inf")
RELEASING = "its Ollama is still finishing a cancelled call"  # people ask why an idle box takes nothing

# Failures that say nothing about the worker that reported them.
_NOT_ITS_FAULT = frozenset({ErrorClass.DRAIN, ErrorClass.INPUTS_UNAVAILABLE, ErrorClass.CONTEXT_OVERFLOW})
_AGENT_DIED = frozenset({ErrorClass.AGENT_LOST, ErrorClass.AGENT_RESTARTED})


def speaks_about_worker(error_class: ErrorClass) -> bool:
    """Whether such a failure counts against the worker that reported it."""
    permanent = category_of(error_class) in (Category.PERMANENT, Category.ENDED)
    return not permanent and error_class not in _NOT_ITS_FAULT


@dataclass(slots=True)
class LiveWorker:
    """A known worker, connected or not."""

    settings: WorkerSettings
    mode: WorkerMode = WorkerMode.ACTIVE
    session: int = 0  # 0: not connected
    boot_id: str = ""
    old_boot_ids: tuple[str, ...] = ()  # replaced by another one: a return of one means two agents
    software: str = ""
    platform: str = ""
    last_heard_s: float = NEVER_S
    last_heard_ms: int = 0
    saved_s: float = NEVER_S
    latency_ms: int = 0
    health: AgentHealth = field(default_factory=lambda: AgentHealth(can_work=False))
    health_sent_ms: int = 0  # by the agent's clock; a heartbeat overtaken by a newer one tells old news
    tags: tuple[str, ...] = ()  # models last reported, normal spelling
    was_seen: bool = False  # ever: until then a "*" worker may have any model
    slots_ceiling: int = 0  # of the agent; 0: none
    #: uids the agent said are running; each takes a slot, whatever became of its task
    listed: set[str] = field(default_factory=set)
    #: dispatches of this session the agent has not yet said to have received: uid -> number
    unconfirmed: dict[str, int] = field(default_factory=dict)
    reported_free: int = 0
    releasing: int = 0  # slots that Ollama still needs for calls that were given up, as the agent says
    dispatches: int = 0  # number of the last one in this session
    status_seen: int = 0  # highest number of a status in this session; 0: its agent numbers none
    #: uids of known attempts that this agent may hold
    attempts: set[str] = field(default_factory=set)
    idle_since_s: float = NEVER_S
    succeeded: int = 0
    failed: int = 0
    recent_succeeded: float = 0.0
    recent_failed: float = 0.0
    breaker_failures: int = _BREAKER_FAILURES  # in a row, then it cools down
    measured_factor: float | None = None  # None: not measured, the configured one counts
    factor_samples: int = 0  # successful runs behind it
    noted_factor: float = 0.0  # as its row and the history of factors have it
    failures_in_row: int = 0
    last_failure: ErrorClass | None = None  # of those in a row
    cooling_until_s: float | None = None  # past: one trial may run
    dead_boot_id: str = ""  # the boot whose death was counted already
    residency: Residency = field(default_factory=Residency)
    foreign: ForeignLoad = field(default_factory=ForeignLoad)
    models: ModelsSeen = field(init=False)
    #: when attempts that take a slot will have ended, as was expected when they were dispatched
    expected_ends_s: dict[str, float] = field(default_factory=dict)
    _default: str = ""  # normal spelling
    _own_models: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        named = [normal_model(name) for name in self.settings.models if name != ANY_MODEL]
        if self.settings.default_model:
            self._default = normal_model(self.settings.default_model)
            named.append(self._default)
        self._own_models = frozenset(named)
        self.models = ModelsSeen(self.settings)
        self.noted_factor = self.settings.performance_factor

    @property
    def worker_id(self) -> str:
        """Its id, which is its principal's name."""
        return self.settings.worker_id

    def num_ctx_for(self, model: str) -> int:
        """The window in tokens that a task asking for `model` gets there."""
        return self.models.num_ctx(model or self._default)

    def digest_of(self, model: str) -> str:
        """The version of what a task asking for `model` would run there; empty: not told."""
        return self.models.digest(model or self._default)

    @property
    def slots(self) -> int:
        """How many attempts it may run at once."""
        ceiling = self.slots_ceiling or self.settings.slots
        return min(self.settings.slots, ceiling)

    @property
    def in_use(self) -> int:
        """Slots taken, by what the agent said and what was sent since."""
        return len(self.listed) + len(self.unconfirmed)

    @property
    def free(self) -> int:
        """Slots that may be offered: the smaller of our count and the agent's."""
        ours = self.slots - self.held_back - self.in_use
        theirs = self.reported_free - len(self.unconfirmed)
        return max(0, min(ours, theirs, ours if self.is_trusted else self._trust_left))

    @property
    def is_trusted(self) -> bool:
        """Whether it may fill its slots: it succeeded lately, or gets one trial at a time anyway."""
        return (self.recent_succeeded > 0 and not self.failures_in_row) or self.cooling_until_s is not None

    @property
    def is_doubted(self) -> bool:
        """Whether what keeps it from offering a slot is that it has not shown yet, or not any more, that it works."""
        return not self.is_trusted and self._trust_left <= 0 and self.in_use < self.slots

    @property
    def performance_factor(self) -> float:
        """What counts: measured where there are samples enough, else as configured."""
        return self.settings.performance_factor if self.measured_factor is None else self.measured_factor

    @property
    def held_back(self) -> int:
        """Slots that are left to somebody else who seems to use its Ollama; never the last one."""
        return 1 if self.foreign.is_there and self.slots > 1 else 0

    @property
    def is_held_back(self) -> bool:
        """Whether what keeps it from offering a slot is that alone."""
        theirs = self.reported_free - len(self.unconfirmed)
        return self.held_back > 0 and not self.free and self.in_use < self.slots and theirs > 0

    @property
    def speed_share(self) -> float:
        """Of its measured speed, what may be expected while somebody else uses it too."""
        return _SHARED_SPEED if self.foreign.is_there else 1.0

    @property
    def is_releasing(self) -> bool:
        """Whether what keeps it from offering a slot is its Ollama alone."""
        return self.releasing > 0 and not self.free and self.in_use < self.slots

    @property
    def success_rate(self) -> float:
        """0 to 1 over recent attempts; 1 where there are none, and one failure of one is not 0."""
        total = self.recent_succeeded + self.recent_failed
        return (self.recent_succeeded + _VIRTUAL_SUCCESSES) / (total + _VIRTUAL_SUCCESSES)

    def left_s(self, now_s: float, unknown_s: float) -> list[float]:
        """For each slot in use, how long its attempt is expected to go on; `unknown_s` where nothing was expected."""
        left: list[float] = []
        for uid in (*self.listed, *self.unconfirmed):
            due_s = self.expected_ends_s.get(uid)
            # What is late already may take as long again: nobody waits for ever for a call that hangs.
            left.append(unknown_s if due_s is None else abs(due_s - now_s))
        return left

    def is_alive(self, now_s: float, settings: CoreSettings) -> bool:
        """Whether it is connected and was heard lately."""
        return self.session != 0 and now_s - self.last_heard_s <= SILENT_HEARTBEATS * settings.heartbeat_s

    def is_cooling(self, now_s: float) -> bool:
        """Whether it gets nothing because of its failures; after the cooldown one trial at a time."""
        if self.cooling_until_s is None:
            return False
        return now_s < self.cooling_until_s or self._in_hand > 0

    def lists_model(self, model: str) -> bool:
        """Whether its settings let it run the model (normal spelling; empty: its default)."""
        if not model:
            return bool(self.settings.default_model)
        if ANY_MODEL in self.settings.models:
            return True
        return model in self._own_models

    def has_model(self, model: str) -> bool:
        """Whether it can run the model as far as is known: the tags last reported count, where there are any."""
        if not self.lists_model(model):
            return False
        name = model or self._default
        return name in self.tags if self.tags else name in self._own_models

    def may_have_model(self, model: str) -> bool:
        """As `has_model`, but one that its settings name may come, and a "*" worker never seen may have anything."""
        name = model or self._default
        return self.lists_model(model) and (name in self._own_models or name in self.tags or not self.was_seen)

    def model_for(self, model: str) -> str:
        """What it would run for a task that asks for `model`."""
        return model or self.settings.default_model

    def known_models(self) -> tuple[str, ...]:
        """What people may be told it has."""
        if ANY_MODEL not in self.settings.models:
            return self.settings.models
        own = (self.settings.default_model,) if self.settings.default_model else ()
        return (*own, *(name for name in self.tags if name != self._default))

    def is_resident(self, model: str) -> bool:
        """Whether the model (resolved, see `model_for`) is loaded there, or being loaded for our last dispatch."""
        return self.residency.is_resident(model)

    def would_swap(self, model: str) -> bool:
        """Whether another model that is loaded would have to go for this one."""
        return self.residency.would_swap(model)

    def holds_prefix(self, model: str, prefix: str) -> bool:
        """Whether prompts of this model that begin so were read there lately."""
        return self.residency.holds_prefix(model, prefix)

    def connect(self, session: int, boot_id: str, now_s: float, last_dispatch: int) -> None:
        """A new session: nothing was sent in it, numbers go on where the agent may still be."""
        if self.boot_id not in ("", boot_id):
            self.old_boot_ids = (*self.old_boot_ids, self.boot_id)[-_OLD_BOOTS_KEPT:]
        self.session = session
        self.boot_id = boot_id
        self.listed.clear()
        self.unconfirmed.clear()
        self.reported_free = self.releasing = 0
        self.dispatches = last_dispatch
        self.status_seen = 0
        self.health_sent_ms = 0
        self.residency.idle()
        self.foreign.session_begins(now_s)
        if self._default:
            self.foreign.dispatched(self._default, now_s)  # its agent loads it before anybody asks
        self.idle_since_s = now_s
        self.was_seen = True

    def disconnect(self) -> None:
        """The session is gone; what its agent may hold stays known until its leases end."""
        self.session = 0
        self.listed.clear()
        self.unconfirmed.clear()
        self.reported_free = self.releasing = 0

    def heard(self, now_s: float, wall_ms: int) -> None:
        """A message came."""
        self.last_heard_s = now_s
        self.last_heard_ms = wall_ms

    def is_news(self, sequence: int) -> bool:
        """Whether a status of this number (0: none) was not overtaken by a later one of the session; notes it."""
        if 0 < sequence < self.status_seen:
            return False
        self.status_seen = max(self.status_seen, sequence)
        return True

    def report(
        self, running: Collection[str], free_slots: int, last_dispatch: int, now_s: float, releasing: int = 0
    ) -> None:
        """Take over what the agent says of its slots."""
        was_busy = self.in_use > 0
        self.listed = set(running)
        self.reported_free = free_slots
        self.releasing = releasing
        for uid, number in list(self.unconfirmed.items()):
            if number <= last_dispatch or uid in self.listed:
                del self.unconfirmed[uid]
        if was_busy and not self.in_use:
            self.idle_since_s = now_s
        if not self.in_use:
            self.residency.idle()
        for uid in [uid for uid in self.expected_ends_s if uid not in self.listed and uid not in self.unconfirmed]:
            del self.expected_ends_s[uid]

    def dispatched(self, uid: str, model: str = "", prefix: str = "", ends_s: float | None = None) -> int:
        """A dispatch of `model` (resolved) leaves; returns its number in the session."""
        self.dispatches += 1
        self.unconfirmed[uid] = self.dispatches
        self.attempts.add(uid)
        if model:
            self.residency.dispatched(model, prefix, self.slots)
        if ends_s is not None:
            self.expected_ends_s[uid] = ends_s
        return self.dispatches

    def reported_health(self, health: AgentHealth) -> None:
        """Take over what its probe saw."""
        self.health = health
        self.residency.reported([model.name for model in health.models if model.loaded])

    def answered(self, uid: str, model: str) -> None:
        """An attempt succeeded; one that ran until just now has shown that its model is loaded."""
        if model and (uid in self.listed or uid in self.unconfirmed):
            self.residency.answered(model)

    def release(self, uid: str) -> None:
        """A dispatch that was never confirmed is given up: it takes no slot."""
        self.unconfirmed.pop(uid, None)

    def note_success(self) -> bool:
        """Count a success; true when it closes the breaker."""
        self.succeeded += 1
        self._recent(succeeded=1.0)
        self.failures_in_row = 0
        was_cooling = self.cooling_until_s is not None
        self.cooling_until_s = None
        return was_cooling

    def note_failure(self, error_class: ErrorClass, boot_id: str, now_s: float, settings: CoreSettings) -> bool:
        """Count a failure that speaks about the worker; true when it opens the breaker (again)."""
        if not speaks_about_worker(error_class):
            return False
        self.failed += 1
        self._recent(failed=1.0)
        if error_class in _AGENT_DIED:
            # One death takes all its attempts along: it counts once.
            if boot_id and boot_id == self.dead_boot_id:
                return False
            self.dead_boot_id = boot_id
        self.failures_in_row += 1
        self.last_failure = error_class
        if self.cooling_until_s is None and self.failures_in_row < settings.breaker_failures:
            return False
        self.cooling_until_s = now_s + settings.breaker_cooldown_s
        return True

    def record(self) -> Worker:
        """Its row."""
        return Worker(
            worker_id=self.worker_id,
            location=self.settings.location,
            performance_factor=self.performance_factor,
            endpoint_url=self.settings.endpoint_url,
            network_latency_ms=self.latency_ms,
            last_health_check_ms=self.last_heard_ms,
            mode=self.mode,
            boot_id=self.boot_id,
            software=self.software,
            models=self.tags,
        )

    def config(self) -> WorkerConfig:
        """What its agent is told."""
        return WorkerConfig(
            worker_id=self.worker_id,
            default_model=self.settings.default_model,
            models=self.settings.models,
            slots=self.settings.slots,
            location=self.settings.location,
            options=self.settings.options,
            thinking_allowance=self.settings.thinking_allowance,
            limits=self.settings.limits,
            default_model_options=self.models.options(self.settings.default_model),
        )

    def restore(self, row: Worker) -> None:
        """Go on from its row; what workers.yaml says stays."""
        self.mode = row.mode
        self.boot_id = row.boot_id
        self.software = row.software
        self.latency_ms = row.network_latency_ms
        self.noted_factor = row.performance_factor
        self.last_heard_ms = row.last_health_check_ms
        self.tags = tuple(normal_model(name) for name in row.models)  # older releases kept the case
        self.was_seen = bool(row.boot_id)

    def restore_scores(self, succeeded: int, failed: int) -> None:
        """Go on from the counts of the last 24 h."""
        self.succeeded, self.failed = succeeded, failed
        self._recent(succeeded=float(succeeded), failed=float(failed))

    @property
    def _trust_left(self) -> int:
        """How many more attempts, if all of them fail, its breaker bears."""
        return self.breaker_failures - self.failures_in_row - self._in_hand

    @property
    def _in_hand(self) -> int:
        """Attempts whose outcome is open: some are over, and their agent has not told yet how."""
        return max(self.in_use, len(self.attempts))

    def _recent(self, succeeded: float = 0.0, failed: float = 0.0) -> None:
        self.recent_succeeded += succeeded
        self.recent_failed += failed
        total = self.recent_succeeded + self.recent_failed
        if total > _RECENT_ATTEMPTS:
            # Scaling both keeps the rate and lets old attempts fade.
            self.recent_succeeded *= _RECENT_ATTEMPTS / total
            self.recent_failed *= _RECENT_ATTEMPTS / total
