"""What every ended attempt leaves behind, and what the core makes of it: factors, limits, bounded failures."""

from dataclasses import replace

import pytest

from koubou_broker.core_settings import CoreSettings, PerformanceSettings
from koubou_broker.records import FactorChange, Worker, WorkerMetric
from koubou_common.errors import Code, ErrorClass
from koubou_common.messages import Cancel, Dispatch, Error, GetStats, GetWorkers, Goodbye, Stats, Workers
from koubou_common.messages.values import Metrics, Option, WorkerLimits, WorkerView
from support.core_play import (
    MODEL,
    Play,
    a_client,
    a_failure,
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

W1, W2 = an_agent("w1"), an_agent("w2")
BOSS, MIKA = an_operator(), a_client()
UPDATE_S = 300.0
# 500 tokens a second read, 40 said.
RUN = Metrics(
    prompt_tokens=1_000,
    thinking_tokens=100,
    output_tokens=300,
    load_ms=8_000,
    first_token_ms=2_100,
    prompt_ms=2_000,
    eval_ms=10_000,
    total_ms=21_000,
    slot_wait_ms=30,
)
HALF = replace(RUN, prompt_ms=4_000, eval_ms=20_000)


def a_play(settings: CoreSettings | None = None) -> Play:
    """A local worker and a remote one, whose configured factor is wrong."""
    house = settings or some_settings(a_worker("w1"), a_worker("w2", location="remote", factor=1.5))
    play = Play(house)
    for worker in house.workers:
        play.join(an_agent(worker.worker_id), an_agent_hello(a_status(free=worker.slots)))
    return play


def run(play: Play, worker: str, metrics: Metrics, times: int = 1) -> None:
    """So many successes of one worker."""
    for _ in range(times):
        play.say(an_agent(worker), a_heartbeat(a_status(last=99)))
        dispatch = play.dispatched(a_spec(worker=worker, size_bytes=4_000))
        uid = dispatch.attempt_uid
        status = a_status(spooled=[uid], last=dispatch.number)
        play.say(an_agent(worker), replace(a_result(uid, status), metrics=metrics))


def shown(play: Play, worker_id: str = "w2") -> WorkerView:
    """What `workers show` is told."""
    play.join(MIKA)
    return the(the(sent(play.say(MIKA, GetWorkers("r", worker_id)), Workers)).workers)


def test_a_success_leaves_all_its_numbers() -> None:
    play = a_play()
    dispatch = play.dispatched(a_spec(worker="w1", size_bytes=5_000))
    result = a_result(dispatch.attempt_uid, a_status(spooled=[dispatch.attempt_uid], last=1))
    play.say(W1, replace(result, metrics=RUN, model="GPT-OSS:20B"))
    assert play.shelf.metrics == [
        WorkerMetric(
            worker_id="w1",
            task_id=1,
            execution_time_ms=21_000,
            tokens_processed=1_400,
            prompt_length=6_150,
            output_length=6,
            success=True,
            error_type="",
            measured_ms=play.now.wall_ms,
            model=MODEL,
            prompt_tokens=1_000,
            output_tokens=300,
            eval_ms=10_000,
            thinking_tokens=100,
            prompt_ms=2_000,
            load_ms=8_000,
            first_token_ms=2_100,
            slot_wait_ms=30,
        )
    ]


def test_a_failure_leaves_its_class_and_what_it_cost() -> None:
    play = a_play()
    dispatch = play.dispatched(a_spec(worker="w1"))
    failure = a_failure(dispatch.attempt_uid, ErrorClass.STALLED)
    play.say(W1, replace(failure, metrics=replace(RUN, output_tokens=3)))
    row = the(play.shelf.metrics)
    assert (row.success, row.error_type, row.output_length) == (False, "stalled", 0)
    assert (row.model, row.prompt_tokens, row.output_tokens, row.load_ms) == (MODEL, 1_000, 3, 8_000)


def test_a_lost_attempt_is_one_that_ended() -> None:
    play = a_play()
    play.dispatched(a_spec(worker="w1"))
    play.wait(play.settings.lease_s + 1)
    row = the(play.shelf.metrics)
    assert (row.error_type, row.success, row.tokens_processed) == ("agent_lost", False, 0)
    assert 30_000 <= row.execution_time_ms <= 31_000


def test_work_handed_back_leaves_a_row_and_does_not_speak_against_the_worker() -> None:
    play = a_play()
    uid = play.dispatched(a_spec(worker="w1")).attempt_uid
    play.say(W1, Goodbye(a_status([uid], free=0, last=1)))
    assert the(play.shelf.metrics).error_type == "drain"
    assert shown(play, "w1").success_rate == 1.0


def test_a_cancelled_attempt_is_aborted_once_whatever_its_agent_says_later() -> None:
    play = a_play()
    dispatch = play.dispatched(a_spec(worker="w1"))
    running = a_status([dispatch.attempt_uid], last=1, free=0)
    progress = replace(running.running[0], tokens=77)
    play.say(W1, a_heartbeat(replace(running, running=(progress,))))
    play.say(MIKA, Cancel("c", task_ids=(dispatch.task_id,)))
    row = the(play.shelf.metrics)
    assert (row.error_type, row.success, row.output_tokens) == ("aborted", False, 77)
    play.say(W1, a_failure(dispatch.attempt_uid, ErrorClass.CONNECTION_LOST))
    assert play.shelf.metrics == [row]
    assert shown(play, "w1").success_rate == 1.0


def test_a_failure_told_after_the_attempt_was_lost_is_no_second_end() -> None:
    play = a_play()
    dispatch = play.dispatched(a_spec(worker="w1"))
    play.wait(play.settings.lease_s + 1)
    play.say(W1, a_failure(dispatch.attempt_uid, ErrorClass.STALLED))
    assert [row.error_type for row in play.shelf.metrics] == ["agent_lost"]


def test_factors_follow_the_runs_and_their_history_is_kept() -> None:
    play = a_play()
    run(play, "w1", RUN, 5)
    run(play, "w2", HALF, 5)
    assert (shown(play).performance_factor, shown(play).factor_samples) == (1.5, 0)
    effects = play.wait(UPDATE_S)
    change = the(saved(effects, FactorChange))
    assert (change.worker_id, change.factor, change.samples) == ("w2", 0.5, 5)
    assert change.baseline == "the local workers"
    assert the(saved(effects, Worker)).performance_factor == 0.5
    view = shown(play)
    assert (view.performance_factor, view.configured_factor, view.factor_samples) == (0.5, 1.5, 5)


def test_an_update_that_changes_nothing_writes_nothing() -> None:
    play = a_play()
    run(play, "w1", RUN, 5)
    run(play, "w2", HALF, 5)
    play.wait(UPDATE_S)
    run(play, "w2", HALF)
    assert saved(play.wait(UPDATE_S), FactorChange) == []


def test_failures_make_nobody_fast() -> None:
    play = a_play()
    run(play, "w1", RUN, 5)
    for _ in range(4):
        uid = play.dispatched(a_spec(worker="w2")).attempt_uid
        quick = replace(RUN, total_ms=50, prompt_ms=1, eval_ms=1)
        play.say(W2, replace(a_failure(uid, ErrorClass.EMPTY_OUTPUT), metrics=quick))
    run(play, "w2", HALF, 4)
    assert saved(play.wait(UPDATE_S), FactorChange) == []


def test_a_restart_goes_on_with_measured_factors_and_rates_before_anything_is_dispatched() -> None:
    play = a_play()
    run(play, "w1", RUN, 5)
    run(play, "w2", HALF, 5)
    play.wait(UPDATE_S)
    again = play.restart()
    assert saved(again.started, FactorChange) == []
    view = shown(again)
    assert (view.performance_factor, view.factor_samples) == (0.5, 5)
    assert (view.windows[0].prompt_tokens_per_s, view.windows[0].output_tokens_per_s) == (250.0, 20.0)


def test_a_restart_after_the_window_counts_the_configured_factor_again_and_says_so() -> None:
    play = a_play()
    run(play, "w1", RUN, 5)
    run(play, "w2", HALF, 5)
    play.wait(2 * 86_400.0)
    assert shown(play).performance_factor == 0.5  # nothing new was learned meanwhile
    again = play.restart()
    change = the(saved(again.started, FactorChange))
    assert (change.worker_id, change.factor, change.samples) == ("w2", 1.5, 0)
    assert "configured" in change.baseline


def test_a_workshop_where_nothing_runs_asks_the_store_nothing() -> None:
    play = a_play()
    run(play, "w1", RUN)
    play.wait(UPDATE_S)
    for peer in (W1, W2):
        play.close(peer)
    play.wait(86_400.0)
    assert play.core.next_deadline is None


def test_an_update_that_the_store_cannot_answer_is_tried_again_after_the_next_run() -> None:
    play = a_play()
    run(play, "w1", RUN, 5)
    run(play, "w2", HALF, 5)
    play.answering = False
    play.wait(UPDATE_S)
    for question in play.questions:
        play.core.not_found(question.token, play.now)
    play.questions.clear()
    play.answering = True
    run(play, "w2", HALF)
    play.wait(UPDATE_S)
    assert shown(play).performance_factor == 0.5


def test_stats_are_answered_to_clients_with_the_history_of_factors() -> None:
    play = a_play()
    run(play, "w1", RUN, 5)
    run(play, "w2", HALF, 5)
    play.wait(UPDATE_S)
    play.join(MIKA)
    stats = the(sent(play.say(MIKA, GetStats("r", hours=24)), Stats))
    assert [(one.worker_id, one.total, one.successful, one.success_rate) for one in stats.workers] == [
        ("w1", 5, 5, 1.0),
        ("w2", 5, 5, 1.0),
    ]
    assert [(one.worker_id, one.factor) for one in stats.factors] == [("w2", 0.5)]
    only = the(sent(play.say(MIKA, GetStats("r", hours=24, worker_id="w1")), Stats))
    assert [one.worker_id for one in only.workers] == ["w1"]
    play.wait(2 * 3_600.0)
    assert the(sent(play.say(MIKA, GetStats("r", hours=1)), Stats)).workers == ()


def test_stats_of_a_worker_that_never_was_are_refused() -> None:
    play = a_play()
    play.join(MIKA)
    assert refusal(play.say(MIKA, GetStats("r", worker_id="w9"))).code is Code.NOT_FOUND


def test_stats_are_worked_out_once_at_a_time_for_each_client() -> None:
    play = a_play()
    play.join(MIKA)
    play.answering = False
    play.say(MIKA, GetStats("r1"))
    busy = refusal(play.say(MIKA, GetStats("r2")))
    assert (busy.code, busy.request_id, busy.retry_after_s) == (Code.BUSY, "r2", 1.0)
    first = play.session_of(MIKA)
    play.join(MIKA)
    assert refusal(play.say(MIKA, GetStats("r3"))).code is Code.BUSY, "in all its sessions together"
    question = the(play.questions)
    play.questions.clear()
    failed = the(sent(play.step(play.core.not_found(question.token, play.now)), Error))
    assert (failed.code, failed.request_id) == (Code.INTERNAL, "r1")
    play.say(MIKA, GetStats("r4"), first)
    assert the(sent(play.answer_questions(), Stats)).request_id == "r4"


def test_limits_follow_the_measured_rates_and_a_tasks_own_timeout_beats_them() -> None:
    worker = replace(
        a_worker("w1"),
        limits=WorkerLimits(first_token_s=2.0, total_s=3_600.0),
        total_least_s=60.0,
        thinking_allowance=0,
        options=(Option("num_ctx", 8_192), Option("num_predict", 1_000)),
    )
    play = a_play(some_settings(worker))
    dispatch = play.dispatched(a_spec(worker="w1", size_bytes=4_000))
    assert (dispatch.first_token_s, dispatch.total_s) == (None, None)
    play.say(W1, replace(a_result(dispatch.attempt_uid), metrics=RUN))
    run(play, "w1", RUN, 4)
    # 3 x (8,192 / 500) at most; 3 x (reading + 1,000 / 40 + 8)
    window = shown(play, "w1").windows[0]
    assert window.first_token_limit_s == pytest.approx(49.152)
    assert window.total_limit_s == pytest.approx(3 * (16.384 + 25 + 8))
    large = play.dispatched(a_spec(worker="w1", size_bytes=60_000))
    assert large.first_token_s == pytest.approx(49.152)
    assert large.total_s == pytest.approx(3 * (16.384 + 25 + 8))
    play.say(W1, a_result(large.attempt_uid))
    small = play.dispatched(a_spec(worker="w1", options=[Option("num_predict", 10)]))
    assert (small.first_token_s, small.total_s) == (2.0, 60.0)
    play.say(W1, a_result(small.attempt_uid))
    own = play.dispatched(replace(a_spec(worker="w1"), timeout_s=20.0))
    assert (own.timeout_s, own.total_s) == (20.0, None)


@pytest.mark.parametrize("slots", [1, 2, 4, 8, 32])
def test_a_worker_that_fails_at_once_gets_five_tasks_before_its_breaker_opens(slots: int) -> None:
    play = a_play(some_settings(a_worker("w1", slots=slots)))
    dispatches = sent(play.submit(*(a_spec() for _ in range(100))), Dispatch)
    got, in_hand = len(dispatches), list(dispatches)
    while in_hand:
        play.wait(0.05)
        failed = in_hand.pop(0)
        left = [one.attempt_uid for one in in_hand]
        status = a_status(left, [failed.attempt_uid], free=slots - len(left), last=got)
        new = sent(play.say(W1, a_failure(failed.attempt_uid, ErrorClass.RUNNER_KILLED, status)), Dispatch)
        got += len(new)
        in_hand += new
    assert got == 5
    assert shown(play, "w1").cooling_down


@pytest.mark.parametrize("slots", [2, 4, 8])
def test_failures_that_its_agent_tells_all_together_open_the_breaker_as_soon(slots: int) -> None:
    play = a_play(some_settings(a_worker("w1", slots=slots)))
    in_hand = sent(play.submit(*(a_spec() for _ in range(100))), Dispatch)
    got = len(in_hand)
    while in_hand and not shown(play, "w1").cooling_down:
        play.wait(0.05)
        # All are over before the first is told: each status says that every slot is free.
        told, in_hand = list(in_hand), []
        for nth, failed in enumerate(told):
            status = a_status(spooled=[one.attempt_uid for one in told[nth:]], free=slots, last=told[-1].number)
            in_hand += sent(play.say(W1, a_failure(failed.attempt_uid, ErrorClass.RUNNER_KILLED, status)), Dispatch)
        got += len(in_hand)
    assert got == 5
    assert shown(play, "w1").cooling_down


def test_after_the_cooldown_nothing_more_is_tried_before_the_trials_outcome_is_told() -> None:
    house = replace(some_settings(a_worker("w1", slots=2)), breaker_failures=1, breaker_cooldown_s=10.0)
    play = a_play(house)
    first = the(sent(play.submit(*(a_spec() for _ in range(9))), Dispatch))
    play.say(W1, a_failure(first.attempt_uid, ErrorClass.RUNNER_KILLED, a_status(free=2, last=1)))
    trial = the(sent([*play.wait(10.0), *play.say(W1, a_heartbeat(a_status(free=2, last=1)))], Dispatch))
    # Over already, and how is still on its way.
    over = a_status(spooled=[trial.attempt_uid], free=2, last=trial.number)
    assert sent(play.say(W1, a_heartbeat(over)), Dispatch) == []
    assert len(sent(play.say(W1, a_result(trial.attempt_uid, a_status(free=2, last=trial.number))), Dispatch)) == 2


def test_a_worker_that_has_shown_what_it_can_gets_all_its_slots() -> None:
    play = a_play(some_settings(a_worker("w1", slots=8)))
    dispatch = play.dispatched()
    play.say(W1, a_result(dispatch.attempt_uid, a_status(free=8, last=1)))
    assert len(sent(play.submit(*(a_spec() for _ in range(20))), Dispatch)) == 8


def test_one_failure_of_a_proven_worker_leaves_it_what_the_breaker_leaves() -> None:
    play = a_play(some_settings(a_worker("w1", slots=8)))
    dispatch = play.dispatched()
    play.say(W1, a_result(dispatch.attempt_uid, a_status(free=8, last=1)))
    dispatch = play.dispatched()
    play.say(W1, a_failure(dispatch.attempt_uid, ErrorClass.STALLED, a_status(free=8, last=2)))
    assert len(sent(play.submit(*(a_spec() for _ in range(20))), Dispatch)) == 4


def test_one_failure_of_one_does_not_make_a_worker_worthless() -> None:
    play = a_play()
    uid = play.dispatched(a_spec(worker="w1")).attempt_uid
    play.say(W1, a_failure(uid, ErrorClass.STALLED))
    view = shown(play, "w1")
    assert (view.succeeded, view.failed, view.success_rate) == (0, 1, 0.75)


def test_the_last_health_check_is_the_agents_last_sign_of_life_and_is_kept() -> None:
    play = a_play()
    play.wait(61.0)
    effects = play.say(W1, replace(a_heartbeat(), latency_ms=7))
    row = the(saved(effects, Worker))
    assert (row.network_latency_ms, row.last_health_check_ms) == (7, play.now.wall_ms)
    view = shown(play, "w1")
    assert (view.latency_ms, view.last_seen_ms) == (7, play.now.wall_ms)


def test_only_what_the_settings_call_enough_is_measured() -> None:
    house = some_settings(a_worker("w1"), a_worker("w2", location="remote", factor=1.5))
    house = replace(house, performance=PerformanceSettings(update_s=10.0, window_s=60.0, min_samples=2))
    play = a_play(house)
    run(play, "w1", RUN, 2)
    run(play, "w2", HALF, 2)
    play.wait(10.0)
    assert shown(play).performance_factor == 0.5
