"""Life with failures: retries and their waits, breakers, poison, slots that are not free yet."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from koubou_broker.core_settings import CoreSettings
from koubou_broker.records import TaskProgress
from koubou_common.errors import ErrorClass
from koubou_common.messages import (
    UNASKED,
    Dispatch,
    GetTasks,
    GetWorkers,
    HeartbeatAck,
    ResultStored,
    Retry,
    SetWorkerMode,
    Tasks,
    Workers,
)
from koubou_common.messages.values import Disposition, TaskState, TaskView, WorkerMode, WorkerView
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
    script,
    sent,
    some_settings,
    the,
)

W1, W2 = an_agent("w1"), an_agent("w2")
BOSS, MIKA = an_operator(), a_client()
ONE_WORKER = replace(some_settings(a_worker("w1")), breaker_failures=1_000)


def a_play(settings: CoreSettings = ONE_WORKER, seed: int = 1) -> Play:
    play = Play(settings, seed=seed)
    play.join(MIKA)
    play.join(BOSS)
    play.join(W1)
    return play


def fail(play: Play, given: Dispatch, error_class: ErrorClass = ErrorClass.STALLED) -> TaskProgress:
    """The attempt fails in w1's hands; how its task stands then."""
    play.say(W1, a_failure(given.attempt_uid, error_class, a_status(free=1, last=given.number)))
    return play.shelf.progress[given.task_id]


def next_attempt(play: Play, task_id: int) -> Dispatch:
    """Wait for what the task waits for; w1 gets it."""
    left_ms = play.shelf.progress[task_id].not_before_ms - play.now.wall_ms
    given = sent(play.wait(max(0, left_ms) / 1000 + 0.001), Dispatch)  # what is stored is rounded
    # After a long wait it has to be heard of before it is fed.
    return the(given or sent(play.say(W1, a_heartbeat(a_status(free=1, last=99))), Dispatch))


def view(play: Play, task_id: int) -> TaskView:
    return the(sent(play.say(MIKA, GetTasks("t", (task_id,))), Tasks)).tasks[0]


def worker_view(play: Play, worker_id: str = "w1") -> WorkerView:
    return the(sent(play.say(BOSS, GetWorkers("w", worker_id)), Workers)).workers[0]


@hypothesis_settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32))
def test_every_wait_before_a_retry_is_within_its_bound_for_any_seed(seed: int) -> None:
    play = a_play(seed=seed)
    attempt = play.dispatched(a_spec(max_attempts=12))
    for failures in range(1, 12):
        progress = fail(play, attempt)
        wait_s = max(0.0, (progress.not_before_ms - play.now.wall_ms) / 1000)
        assert wait_s <= min(300.0, 2.0 * 2 ** (failures - 1))
        attempt = next_attempt(play, progress.task_id)


@pytest.mark.parametrize(("failures", "most_s"), [(1, 2.0), (4, 16.0)])
def test_waits_before_a_retry_are_spread_evenly_over_seeds(failures: int, most_s: float) -> None:
    tenths: Counter[int] = Counter()
    for seed in range(400):
        play = a_play(seed=seed)
        attempt = play.dispatched(a_spec())
        for _ in range(failures - 1):
            attempt = next_attempt(play, fail(play, attempt).task_id)
        wait_s = max(0.0, (fail(play, attempt).not_before_ms - play.now.wall_ms) / 1000)
        tenths[min(9, int(10 * wait_s / most_s))] += 1
    # 40 a tenth are due; 16 away is 2.7 standard deviations, and the seeds are always the same.
    assert all(24 <= tenths[tenth] <= 56 for tenth in range(10)), tenths


