"""Who has a free slot and why the others have none, kept in step so that no decision asks all workers. Pure."""

import heapq
from collections import Counter
from collections.abc import Mapping

from koubou_broker.core_settings import CoreSettings
from koubou_broker.routing.queue import Need
from koubou_broker.routing.workers import SILENT_HEARTBEATS, LiveWorker
from koubou_common.messages.values import WorkerMode
from koubou_common.reasons import Reason

_MODELS_KEPT = 32  # for which the workers without them are known
# Why a worker without a free slot takes nothing now: it is eligible all the same.
_NO_ROOM = frozenset({Reason.BUSY, Reason.RELEASING, Reason.FOREIGN_LOAD})


def obstacle_of(worker: LiveWorker, settings: CoreSettings, now_s: float) -> Reason | None:
    """Why the worker is not eligible for any task; None: it is."""
    if not worker.session:
        return Reason.NOT_CONNECTED
    if not worker.is_alive(now_s, settings):
        return Reason.STOPPED_ANSWERING
    if worker.mode is not WorkerMode.ACTIVE:
        return Reason.PAUSED if worker.mode is WorkerMode.PAUSED else Reason.DRAINING
    if not worker.health.can_work:
        return Reason.CANNOT_WORK
    if worker.is_cooling(now_s):
        return Reason.COOLING_DOWN
    return None


def room_of(worker: LiveWorker) -> Reason | None:
    """Why an eligible worker has no slot to offer; None: it has one."""
    if worker.free:
        return None
    if worker.is_held_back:
        return Reason.FOREIGN_LOAD
    return Reason.RELEASING if worker.is_releasing else Reason.BUSY


