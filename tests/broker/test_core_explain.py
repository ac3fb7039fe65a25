"""Why a task went where it did: the decision stored with its attempt; where it would go while it waits."""

from dataclasses import replace

import pytest

from koubou_broker.core_settings import CoreSettings, Rule
from koubou_broker.effects import Peer
from koubou_broker.records import Attempt, Decided
from koubou_broker.routing.queue import Need
from koubou_broker.routing.workers import LiveWorker
from koubou_common import codec
from koubou_common.errors import Code, ErrorClass
from koubou_common.messages import (
    Cancel,
    Dispatch,
    Explain,
    Explanation,
    Failure,
    GetTasks,
    RemoveWorker,
    Retry,
    SetWorkerMode,
    Tasks,
)
from koubou_common.messages.values import AttemptState, ModelSeen, TaskState, WorkerMode
from koubou_common.reasons import Reason
from support.core_play import (
    MODEL,
    Play,
    a_client,
    a_failure,
    a_health,
    a_heartbeat,
    a_result,
    a_spec,
    a_status,
    a_worker,
    an_agent,
    an_agent_hello,
    an_operator,
    refusal,
    saved,
    sent,
    some_settings,
    the,
)

MIKA, KEN, BOSS = a_client(), a_client("ken"), an_operator()
W1, W2 = an_agent("w1"), an_agent("w2")


def explained(play: Play, task_id: int = 1, who: Peer = MIKA) -> Explanation:
    return the(sent(play.say(who, Explain("x", task_id)), Explanation))


def counts(told: Explanation) -> dict[Reason, int]:
    return {one.reason: one.count for one in told.reasons}


def a_play(*, settings: CoreSettings | None = None, joined: tuple[Peer, ...] = (W1, W2)) -> Play:
    workers = (a_worker("w1", factor=1.0), a_worker("w2", factor=0.5), a_worker("w3", factor=0.25))
    settings = settings or some_settings(*workers)
    play = Play(settings, MIKA, KEN, BOSS, *(an_agent(worker.worker_id) for worker in settings.workers))
    for peer in (MIKA, KEN, BOSS, *joined):
        play.join(peer)
    return play


def test_the_decision_is_stored_with_the_attempt_and_told_as_it_was() -> None:
    play = a_play()
    effects = play.submit()
    decided, attempt = the(saved(effects, Decided)), the(saved(effects, Attempt))
    assert (decided.attempt_uid, decided.task_id) == (attempt.attempt_uid, 1)
    told = explained(play)
    decision = the(told.attempts).decision
    assert decision == decided.decision
    assert decision is not None
    assert [one.worker_id for one in decision.candidates] == ["w1", "w2"]
    winner = decision.candidates[0]
    score = sum(part.points for part in winner.parts if part.name in ("factor", "idle", "success", "capability"))
    assert winner.score == pytest.approx(score) == 200.0
    assert [(one.reason, one.count) for one in decision.reasons] == [(Reason.NOT_CONNECTED, 1)]
    assert (decision.strategy, decision.rule) == ("priority_based", "no rule: all workers")
    # It runs: nobody is weighed for it any more.
    assert (told.candidates, told.starts_in_s, told.effective_priority, told.ahead) == ((), None, 0.0, 0)
    assert (told.rule, told.strategy) == ("no rule: all workers", "priority_based")


def test_the_past_is_told_as_it_was_also_when_the_workers_are_others_now() -> None:
    play = a_play()
    uid = play.dispatched().attempt_uid
    before = explained(play).attempts[0].decision
    play.say(BOSS, RemoveWorker("r", "w2"))
    play.say(W1, a_result(uid))
    later = Play(play.settings, shelf=play.shelf, seed=2)
    later.join(MIKA)
    told = explained(later)
    assert told.task.state is TaskState.SUCCEEDED
    assert the(told.attempts).decision == before
    assert before is not None
    assert "w2" in [one.worker_id for one in before.candidates]
    assert told.candidates == ()


def test_each_attempt_has_its_own_decision() -> None:
    play = a_play(joined=(W1,))
    first = play.dispatched().attempt_uid
    play.say(W1, a_failure(first, ErrorClass.MODEL_MISSING))
    play.join(W2)
    told = explained(play)
    decisions = [one.decision for one in told.attempts]
    assert [[one.worker_id for one in each.candidates] for each in decisions if each] == [["w1"], ["w2"]]
    assert decisions[1] is not None
    assert (Reason.EXCLUDED, 1) in [(one.reason, one.count) for one in decisions[1].reasons]


def test_a_task_that_waits_for_a_slot_is_told_who_could_take_it_and_about_when() -> None:
    play = a_play(joined=(W1,))
    play.submit(a_spec("runs"))
    play.submit(a_spec("goes before"))
    play.submit(a_spec("waits"))
    told = explained(play, 3)
    assert (told.ahead, told.effective_priority) == (1, 5.0)
    assert [(one.worker_id, one.code) for one in told.candidates] == [
        ("w1", Reason.BUSY),
        ("w2", Reason.NOT_CONNECTED),
        ("w3", Reason.NOT_CONNECTED),
    ]
    assert told.candidates[0].reason == "busy: 1 of 1 slots in use"
    assert told.candidates[0].eligible
    assert counts(told) == {Reason.NOT_CONNECTED: 2, Reason.BUSY: 1}
    first_s, third_s = explained(play, 2).starts_in_s, told.starts_in_s
    assert first_s is not None
    assert third_s is not None
    assert 0 < first_s < third_s
    assert told.starts_basis.startswith("1 task before it, each about ")
    assert told.task.waiting_for == "a free slot on w1"