@pytest.mark.parametrize("most", [1, 3])
def test_a_tasks_own_number_of_attempts_ends_it_and_the_last_failure_is_named(most: int) -> None:
    play = a_play()
    attempt = play.dispatched(a_spec(max_attempts=most))
    for _ in range(most - 1):
        attempt = next_attempt(play, fail(play, attempt, ErrorClass.OLLAMA_ERROR).task_id)
    progress = fail(play, attempt, ErrorClass.STALLED)
    assert (progress.error_class, progress.error_cause) == (ErrorClass.ATTEMPTS_EXHAUSTED, ErrorClass.STALLED)
    seen = view(play, attempt.task_id)
    assert (seen.error_class, seen.error_cause) == (ErrorClass.ATTEMPTS_EXHAUSTED, ErrorClass.STALLED)


def test_a_failure_that_ends_the_task_by_itself_has_no_other_cause() -> None:
    play = a_play()
    attempt = next_attempt(play, fail(play, play.dispatched(), ErrorClass.OLLAMA_ERROR).task_id)
    progress = fail(play, attempt, ErrorClass.CUT_OUTPUT)
    assert (progress.error_class, progress.error_cause) == (ErrorClass.CUT_OUTPUT, None)


def test_a_task_that_succeeds_after_all_has_no_error() -> None:
    play = a_play()
    progress = fail(play, play.dispatched())
    assert progress.error_cause is ErrorClass.STALLED
    attempt = next_attempt(play, progress.task_id)
    play.say(W1, a_result(attempt.attempt_uid))
    progress = play.shelf.progress[attempt.task_id]
    assert (progress.state, progress.error_class, progress.error_cause) == ("succeeded", None, None)


def test_the_last_failure_before_a_deadline_is_named_over_a_restart() -> None:
    play = a_play()
    fail(play, play.dispatched(a_spec(deadline_s=60)))
    again = play.restart()
    again.wait(60)
    progress = again.shelf.progress[1]
    assert (progress.error_class, progress.error_cause) == (ErrorClass.DEADLINE, ErrorClass.STALLED)


@pytest.mark.parametrize("error_class", [ErrorClass.STALLED, ErrorClass.RUNNER_KILLED, ErrorClass.INPUTS_UNAVAILABLE])
def test_the_worker_that_failed_last_is_avoided_while_another_one_is_there(error_class: ErrorClass) -> None:
    for restarted in (False, True):
        play = a_play(replace(ONE_WORKER, workers=(a_worker("w1", factor=2.0), a_worker("w2"))))
        play.join(W2)
        fail(play, play.dispatched(), error_class)
        if restarted:
            play = play.restart()
            play.join(W1)
            play.join(W2)
        given: list[Dispatch] = []
        for _ in range(4):
            given += sent(play.wait(1), Dispatch)
            given += sent(play.say(W1, a_heartbeat(a_status(free=1, last=99))), Dispatch)
            given += sent(play.say(W2, a_heartbeat(a_status(free=0 if given else 1))), Dispatch)
        assert play.shelf.attempts[the(given).attempt_uid].worker_id == "w2"


def test_the_worker_that_failed_last_may_serve_when_it_is_the_only_one() -> None:
    play = a_play(replace(ONE_WORKER, workers=(a_worker("w1"), a_worker("w2"))))
    attempt = next_attempt(play, fail(play, play.dispatched()).task_id)
    assert play.shelf.attempts[attempt.attempt_uid].worker_id == "w1"


def test_a_worker_that_fails_at_once_does_not_eat_the_queue() -> None:
    settings = replace(some_settings(a_worker("w1", factor=2.0), a_worker("w2")), breaker_failures=5)
    play = a_play(settings)
    play.join(W2)
    play.submit(*(a_spec(str(nth), max_attempts=1) for nth in range(100)))
    last = dict.fromkeys(("w1", "w2"), 0)
    for _ in range(400):  # of 50 ms: w1 fails each time at once, w2 takes a second
        play.wait(0.05)
        for peer in (W1, W2):
            mine = [one for one in play.shelf.attempts.values() if one.worker_id == peer.name]
            running = [one for one in mine if one.state == "running"]
            last[peer.name] = len(mine)
            if running and (peer is W1 or play.now.wall_ms - running[0].started_ms >= 1_000):
                status = a_status(free=1, last=last[peer.name])
                uid = running[0].attempt_uid
                play.say(peer, a_failure(uid, ErrorClass.OLLAMA_ERROR, status) if peer is W1 else a_result(uid, status))
            else:
                status = a_status([one.attempt_uid for one in running], free=1 - len(running), last=last[peer.name])
                play.say(peer, a_heartbeat(status))
    states = Counter(progress.state for progress in play.shelf.progress.values())
    assert (states[TaskState.FAILED], states[TaskState.SUCCEEDED]) == (5, 20)
    shown = worker_view(play)
    assert shown.cooling_down
    assert shown.issue.startswith("failed 5 times in a row (the last: ollama_error): gets one task to try in ")


