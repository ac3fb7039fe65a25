"""Who has a free slot and why the others have none: as true as a look at all workers, and cheaper."""

import sys
from collections import Counter
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from koubou_broker.core_settings import CoreSettings, Rule
from koubou_broker.routing.placing import Held, Placed
from koubou_broker.routing.queue import Need
from koubou_broker.routing.roster import Roster, fits, obstacle_of, room_of
from koubou_broker.routing.router import TaskRouter
from koubou_broker.routing.strategies import by_points
from koubou_broker.routing.workers import LiveWorker
from koubou_common.errors import ErrorClass
from koubou_common.messages import Dispatch
from koubou_common.messages.values import AgentHealth, ModelSeen, WorkerMode
from koubou_common.reasons import Reason
from support.core_play import MODEL, Play, a_worker, an_agent, sent

SETTINGS = CoreSettings(heartbeat_s=5.0, breaker_failures=3, breaker_cooldown_s=60.0)
SILENT_S = 15.0  # after three heartbeats


def a_need(model: str = "", *, unfit: tuple[str, ...] = (), avoid: str = "", digest: str = "", rule: int = -1) -> Need:
    return Need(model=model, rule=rule, task_type="", avoid=avoid, unfit=frozenset(unfit), digest=digest)


def sees(worker: LiveWorker, model: str, *, can_work: bool = True) -> None:
    """Its probe finds this model alone."""
    health = AgentHealth(ollama_ok=True, models=(ModelSeen(model, digest="d1"),), can_work=can_work)
    worker.reported_health(health)
    worker.tags = (model,)


class Crew:
    """Workers and their roster."""

    def __init__(self, *worker_ids: str, slots: int = 1) -> None:
        self.workers: dict[str, LiveWorker] = {}
        for worker_id in worker_ids:
            self.join(worker_id, slots)
        self.roster = Roster(SETTINGS, self.workers)
        self.roster.refresh(0.0)

    def join(self, worker_id: str, slots: int = 1) -> LiveWorker:
        worker = self.workers[worker_id] = LiveWorker(a_worker(worker_id, slots=slots, models=("*",)))
        worker.connect(len(self.workers), "b1", 0.0, 0)
        worker.heard(0.0, 0)
        sees(worker, MODEL)
        worker.report([], slots, 0, 0.0)
        return worker

    def free(self, now_s: float = 0.0) -> list[str]:
        self.roster.refresh(now_s)
        self.roster.check()
        return sorted(self.roster.free)


def test_a_worker_that_was_touched_is_looked_at_again() -> None:
    crew = Crew("w1", "w2")
    crew.workers["w1"].dispatched("u")
    crew.roster.touch("w1")
    assert crew.free() == ["w2"]
    assert sorted(crew.roster.eligible) == ["w1", "w2"]
    crew.workers["w1"].report([], 1, 1, 0.0)
    crew.roster.touch("w1")
    assert crew.free() == ["w1", "w2"]


def test_a_change_that_nobody_told_of_is_found_by_the_check() -> None:
    crew = Crew("w1")
    crew.workers["w1"].dispatched("u")
    with pytest.raises(AssertionError, match="w1: known as None, is busy"):
        crew.roster.check()


def test_a_worker_that_came_or_went_untold_is_found_by_the_check() -> None:
    crew = Crew("w1")
    crew.join("w2")
    with pytest.raises(AssertionError, match="w2 has come"):
        crew.roster.check()
    crew = Crew("w1")
    del crew.workers["w1"]
    with pytest.raises(AssertionError, match="w1 has gone"):
        crew.roster.check()


def test_a_worker_that_has_gone_is_in_no_list() -> None:
    crew = Crew("w1", "w2")
    crew.roster.counts(a_need(MODEL))
    del crew.workers["w1"]
    crew.roster.touch("w1")
    assert crew.free() == ["w2"]
    assert list(crew.roster.eligible) == ["w2"]


def test_silence_is_noticed_when_its_time_has_come_though_nobody_says_anything() -> None:
    crew = Crew("w1", "w2")
    assert crew.free(SILENT_S) == ["w1", "w2"]
    crew.workers["w2"].heard(10.0, 0)
    crew.roster.touch("w2")
    assert crew.free(SILENT_S + 0.1) == ["w2"]
    assert crew.roster.reason_of("w1") is Reason.STOPPED_ANSWERING
    assert crew.free(10.0 + SILENT_S) == ["w2"]
    assert crew.free(10.1 + SILENT_S) == []


