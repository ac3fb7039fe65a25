"""Workers as a whole: breakers, exclusions, alerts, and what operators ask of them."""

from dataclasses import replace

from koubou_broker.effects import Alert, Close
from koubou_broker.records import Audit
from koubou_common.errors import Code, ErrorClass
from koubou_common.messages import (
    Dispatch,
    GetStatus,
    Goodbye,
    HeartbeatAck,
    Removed,
    RemoveWorker,
    Retry,
    SetWorkerMode,
    Status,
    Submitted,
    Welcome,
    Workers,
)
from koubou_common.messages.values import AttemptState, WorkerMode
from support.core_play import (
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
    script,
    sent,
    some_settings,
    the,
)

W1, W2 = an_agent("w1"), an_agent("w2")
BOSS, MIKA = an_operator(), a_client()


def a_play(slots: int = 1) -> Play:
    play = Play(some_settings(a_worker("w1", slots=slots), a_worker("w2", slots=slots)))
    play.join(W1, an_agent_hello(a_status(free=slots)))
    return play


def test_a_worker_that_cannot_work_gets_nothing_and_says_why() -> None:
    play = Play()
    play.join(W1, an_agent_hello(health=a_health(can_work=False, issue="gemini-repo-cli is missing")))
    assert sent(play.submit(), Dispatch) == []
    play.join(BOSS)
    status = the(sent(play.say(BOSS, GetStatus("s")), Status))
    assert status.workers[0].issue == "gemini-repo-cli is missing"
    healed = play.say(W1, a_heartbeat(health=a_health()))
    assert len(sent(healed, Dispatch)) == 1


def test_a_heartbeat_that_was_overtaken_tells_nothing_of_its_worker_health() -> None:
    play = Play()
    hello = an_agent_hello(health=a_health(can_work=False, issue="its disk is full"))
    play.join(W1, hello)
    play.submit()
    assert len(sent(play.say(W1, replace(a_heartbeat(health=a_health()), sent_ms=2_000)), Dispatch)) == 1
    ill = a_heartbeat(a_status(free=1, last=1), a_health(can_work=False, issue="its disk is full"))
    for late in (replace(ill, sent_ms=1_000), hello):
        play.say(W1, late)
        assert sent(play.submit(), Dispatch) == [], "its slot is taken"
        play.join(BOSS)
        assert the(sent(play.say(BOSS, GetStatus("s")), Status)).workers[0].issue == ""
    play.say(W1, replace(ill, sent_ms=3_000))
    assert the(sent(play.say(BOSS, GetStatus("s")), Status)).workers[0].issue == "its disk is full"


def test_consecutive_failures_cool_a_worker_down_then_one_trial_runs() -> None:
    play = Play(replace(some_settings(a_worker("w1", slots=2)), breaker_failures=2, breaker_cooldown_s=60))
    play.join(W1, an_agent_hello(a_status(free=2)))
    uids = [play.dispatched(a_spec(str(nth))).attempt_uid for nth in range(2)]
    play.say(W1, a_failure(uids[0], ErrorClass.OLLAMA_UNREACHABLE, a_status(uids[1:], free=1, last=2)))
    effects = play.say(W1, a_failure(uids[1], ErrorClass.OLLAMA_UNREACHABLE, a_status(free=2, last=2)))
    assert "failed 2 times in a row" in the([one.message for one in effects if isinstance(one, Alert)])
    given: list[Dispatch] = []
    for _ in range(13):
        given += sent(play.wait(5), Dispatch)
        assert given == [] or play.now.mono_s >= 1_060
        if not given:
            given += sent(play.say(W1, a_heartbeat(a_status(free=2, last=2))), Dispatch)
    trial = the(given)
    effects = play.say(W1, a_result(trial.attempt_uid, a_status(free=2, last=3)))
    assert "no alert cooling:w1" in script(effects)
    assert len(sent(effects, Dispatch)) == 1


def test_a_crash_loop_cools_the_worker_down_before_it_poisons_the_queue() -> None:
    play = Play(replace(some_settings(), breaker_failures=3))
    play.submit(*(a_spec(str(nth)) for nth in range(10)))
    for boot in range(20):
        play.join(W1, an_agent_hello(boot=f"b{boot}"))
    poisoned = [row for row in play.shelf.progress.values() if row.error_class is ErrorClass.POISON]
    assert len(poisoned) <= 1


def test_pausing_and_resuming_a_worker() -> None:
    play = a_play()
    play.join(BOSS)
    effects = play.say(BOSS, SetWorkerMode("m", "w1", WorkerMode.PAUSED))
    assert script(effects) == ["save Worker, Audit", "1 <- HeartbeatAck", "2 <- Workers"]
    assert the(saved(effects, Audit)).actor == "boss"
    assert sent(play.submit(), Dispatch) == []
    ack = the(sent(play.say(W1, a_heartbeat()), HeartbeatAck))
    assert ack.mode is WorkerMode.PAUSED
    assert len(sent(play.say(BOSS, SetWorkerMode("m", "w1", WorkerMode.ACTIVE)), Dispatch)) == 1