def test_after_the_cooldown_one_task_is_tried_at_a_time() -> None:
    play = a_play(replace(some_settings(a_worker("w1", slots=4)), breaker_failures=1))
    fail(play, play.dispatched(), ErrorClass.OLLAMA_ERROR)
    play.submit(*(a_spec(str(nth)) for nth in range(9)))
    for _ in range(13):  # the task that failed waits behind them
        play.wait(5)
        play.say(W1, a_heartbeat(a_status(free=4, last=1)))
    assert len(play.shelf.attempts) == 2
    assert worker_view(play).issue.endswith("one task is being tried")
    trial = max(play.shelf.attempts.values(), key=lambda one: one.started_ms)
    # A failure that is the task's fault says nothing: the next one is tried at once, and again one alone.
    given = sent(play.say(W1, a_failure(trial.attempt_uid, ErrorClass.CUT_OUTPUT, a_status(free=4, last=2))), Dispatch)
    assert len(given) == 1
    given = sent(play.say(W1, a_result(given[0].attempt_uid, a_status(free=4, last=3))), Dispatch)
    assert len(given) == 4
    assert worker_view(play).issue == ""


def test_tasks_that_are_to_blame_themselves_open_no_breaker() -> None:
    play = a_play(replace(some_settings(a_worker("w1")), breaker_failures=3))
    for _ in range(10):
        fail(play, play.dispatched(), ErrorClass.EMPTY_OUTPUT)
    assert not worker_view(play).cooling_down


@pytest.mark.parametrize("error_class", [ErrorClass.MODEL_MISSING, ErrorClass.MODEL_UNLOADABLE])
def test_a_worker_without_its_model_rests_before_it_has_ended_the_whole_queue(error_class: ErrorClass) -> None:
    play = a_play(replace(some_settings(a_worker("w1")), breaker_failures=3))
    play.submit(*(a_spec(str(nth)) for nth in range(10)))
    for number in range(1, 10):
        running = [one for one in play.shelf.attempts.values() if one.state == "running"]
        for one in running:
            play.say(W1, a_failure(one.attempt_uid, error_class, a_status(free=1, last=number)))
    states = Counter(progress.state for progress in play.shelf.progress.values())
    assert states == {"failed": 3, "queued": 7}


def test_a_restarted_broker_has_forgotten_the_breaker_and_not_the_rate() -> None:
    play = a_play(replace(some_settings(a_worker("w1")), breaker_failures=1))
    fail(play, play.dispatched(), ErrorClass.OLLAMA_ERROR)
    assert worker_view(play).cooling_down
    again = play.restart()
    again.join(W1)
    again.join(BOSS)
    assert not worker_view(again).cooling_down


def test_deaths_on_different_boots_are_poison_also_over_restarts_of_the_broker() -> None:
    play = a_play()
    play.dispatched()
    for boot in ("b2", "b3"):
        play = play.restart()
        assert len(sent(play.join(W1, an_agent_hello(boot=boot)), Dispatch)) == 1
    play = play.restart()
    effects = play.join(W1, an_agent_hello(boot="b4"))
    progress = play.shelf.progress[1]
    assert (progress.error_class, progress.error_cause) == (ErrorClass.POISON, ErrorClass.AGENT_RESTARTED)
    assert "alert poison:1" in script(effects)
    play.join(MIKA)
    effects = play.say(MIKA, Retry("r", (1,)))
    assert "no alert poison:1" in script(effects)
    assert len(sent(effects, Dispatch)) == 1
    assert play.shelf.progress[1].deaths == ()