def test_the_end_of_a_cooldown_is_noticed_when_its_time_has_come() -> None:
    crew = Crew("w1")
    worker = crew.workers["w1"]
    worker.cooling_until_s = 9.0
    crew.roster.touch("w1")
    assert crew.free(8.9) == []
    assert crew.roster.reason_of("w1") is Reason.COOLING_DOWN
    assert crew.free(9.0) == ["w1"]
    worker.dispatched("u")  # the trial
    crew.roster.touch("w1")
    assert crew.free(9.1) == []


def test_reasons_are_counted_for_a_need() -> None:
    crew = Crew("w1", "w2", "w3", "w4", "w5")
    crew.workers["w1"].dispatched("u")
    crew.workers["w2"].mode = WorkerMode.PAUSED
    crew.workers["w3"].disconnect()
    sees(crew.workers["w4"], "other:latest")
    crew.roster.touch_all()
    crew.free()
    absent = {Reason.MODEL_ABSENT: 1}  # it may have any model, and has not the default one
    assert crew.roster.counts(a_need()) == {Reason.BUSY: 1, Reason.PAUSED: 1, Reason.NOT_CONNECTED: 1, **absent}
    assert crew.roster.counts(a_need(unfit=("w1", "w2"))) == {Reason.NOT_CONNECTED: 1, **absent}
    assert crew.roster.counts(a_need("other:latest", unfit=("w3",))) == {Reason.MODEL_ABSENT: 2, Reason.PAUSED: 1}
    assert crew.roster.counts(a_need(MODEL, digest="d2")) == {
        Reason.DIGEST_DIFFERS: 2,
        Reason.MODEL_ABSENT: 1,
        Reason.PAUSED: 1,
        Reason.NOT_CONNECTED: 1,
    }


def test_what_lacks_a_model_is_known_again_when_it_has_it() -> None:
    crew = Crew("w1")
    assert crew.roster.counts(a_need("other:latest")) == {Reason.MODEL_ABSENT: 1}
    sees(crew.workers["w1"], "other:latest")
    crew.roster.touch("w1")
    crew.free()
    assert crew.roster.counts(a_need("other:latest")) == {}


CHANGES = st.tuples(st.integers(0, 3), st.integers(0, 11), st.floats(0.0, 12.0))


@settings(max_examples=100)
@given(st.lists(CHANGES, max_size=60))
def test_whatever_happens_it_knows_what_a_look_at_all_workers_would_tell(changes: list[tuple[int, int, float]]) -> None:
    crew = Crew("w0", "w1", "w2", "w3", slots=2)
    now_s = 0.0
    for nth, (number, change, later_s) in enumerate(changes):
        now_s += later_s
        worker_id = f"w{number}"
        worker = crew.workers.get(worker_id)
        if worker is None:
            worker = crew.join(worker_id, slots=2)
        elif change == 11:
            del crew.workers[worker_id]
        else:
            _change(worker, change, nth, now_s)
        crew.roster.touch(worker_id)
        crew.roster.refresh(now_s)
        crew.roster.check()
        for need in (a_need(), a_need(MODEL, unfit=("w0",)), a_need("other:latest"), a_need(MODEL, digest="d2")):
            _compare(crew, need, now_s)


def _change(worker: LiveWorker, change: int, nth: int, now_s: float) -> None:
    if not worker.session:
        worker.connect(nth + 10, "b1", now_s, 0)
        worker.report([], 2, 0, now_s)
    elif change <= 1 and worker.free:
        worker.dispatched(f"u{nth}")
    elif change <= 3:
        worker.report([], 2, worker.dispatches, now_s)
    elif change <= 5:
        worker.mode = (WorkerMode.PAUSED, WorkerMode.ACTIVE)[change - 4]
    elif change == 6:
        worker.note_failure(ErrorClass.OLLAMA_ERROR, "b1", now_s, SETTINGS)
    elif change == 7:
        worker.note_success()
    elif change == 8:
        worker.disconnect()
    elif change == 9:
        sees(worker, "other:latest", can_work=nth % 3 > 0)
    else:
        worker.report([], 1, worker.dispatches, now_s, releasing=1)
    worker.heard(now_s, 0)


def _compare(crew: Crew, need: Need, now_s: float) -> None:
    counts: Counter[Reason] = Counter()
    free = set()
    for worker_id, worker in crew.workers.items():
        if worker_id in need.unfit:
            continue
        reason = obstacle_of(worker, SETTINGS, now_s)
        if reason is None and not worker.has_model(need.model):
            reason = Reason.MODEL_ABSENT
        if reason is None and need.digest and worker.digest_of(need.model) != need.digest:
            reason = Reason.DIGEST_DIFFERS
        reason = reason or room_of(worker)
        if reason is None:
            free.add(worker_id)
        else:
            counts[reason] += 1
    assert crew.roster.counts(need) == counts
    assert {worker_id for worker_id, worker in crew.roster.free.items() if fits(need, worker)} == free