def test_a_removed_worker_is_told_and_its_work_goes_elsewhere() -> None:
    play = a_play()
    play.join(BOSS)
    uid = play.dispatched().attempt_uid
    play.join(W2)
    effects = play.say(BOSS, RemoveWorker("x", "w1"))
    assert len(sent(effects, Removed)) == len(sent(effects, Workers)) == 1
    assert Close(1) in effects
    assert "allow w1 as removed" in script(effects)
    assert play.shelf.attempts[uid].state is AttemptState.LOST
    assert play.shelf.attempts[the(sent(effects, Dispatch)).attempt_uid].worker_id == "w2"
    assert refusal(play.say(W1, a_heartbeat())).code is Code.HELLO_REQUIRED
    assert len(sent(play.join(W1), Removed)) == 1


def test_an_unknown_worker_is_not_found_and_the_known_are_named() -> None:
    play = a_play()
    play.join(BOSS)
    error = refusal(play.say(BOSS, RemoveWorker("x", "nobody")))
    assert error.code is Code.NOT_FOUND
    assert "w1, w2" in error.hint


def test_two_agents_with_one_key_are_reported() -> None:
    play = a_play()
    assert "alert twice:w1" not in script(play.join(W1, an_agent_hello(boot="b2")))
    assert "alert twice:w1" in script(play.join(W1, an_agent_hello(boot="b1")))


def test_too_few_workers_are_reported_after_a_moment() -> None:
    play = Play(replace(some_settings(), min_workers=1))
    assert play.started
    assert "alert min_workers" in script(play.wait(30))
    assert "no alert min_workers" in script(play.join(W1))


def test_a_worker_that_stops_answering_is_reported_until_it_is_back() -> None:
    play = a_play()
    assert "alert silent:w1" in script(play.wait(31))
    assert "no alert silent:w1" in script(play.say(W1, a_heartbeat()))


def test_a_worker_whose_connection_broke_is_reported_and_one_that_said_goodbye_is_not() -> None:
    play = a_play()
    play.join(W2)
    play.close(W1)
    play.say(W2, Goodbye(a_status()))
    lines = script(play.wait(31))
    assert "alert silent:w1" in lines
    assert "alert silent:w2" not in lines


def test_a_worker_that_fails_for_good_is_excluded_and_the_last_one_ends_the_task() -> None:
    play = a_play()
    play.join(W2)
    first = play.dispatched()
    effects = play.say(W1, a_failure(first.attempt_uid, ErrorClass.MODEL_MISSING, a_status(free=1, last=1)))
    second = the(sent(effects, Dispatch))
    assert play.shelf.attempts[second.attempt_uid].worker_id == "w2"
    play.say(W2, a_failure(second.attempt_uid, ErrorClass.MODEL_MISSING))
    progress = play.shelf.progress[1]
    assert (progress.error_class, progress.excluded) == (ErrorClass.MODEL_MISSING, ("w1", "w2"))


def test_a_known_worker_that_is_away_counts_as_left() -> None:
    play = a_play()
    first = play.dispatched()
    play.say(W1, a_failure(first.attempt_uid, ErrorClass.MODEL_UNLOADABLE, a_status(free=1, last=1)))
    assert play.state_of(1) == "queued"
    assert len(sent(play.join(W2), Dispatch)) == 1


def test_a_worker_that_the_file_does_not_name_may_join_and_runs_named_models() -> None:
    play = Play(some_settings(), BOSS, W1, an_agent("new"))
    welcome = the(sent(play.join(an_agent("new"), an_agent_hello(health=a_health("qwen:7b"))), Welcome))
    assert (welcome.worker.models, welcome.worker.slots) == (("*",), 2)
    effects = play.submit(a_spec(model="qwen:7b"), who=BOSS)
    assert the(sent(effects, Dispatch)).model == "qwen:7b"
    assert len(sent(effects, Submitted)) == 1


def test_the_alert_of_a_poison_task_ends_when_it_is_retried_or_after_a_day() -> None:
    play = Play(replace(some_settings(a_worker("w1")), breaker_failures=100))
    play.join(MIKA)
    for task_id in (1, 2):
        play.submit()
        told = [script(play.join(W1, an_agent_hello(boot=f"{boot}{task_id}"))) for boot in ("b1", "b2", "b3", "b4")]
        assert play.state_of(task_id) == "failed"
        assert any(f"alert poison:{task_id}" in lines for lines in told)
    assert "no alert poison:1" in script(play.say(MIKA, Retry("r", (1,))))
    assert "no alert poison:2" in script(play.wait(86_400))
    assert all(not code.startswith("poison") for code in play.core._state.alerts)