def test_no_task_is_tried_more_than_twenty_times_however_freely() -> None:
    play = a_play()
    given = [play.dispatched()]
    while given and len(play.shelf.attempts) < 50:
        uid, number = given[0].attempt_uid, given[0].number
        given = sent(play.say(W1, a_failure(uid, ErrorClass.DRAIN, a_status(free=1, last=number))), Dispatch)
    progress = play.shelf.progress[1]
    assert (progress.attempts, progress.error_class) == (20, ErrorClass.ATTEMPTS_EXHAUSTED)
    assert progress.error_cause is ErrorClass.DRAIN


def test_a_result_of_the_old_generation_that_comes_late_is_history_alone() -> None:
    play = a_play()
    old = play.dispatched(a_spec(deadline_s=10))
    play.wait(10)
    assert play.state_of(1) == "failed"
    play.say(MIKA, Retry("r", (1,)))
    effects = play.say(W1, a_result(old.attempt_uid, a_status(free=1, last=old.number)))
    assert the(sent(effects, ResultStored)).disposition is Disposition.LATE
    assert play.shelf.attempts[old.attempt_uid].state == "late"
    assert play.state_of(1) == "running"
    again = the(sent(effects, Dispatch))
    assert (again.task_id, again.attempt) == (1, 2)
    play.say(W1, a_result(again.attempt_uid))
    assert (play.state_of(1), play.shelf.progress[1].generation) == ("succeeded", 2)


def test_a_task_that_waits_for_a_releasing_slot_says_whose() -> None:
    play = a_play()
    play.say(W1, a_heartbeat(replace(a_status(free=0), releasing=1)))
    play.submit()
    assert view(play, 1).waiting_for == "w1 (its Ollama is still finishing a cancelled call)"
    play.say(W1, a_heartbeat(a_status(free=1)))
    assert play.state_of(1) == "running"


def test_a_busy_slot_and_a_releasing_one_are_told_apart() -> None:
    play = a_play(replace(ONE_WORKER, workers=(a_worker("w1", slots=2), a_worker("w2"))))
    play.join(W2)
    play.say(W1, a_heartbeat(replace(a_status(free=0), releasing=2)))
    play.submit(a_spec("a"), a_spec("b"))
    assert view(play, 2).waiting_for == "a free slot on w2; w1 (its Ollama is still finishing a cancelled call)"


def test_an_agent_of_an_older_release_that_says_nothing_of_releasing_is_simply_busy() -> None:
    play = a_play()
    play.say(W1, a_heartbeat(a_status(free=0)))
    play.submit()
    assert view(play, 1).waiting_for == "a free slot on w1"


def test_a_new_mode_reaches_the_agent_at_once_and_only_when_it_is_new() -> None:
    play = a_play()
    draining = SetWorkerMode("m", "w1", WorkerMode.DRAINING)
    assert the(sent(play.say(BOSS, draining), HeartbeatAck)) == HeartbeatAck(UNASKED, WorkerMode.DRAINING)
    assert sent(play.say(BOSS, draining), HeartbeatAck) == []
    play.close(W1)
    assert sent(play.say(BOSS, SetWorkerMode("m", "w1", WorkerMode.ACTIVE)), HeartbeatAck) == []


def test_a_worker_that_is_away_runs_on_and_is_shown_so() -> None:
    """Whoever drains it and waits must not be told that nothing runs there."""
    play = a_play()
    uid = play.dispatched().attempt_uid
    play.close(W1)
    assert worker_view(play).running == 1
    play.join(W1, an_agent_hello(a_status([uid], free=0, last=1), health=a_health()))
    assert worker_view(play).running == 1
    again = play.restart()
    again.join(BOSS)
    assert worker_view(again).running == 1
    again.wait(31)
    assert worker_view(again).running == 0