@dataclass(frozen=True)
class Drawn:
    """A worker of the property below."""

    factor: float
    location: str
    slots: int
    used: int


WORKERS = st.lists(
    st.builds(
        Drawn,
        factor=st.sampled_from([0.1, 0.5, 1.0, 2.0]),
        location=st.sampled_from(["local", "remote"]),
        slots=st.integers(1, 3),
        used=st.integers(0, 3),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=100)
@given(WORKERS, st.sampled_from([-1, 0, 1]), st.booleans(), st.sets(st.integers(0, 5)), st.sets(st.integers(0, 5)))
def test_an_eligible_better_worker_is_never_passed_over_and_nobody_gets_more_than_its_slots(
    drawn: list[Drawn], rule: int, waits: bool, unfit: set[int], kept: set[int]
) -> None:
    rules = (Rule(8, 10, ("local",), overflow_after_s=60.0), Rule(1, 7, ("remote", "local")))
    named = [
        replace(a_worker(f"w{nth}", factor=one.factor, slots=one.slots), location=one.location)
        for nth, one in enumerate(drawn)
    ]
    workers = {one.worker_id: LiveWorker(one) for one in named}
    for nth, (worker, one) in enumerate(zip(workers.values(), drawn, strict=True), 1):
        worker.connect(nth, "b1", 0.0, 0)
        worker.heard(0.0, 0)
        sees(worker, MODEL)
        worker.report([], one.slots, 0, 0.0)
        for use in range(min(one.used, one.slots)):
            worker.dispatched(f"{worker.worker_id}-{use}")
    router = TaskRouter(replace(SETTINGS, workers=tuple(named), rules=rules), workers)
    need = a_need(MODEL, rule=rule, unfit=tuple(f"w{nth}" for nth in unfit))
    keep = {f"w{nth}" for nth in kept}
    router.roster.refresh(0.0)
    placed = router.place(need, 0.0, 0.0 if waits else 60.0, kept=lambda worker: worker.worker_id in keep)
    able = [one for one in workers.values() if one.free and fits(need, one)]
    going = [one for one in able if one.worker_id not in keep]
    if isinstance(placed, Held):
        preferred = [one for one in going if not waits or rule != 0 or one.settings.location == "local"]
        assert not preferred
        reasons = {bool(able): Reason.WAITS_FOR_PREFERRED, len(going) < len(able): Reason.KEPT_FOR_LOADED_MODEL}
        assert placed.reason is (reasons.get(True, Reason.BUSY) if able else Reason.BUSY)
        return
    assert isinstance(placed, Placed)
    assert placed.worker in going
    assert placed.worker.in_use < placed.worker.slots
    assert {choice.worker.worker_id for choice in placed.choices} <= {one.worker_id for one in going}
    assert all(by_points(placed.choice) <= by_points(choice) for choice in placed.choices)
    groups = [choice.group for choice in placed.choices]
    assert placed.choice.group == min(groups)
    assert set(placed.kept) == {one.worker_id for one in able} & keep


def _calls(workers: int, *, free: int) -> int:
    """Function calls of a touch, a refresh and a placement."""
    crew = Crew(*(f"w{nth}" for nth in range(workers)))
    for nth, worker in enumerate(crew.workers.values()):
        if nth >= free:
            worker.dispatched(f"u{nth}")
    router = TaskRouter(SETTINGS, crew.workers)
    router.roster.refresh(0.0)
    need = a_need(MODEL, avoid="w0")
    router.roster.counts(need)
    counted = 0

    def count(_frame: object, event: str, _arg: object) -> None:
        nonlocal counted
        counted += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        router.roster.touch("w1")
        router.roster.refresh(0.0)
        router.place(need, 0.0, 0.0)
        router.roster.counts(need)
    finally:
        sys.setprofile(None)
    return counted


def test_a_decision_costs_the_same_however_many_workers_are_busy() -> None:
    assert _calls(400, free=2) <= _calls(4, free=2) + 20


def test_a_worker_whose_silence_was_the_broker_s_own_is_fed_again() -> None:
    play = Play()
    play.join(an_agent())
    play.wait(SILENT_S + 1.0)
    assert sent(play.submit(), Dispatch) == []
    play.step(play.core.stretch(10.0, play.now))
    assert len(sent(play.submit(), Dispatch)) == 1
