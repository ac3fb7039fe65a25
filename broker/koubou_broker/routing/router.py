"""Which worker gets a task: eligible, available, the first rule that applies, the best score. Pure."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace

from koubou_broker.core_settings import CoreSettings
from koubou_broker.records import NewTask
from koubou_broker.routing.fitting import Fitting, model_bytes_of
from koubou_broker.routing.performance import Performance
from koubou_broker.routing.placing import NAMED, Held, Placed, reason_counts
from koubou_broker.routing.prompt_prefix import prefix_of
from koubou_broker.routing.queue import Need
from koubou_broker.routing.roster import Roster, fits
from koubou_broker.routing.strategies import STRATEGIES, Choice, Strategy, order_of
from koubou_broker.routing.weighing import Scales
from koubou_broker.routing.workers import LiveWorker
from koubou_common.messages.values import Candidate, Decision
from koubou_common.reasons import Reason

_SENTENCE_CHARS = 2_000
_AVOIDED_S = 600.0  # more urgent tasks may take all other workers for hours; by then a person would try again by hand


class TaskRouter:
    """Decides by the state of the workers it is given; keeps nothing but what it computed before."""

    def __init__(
        self, settings: CoreSettings, workers: Mapping[str, LiveWorker], strategy: Strategy | None = None
    ) -> None:
        """`strategy`: another one than the settings name."""
        self._settings = settings
        self._workers = workers
        self.roster = Roster(settings, workers)
        self.strategy = strategy or STRATEGIES[settings.strategy]
        self.performance = Performance(workers, settings.performance)
        self.fitting = Fitting(workers)
        self._scales = Scales(settings, workers, self.fitting, self.performance)
        self._capabilities: frozenset[str] = frozenset()
        self.workers_changed()

    def workers_changed(self) -> None:
        """Forget what was computed for another set of workers."""
        self.fitting.workers_changed()
        self._scales.workers_changed()
        self.roster.touch_all()
        self._capabilities = frozenset(
            word for worker in self._workers.values() for word in worker.settings.capabilities
        )

    def rule_of(self, priority: int) -> int:
        """Index of the first rule whose range holds the priority; -1: none."""
        for index, rule in enumerate(self._settings.rules):
            if rule.lowest <= priority <= rule.highest:
                return index
        return -1

    def rule_text(self, rule: int) -> str:
        """A rule in words."""
        if rule < 0:
            return "no rule: all workers"
        chosen = self._settings.rules[rule]
        who = ", ".join(chosen.preferred_workers) or "all"
        return f"priority {chosen.lowest}-{chosen.highest}: {who}{f' ({chosen.reason})' if chosen.reason else ''}"

    def overflow_after_s(self, rule: int) -> float:
        """How long a task of this rule waits for a preferred worker."""
        return (self._settings.rules[rule].overflow_after_s or 0.0) if rule >= 0 else 0.0

    def need_of(self, spec: NewTask, excluded: Collection[str], avoid: str) -> Need:
        """The bucket of a task."""
        unfit = self.fitting.unfit(spec, excluded)
        prefix, prefix_bytes = prefix_of(spec)
        return Need(
            model=spec.model,
            rule=self.rule_of(spec.priority),
            task_type=spec.task_type if spec.task_type in self._capabilities else "",
            avoid=avoid,
            unfit=unfit,
            digest=spec.digest,
            doubtful=self.fitting.doubtful(spec),
            prefix=prefix,
            prefix_bytes=prefix_bytes,
            prompt_bytes=model_bytes_of(spec),
        )

    def work_s(self, spec: NewTask) -> float:
        """What the task is expected to take at factor 1.0."""
        model = spec.model or next((one.settings.default_model for one in self._workers.values()), "")
        return self.performance.work_s(model, self.fitting.estimate_tokens(model, model_bytes_of(spec)))

    def could_run(self, need: Need) -> list[LiveWorker]:
        """Known workers, also those away, that might run this one day."""
        return [
            worker
            for worker_id, worker in self._workers.items()
            if worker_id not in need.unfit
            and worker.may_have_model(need.model)
            and (not need.digest or worker.digest_of(need.model) in ("", need.digest))
        ]

    def place(
        self,
        need: Need,
        now_s: float,
        waited_s: float,
        work_s: Callable[[], float] = lambda: 0.0,
        kept: Callable[[LiveWorker], bool] = lambda _worker: False,
        *,
        hoped_s: float = 0.0,
    ) -> Placed | Held:
        """The worker that gets it now, if one is available and neither the rule nor the strategy says to wait.

        The roster must be fresh. `work_s`: seconds of work, at factor 1.0, that goes no later than this task, itself
        included. `kept`: whether a worker that could take it has something better to do. `hoped_s`: how long ago it
        was first told to wait for a busy worker.
        """
        available = [worker for worker in self.roster.free.values() if fits(need, worker)]
        is_avoided = need.avoid in self.roster.free and hoped_s < _AVOIDED_S
        if is_avoided and available and self._has_others(need):
            # Better to wait for another one than to fail on the same box again.
            available = [worker for worker in available if worker.worker_id != need.avoid]
            if not available:
                return Held(Reason.AVOIDED, (need.avoid,))
        if not available:
            return Held(Reason.BUSY)
        going: list[LiveWorker] = []
        kept_ids: list[str] = []
        for worker in available:
            if kept(worker):
                kept_ids.append(worker.worker_id)
            else:
                going.append(worker)
        found = self.choose(need, going, now_s, waited_s, work_s, hoped_s=hoped_s) if going else None
        if isinstance(found, Placed):
            return replace(found, kept=kept_ids)
        # What keeps it from those who could take it matters more than what keeps it from the others.
        return Held(Reason.KEPT_FOR_LOADED_MODEL, kept_ids) if kept_ids or found is None else found

    def choose(
        self,
        need: Need,
        available: Collection[LiveWorker],
        now_s: float,
        waited_s: float,
        work_s: Callable[[], float],
        *,
        hoped_s: float,
    ) -> Placed | Held:
        """Which of these gets it, by rule and strategy."""
        choices = [self._scales.choice(need, worker) for worker in available]
        # The rule comes first: it may say to wait although the strategy would not.
        groups = len(self._scales.preferred(need))
        if waited_s < self.overflow_after_s(need.rule):
            choices = [choice for choice in choices if choice.group < groups]
            if not choices:
                return Held(Reason.WAITS_FOR_PREFERRED)
        best = self.strategy.choose(
            choices, lambda: self._scales.otherwise_s(need, choices, self._busy(need), work_s(), now_s)
        )
        notes = []
        if best is None:
            best = min(choices, key=order_of(self.strategy))
            if hoped_s < best.finish_s:
                return Held(Reason.FASTER_ELSEWHERE)
            # More urgent tasks may take the faster ones again and again, which no estimate of today's work shows.
            notes.append("it waited for a faster worker for as long as this one needs")
        if groups and best.group == groups:
            notes.append("no preferred worker was available")
        return Placed(best, choices, "; ".join(notes))

    def obstacle(self, need: Need, worker: LiveWorker, now_s: float) -> Reason | None:
        """Why the worker is not eligible; None: it is. Of those who never will be, `misfit` knows the very reason."""
        return self._scales.obstacle(need, worker, now_s)

    def in_words(self, need: Need, worker: LiveWorker, reason: Reason) -> str:
        """The reason with what is known of this worker."""
        return self._scales.in_words(need, worker, reason)

    def weigh(
        self, spec: NewTask, excluded: Collection[str], avoid: str, now_s: float, waited_s: float | None = None
    ) -> list[Candidate]:
        """Every known worker with its score, or why not; first who would get the task now, then who next.

        `waited_s`: how long it has waited so far; None: long enough for whatever its rule says.
        """
        need = self.need_of(spec, excluded, avoid)
        rank = order_of(self.strategy)
        eligible: list[Choice] = []
        rejected: list[Candidate] = []
        for worker in self._workers.values():
            misfit = self.fitting.misfit(spec, excluded, worker)
            if misfit is not None:
                rejected.append(self._scales.rejected(need, worker, misfit.reason, misfit.text))
            elif (reason := self.obstacle(need, worker, now_s)) is not None:
                rejected.append(self._scales.rejected(need, worker, reason))
            else:
                eligible.append(self._scales.choice(need, worker))
        has_others = any(choice.worker.worker_id != avoid for choice in eligible)
        groups = len(self._scales.preferred(need))
        waits = waited_s is not None and waited_s < self.overflow_after_s(need.rule)
        able: list[Candidate] = []
        for choice in sorted(eligible, key=rank):
            held = self._scales.no_room(choice.worker)
            if held is None and has_others and choice.worker.worker_id == avoid:
                held = Reason.AVOIDED
            elif held is None and waits and choice.group == groups:
                held = Reason.WAITS_FOR_PREFERRED
            able.append(self._scales.candidate(choice, need, held))
        rejected.sort(key=lambda one: one.worker_id)
        return [*(one for one in able if one.available), *(one for one in able if not one.available), *rejected]

    def decision(self, spec: NewTask, excluded: Collection[str], need: Need, placed: Placed) -> Decision:
        """What is kept of a choice: the winner, the next, how many were out for which reason."""
        rank = order_of(self.strategy)
        next_best = sorted((one for one in placed.choices if one is not placed.choice), key=rank)
        named = (placed.choice, *next_best[: NAMED - 1])
        return Decision(
            strategy=self.strategy.name,
            rule=self.rule_text(need.rule)[:_SENTENCE_CHARS],
            candidates=tuple(self._scales.candidate(choice, need) for choice in named),
            reasons=reason_counts(self._counts(spec, excluded, need, placed)),
            note=placed.note[:_SENTENCE_CHARS],
        )

    def _busy(self, need: Need) -> Iterator[LiveWorker]:
        """Who could take it but for its slots: a slot that is free although none is offered says nothing."""
        for worker_id, worker in self.roster.eligible.items():
            is_waited_for = worker.in_use > 0 and worker_id != need.avoid and worker_id not in self.roster.free
            if is_waited_for and fits(need, worker):
                yield worker

    def _has_others(self, need: Need) -> bool:
        """Whether anybody but the worker to be avoided is eligible, busy or not."""
        return any(worker_id != need.avoid and fits(need, worker) for worker_id, worker in self.roster.eligible.items())

    def _counts(self, spec: NewTask, excluded: Collection[str], need: Need, placed: Placed) -> Counter[Reason]:
        """Why the others were not chosen among: no pass over all workers, but over those the task itself rules out."""
        counts = self.roster.counts(need)
        for worker_id in need.unfit:
            worker = self._workers.get(worker_id)
            if worker is not None:
                misfit = self.fitting.misfit(spec, excluded, worker)
                counts[misfit.reason if misfit is not None else Reason.EXCLUDED] += 1
        chosen_among = {choice.worker.worker_id for choice in placed.choices}
        for worker_id, worker in self.roster.free.items():
            if worker_id in chosen_among or worker_id in need.unfit or not worker.has_model(need.model):
                continue
            if not fits(need, worker):
                counts[Reason.DIGEST_DIFFERS] += 1
                continue
            if worker_id in placed.kept:
                counts[Reason.KEPT_FOR_LOADED_MODEL] += 1
            else:
                counts[Reason.AVOIDED if worker_id == need.avoid else Reason.WAITS_FOR_PREFERRED] += 1
        return counts