def test_waiting_raises_what_is_told_of_its_priority() -> None:
    play = a_play(settings=replace(some_settings(), aging_s=600.0), joined=())
    play.submit(a_spec(priority=3))
    assert explained(play).effective_priority == 3.0
    play.wait(1_300)
    assert explained(play).effective_priority == 5.0


def test_without_anybody_able_nobody_can_tell_when() -> None:
    play = a_play(joined=())
    play.submit()
    told = explained(play)
    assert (told.starts_in_s, told.starts_basis) == (None, "no worker could take it as things stand")
    assert counts(told) == {Reason.NOT_CONNECTED: 3}
    assert not any(one.reason.is_lasting for one in told.reasons)


def test_a_task_whose_worker_was_removed_is_impossible() -> None:
    play = Play(some_settings(a_worker("w1")), MIKA, BOSS, W1, W2)
    for peer in (MIKA, BOSS, W1, W2):
        play.join(peer)
    play.say(BOSS, SetWorkerMode("p", "w2", WorkerMode.PAUSED))
    play.submit(a_spec(worker="w2", model=MODEL))
    assert counts(explained(play))[Reason.PAUSED] == 1
    play.say(BOSS, RemoveWorker("r", "w2"))
    told = explained(play)
    assert counts(told) == {Reason.OTHER_WORKER: 1}
    assert all(one.reason.is_lasting for one in told.reasons)
    assert told.task.waiting_for.startswith("a worker that can run it: ")


@pytest.mark.parametrize(
    ("upset", "code", "word"),
    [
        (lambda play: play.say(BOSS, SetWorkerMode("p", "w1", WorkerMode.PAUSED)), Reason.PAUSED, "paused"),
        (lambda play: play.say(BOSS, SetWorkerMode("p", "w1", WorkerMode.DRAINING)), Reason.DRAINING, "draining"),
        (
            lambda play: play.say(W1, a_heartbeat(health=a_health(can_work=False, issue="no Ollama here"))),
            Reason.CANNOT_WORK,
            "no Ollama here",
        ),
        (lambda play: play.close(W1), Reason.NOT_CONNECTED, "not connected"),
        (lambda play: play.wait(20), Reason.STOPPED_ANSWERING, "stopped answering"),
    ],
)
def test_a_worker_that_takes_nothing_is_named_with_its_reason(upset: object, code: Reason, word: str) -> None:
    play = a_play(settings=some_settings(), joined=(W1,))
    assert callable(upset)
    upset(play)
    play.submit()
    told = explained(play)
    assert [(one.worker_id, one.code, one.reason) for one in told.candidates] == [("w1", code, word)]
    assert told.task.waiting_for == f"w1 ({word})"


def test_a_task_that_pauses_between_two_attempts_does_not_begin_before_that_is_over() -> None:
    play = a_play(joined=(W1,))
    play.say(W1, a_failure(play.dispatched().attempt_uid, ErrorClass.STALLED))
    told = explained(play)
    pause_s = (told.task.not_before_ms - play.now.wall_ms) / 1_000
    assert pause_s > 0
    assert told.starts_in_s is not None
    assert told.starts_in_s >= pause_s
    assert "not before" in told.starts_basis
    assert "its next attempt, in" in told.task.waiting_for


def test_a_rule_that_waits_for_its_preferred_worker_is_named() -> None:
    workers = (a_worker("w1"), a_worker("w2", location="remote"))
    settings = replace(some_settings(*workers), rules=(Rule(1, 10, ("local",), "near", overflow_after_s=300.0),))
    play = a_play(settings=settings, joined=(W2,))
    play.submit()
    play.wait(100)
    play.say(W2, a_heartbeat(a_status(free=1)))
    told = explained(play)
    assert [(one.worker_id, one.code) for one in told.candidates] == [
        ("w2", Reason.WAITS_FOR_PREFERRED),
        ("w1", Reason.NOT_CONNECTED),
    ]
    assert told.starts_in_s == 200.0
    assert told.task.waiting_for == "w2 (the rule waits for a preferred worker)"


def test_a_task_that_went_before_its_turn_says_so() -> None:
    both = ("a:1", "b:1")
    settings = some_settings(a_worker("w1", model="a:1", models=both, slots=2))
    play = a_play(settings=settings, joined=())
    loaded = replace(a_health(*both), models=(ModelSeen("a:1", loaded=True), ModelSeen("b:1")))
    play.join(W1, an_agent_hello(a_status(free=1), health=loaded))
    first = the(sent(play.submit(a_spec("runs", model="a:1")), Dispatch))
    play.submit(a_spec("the head", model="b:1"))
    play.submit(a_spec("its equal", model="a:1"))
    play.say(W1, a_heartbeat(a_status([first.attempt_uid], free=1, last=1), loaded))
    decision = explained(play, 3).attempts[0].decision
    assert decision is not None
    assert decision.note == "before its turn: w1 goes on with the model it has loaded"
    assert explained(play, 2).task.state is TaskState.QUEUED