class Roster:
    """Told of each worker that may have changed (`touch`); looks again at these alone, and at whose time has come."""

    def __init__(self, settings: CoreSettings, workers: Mapping[str, LiveWorker]) -> None:
        self._settings = settings
        self._workers = workers
        self._reasons: dict[str, Reason | None] = {}
        self._touched: dict[str, None] = dict.fromkeys(workers)
        self._counts: Counter[Reason] = Counter()
        self._due: list[tuple[float, str]] = []  # a heap: when silence or the end of a cooldown may change a reason
        self._due_s: dict[str, float] = {}  # the earliest entry of each worker in it
        self._refreshed_s = 0.0
        self._without: dict[str, dict[str, None]] = {}  # by model, of those asked for: workers that do not have it
        #: workers with a free slot, in no order that means anything
        self.free: dict[str, LiveWorker] = {}
        #: these, and those who are eligible but busy
        self.eligible: dict[str, LiveWorker] = {}

    def touch(self, worker_id: str) -> None:
        """Something about this worker may be different, or it has come or gone."""
        self._touched[worker_id] = None

    def touch_all(self) -> None:
        """Anything may be different."""
        self._touched.update(dict.fromkeys(self._workers))
        self._touched.update(dict.fromkeys(self._reasons))

    def refresh(self, now_s: float) -> None:
        """Look again where something may have changed. To be called before anything is asked."""
        self._refreshed_s = now_s
        while self._due and self._due[0][0] <= now_s:
            due_s, worker_id = heapq.heappop(self._due)
            if self._due_s.get(worker_id) == due_s:
                del self._due_s[worker_id]
                self._touched[worker_id] = None
        if not self._touched:
            return
        for worker_id in self._touched:
            self._look_at(worker_id, now_s)
        self._touched = {}

    def counts(self, need: Need) -> Counter[Reason]:
        """How many of the workers that may run this take nothing for which reason."""
        counts = self._counts.copy()
        for worker_id in need.unfit:
            reason = self._reasons.get(worker_id)
            if reason is not None:
                counts[reason] -= 1
        for worker_id in self._lacking(need.model):
            reason = self._reasons[worker_id]
            if worker_id in need.unfit or not (reason is None or reason in _NO_ROOM):
                continue
            if reason is not None:
                counts[reason] -= 1
            counts[Reason.MODEL_ABSENT] += 1
        if need.digest:
            self._count_versions(need, counts)
        return +counts

    def reason_of(self, worker_id: str) -> Reason | None:
        """Why this worker takes nothing; None: it has a free slot."""
        return self._reasons[worker_id]

    def check(self) -> None:
        """Assert that nobody was forgotten: what is known of whoever was not touched is true."""
        for worker_id in self._reasons:
            assert worker_id in self._workers or worker_id in self._touched, f"{worker_id} has gone, nobody said so"
        for worker_id, worker in self._workers.items():
            if worker_id in self._touched:
                continue
            assert worker_id in self._reasons, f"{worker_id} has come, nobody said so"
            known, truth = self._reasons[worker_id], self._reason(worker, self._refreshed_s)
            assert known == truth, f"{worker_id}: known as {known}, is {truth}"
            for model, lacking in self._without.items():
                assert (worker_id in lacking) != worker.has_model(model), f"{worker_id}: whether it has {model}"
        assert self._counts == Counter(filter(None, self._reasons.values())), "counts of reasons"
        free = {worker_id for worker_id, reason in self._reasons.items() if reason is None}
        assert set(self.free) == free, "who has a free slot"
        busy = {worker_id for worker_id, reason in self._reasons.items() if reason in _NO_ROOM}
        assert set(self.eligible) == free | busy, "who is eligible"

    def _look_at(self, worker_id: str, now_s: float) -> None:
        before = self._reasons.pop(worker_id, None)
        if before is not None:
            self._counts[before] -= 1
            if not self._counts[before]:
                del self._counts[before]
        self.free.pop(worker_id, None)
        self.eligible.pop(worker_id, None)
        worker = self._workers.get(worker_id)
        for model, lacking in self._without.items():
            if worker is None or worker.has_model(model):
                lacking.pop(worker_id, None)
            else:
                lacking[worker_id] = None
        if worker is None:
            return
        reason = self._reasons[worker_id] = self._reason(worker, now_s)
        if reason is not None:
            self._counts[reason] += 1
        if reason is None:
            self.free[worker_id] = worker
        if reason is None or reason in _NO_ROOM:
            self.eligible[worker_id] = worker
        self._watch(worker, now_s)

    def _count_versions(self, need: Need, counts: Counter[Reason]) -> None:
        for worker_id, worker in self.eligible.items():
            if worker_id in need.unfit or not worker.has_model(need.model) or fits(need, worker):
                continue
            reason = self._reasons[worker_id]
            if reason is not None:
                counts[reason] -= 1
            counts[Reason.DIGEST_DIFFERS] += 1

    def _lacking(self, model: str) -> dict[str, None]:
        lacking = self._without.get(model)
        if lacking is None:
            if len(self._without) >= _MODELS_KEPT:
                self._without.clear()
            known = (worker_id for worker_id in self._reasons if worker_id in self._workers)
            lacking = {worker_id: None for worker_id in known if not self._workers[worker_id].has_model(model)}
            self._without[model] = lacking
        return lacking

    def _reason(self, worker: LiveWorker, now_s: float) -> Reason | None:
        return obstacle_of(worker, self._settings, now_s) or room_of(worker)

    def _watch(self, worker: LiveWorker, now_s: float) -> None:
        """Note when time alone may change its reason: looking too early is harmless."""
        if not worker.session:
            return
        due_s = worker.last_heard_s + SILENT_HEARTBEATS * self._settings.heartbeat_s
        if due_s < now_s:
            return  # silent: only a word of it changes that
        cooling_s = worker.cooling_until_s
        if cooling_s is not None and cooling_s > now_s:
            due_s = min(due_s, cooling_s)
        known_s = self._due_s.get(worker.worker_id)
        if known_s is None or due_s < known_s:
            self._due_s[worker.worker_id] = due_s
            heapq.heappush(self._due, (due_s, worker.worker_id))


def fits(need: Need, worker: LiveWorker) -> bool:
    """Whether nothing in the task itself speaks against a worker that is eligible as such."""
    has_version = not need.digest or worker.digest_of(need.model) == need.digest
    return has_version and worker.worker_id not in need.unfit and worker.has_model(need.model)
