"""A router over connected workers, without a core around it."""

from koubou_broker.core_settings import CoreSettings, Rule, WorkerSettings
from koubou_broker.records import NewTask
from koubou_broker.routing.placing import Held, Placed
from koubou_broker.routing.queue import Need
from koubou_broker.routing.router import TaskRouter
from koubou_broker.routing.workers import LiveWorker
from koubou_common.messages.values import AgentHealth, ModelSeen
from support.core_play import a_new_task

RULES = (
    Rule(8, 10, ("local",), "fast first"),
    Rule(5, 7, ("local", "remote"), "balance"),
    Rule(1, 4, ("remote",), "keep local free"),
)


class Bench:
    """A router over connected workers."""

    def __init__(
        self,
        *workers: WorkerSettings,
        rules: tuple[Rule, ...] = (),
        strategy: str = "priority_based",
        loaded: bool = False,
    ) -> None:
        self.settings = CoreSettings(workers=workers, rules=rules, strategy=strategy)
        self.workers: dict[str, LiveWorker] = {}
        for nth, one in enumerate(workers, 1):
            worker = self.workers[one.worker_id] = LiveWorker(one)
            worker.connect(nth, "b1", 0.0, 0)
            worker.heard(0.0, 0)
            worker.health = AgentHealth(ollama_ok=True)
            worker.report([], one.slots, 0, 0.0)
        self.router = TaskRouter(self.settings, self.workers)
        if loaded:
            for worker_id in self.workers:
                self.load(worker_id)

    def need(self, spec: NewTask, avoid: str = "") -> Need:
        """The lane it waits in."""
        return self.router.need_of(spec, (), avoid)

    def place(self, spec: NewTask | None = None, *, avoid: str = "", waited_s: float = 0.0) -> str:
        """Who gets it now; empty: nobody."""
        placed = self.placed(spec, avoid=avoid, waited_s=waited_s)
        return placed.worker.worker_id if isinstance(placed, Placed) else ""

    def placed(
        self, spec: NewTask | None = None, *, avoid: str = "", waited_s: float = 0.0, work_s: float = 0.0
    ) -> Placed | Held:
        """What comes of looking for a worker; `work_s` of work waits, this task's too."""
        self.router.roster.touch_all()  # tests change the workers behind its back
        self.router.roster.refresh(0.0)
        return self.router.place(self.need(spec or a_new_task(), avoid), 0.0, waited_s, lambda: work_s)

    def why(self, worker_id: str, spec: NewTask | None = None) -> str:
        """Why this worker does not get it, in words; empty: it may."""
        weighed = self.router.weigh(spec or a_new_task(), (), "", 0.0)
        return next(one.reason for one in weighed if one.worker_id == worker_id)

    def load(self, worker_id: str, *models: str) -> None:
        """The agent says that these models (its default, if none is named) are loaded."""
        worker = self.workers[worker_id]
        names = models or (worker.settings.default_model,)
        seen = tuple(ModelSeen(name, loaded=True) for name in names)
        worker.reported_health(AgentHealth(ollama_ok=True, models=seen))

    def busy_until(self, worker_id: str, ends_s: float) -> None:
        """All its slots are taken, and expected to be until then."""
        worker = self.workers[worker_id]
        while worker.free:
            worker.dispatched(f"{worker_id}-{worker.dispatches}", ends_s=ends_s)

    def fill(self, worker_id: str) -> None:
        """All its slots are taken."""
        worker = self.workers[worker_id]
        while worker.free:
            worker.dispatched(f"{worker_id}-{worker.dispatches}")