def test_a_strategy_that_waits_for_a_faster_worker_is_named() -> None:
    workers = (a_worker("w1", factor=2.0), a_worker("w2", factor=0.1))
    play = a_play(settings=replace(some_settings(*workers), strategy="earliest_finish"))
    assert explained(play, the(sent(play.submit(), Dispatch)).task_id).task.worker_id == "w1"
    play.submit(a_spec("waits"))
    told = explained(play, 2)
    assert [(one.worker_id, one.code, one.available) for one in told.candidates] == [
        ("w2", Reason.FASTER_ELSEWHERE, False),
        ("w1", Reason.BUSY, False),
    ]
    assert counts(told) == {Reason.BUSY: 1, Reason.FASTER_ELSEWHERE: 1}
    assert told.starts_basis == "nothing before it; 1 slot of 1 worker"
    assert told.task.waiting_for == "a free slot on w1; w2 (another worker will have done it sooner)"


def test_a_page_of_waiting_tasks_looks_at_the_workers_once_for_each_need(monkeypatch: pytest.MonkeyPatch) -> None:
    play = a_play(joined=())
    play.submit(*(a_spec(f"{nth}", model=MODEL if nth % 2 else "") for nth in range(100)))
    asked: list[str] = []
    obstacle = play.core._state.router.obstacle

    def noted(need: Need, worker: LiveWorker, now_s: float) -> Reason | None:
        asked.append(worker.worker_id)
        return obstacle(need, worker, now_s)

    monkeypatch.setattr(play.core._state.router, "obstacle", noted)
    page = the(sent(play.say(MIKA, GetTasks("t")), Tasks))
    assert {view.waiting_for for view in page.tasks} == {"w1 (not connected); w2 (not connected); w3 (not connected)"}
    assert sorted(asked) == ["w1", "w1", "w2", "w2", "w3", "w3"]


def test_a_task_is_explained_to_its_owner_and_the_operator_alone() -> None:
    play = a_play()
    play.submit()
    assert refusal(play.say(KEN, Explain("x", 1))).code is Code.NOT_FOUND
    assert refusal(play.say(MIKA, Explain("x", 9))).code is Code.NOT_FOUND
    assert explained(play, who=BOSS).task.task_id == 1


def test_an_explanation_of_what_never_began_has_no_attempts() -> None:
    play = a_play(joined=())
    play.submit()
    play.say(MIKA, Cancel("c", (1,)))
    told = explained(play)
    assert (told.task.state, told.attempts, told.candidates) == (TaskState.CANCELLED, (), ())
    play.say(MIKA, Retry("r", (1,)))
    assert counts(explained(play)) == {Reason.NOT_CONNECTED: 3}


def test_the_longest_explanation_fits_one_message() -> None:
    workers = [a_worker(f"{nth:03d}{'工' * 61}") for nth in range(150)]
    settings = replace(some_settings(*workers), poison_deaths=99, rules=(Rule(1, 10, (), "𝕏" * 2_000),))
    play = a_play(settings=settings, joined=tuple(an_agent(worker.worker_id) for worker in workers[:120]))
    play.submit(replace(a_spec(), target="𝕏" * 60))
    while len(play.shelf.attempts) < 36:
        bad = replace(a_failure("", ErrorClass.DRAIN, message="𝕏" * 2_000), log="𝕏" * 16_000)
        _fail_current(play, bad)
        if len(play.shelf.attempts) == 18:
            play.say(MIKA, Cancel("c", (1,)))
            play.say(MIKA, Retry("r", (1,)))
    for worker in workers[:120]:
        issue = a_health(can_work=False, issue="𝕏" * 2_000)
        play.say(an_agent(worker.worker_id), a_heartbeat(health=issue))
    _fail_current(play, a_failure("", ErrorClass.DRAIN, message="𝕏" * 2_000))
    told = explained(play)
    codec.encode(told)
    assert (told.task.state, len(told.attempts), len(told.candidates)) == (TaskState.QUEUED, 36, 100)
    assert [one.decision is not None for one in told.attempts] == [False] * 16 + [True] * 20
    assert {one.code for one in told.candidates} == {Reason.CANNOT_WORK}
    assert counts(told) == {Reason.CANNOT_WORK: 120, Reason.NOT_CONNECTED: 30}
    assert all(not one.log for one in told.attempts)


def _fail_current(play: Play, failure: Failure) -> None:
    attempt = list(play.shelf.attempts.values())[-1]
    assert attempt.state is AttemptState.RUNNING
    status = a_status(spooled=[attempt.attempt_uid], last=99)
    play.say(an_agent(attempt.worker_id), replace(failure, attempt_uid=attempt.attempt_uid, status=status))
