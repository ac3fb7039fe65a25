"""Agents: sessions, heartbeats, leases, adoption, unknown attempts."""

from dataclasses import replace

from koubou_broker.records import Attempt, Parked, TaskProgress, Worker
from koubou_common.errors import Code, ErrorClass
from koubou_common.messages import (
    PROTO_MAX,
    PROTO_MIN,
    Abort,
    Dispatch,
    Error,
    Goodbye,
    ResultStored,
    Welcome,
)
from koubou_common.messages.values import AbortReason, AttemptState, Disposition
from support.core_play import (
    Play,
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
BOSS = an_operator()


def a_play(slots: int = 1) -> Play:
    play = Play(some_settings(a_worker("w1", slots=slots), a_worker("w2", slots=slots)))
    play.join(W1, an_agent_hello(a_status(free=slots)))
    return play


def beat(play: Play, seconds: float, *running: str, free: int = 0, last: int = 1) -> None:
    """Heartbeats every 5 s for a while."""
    for _ in range(round(seconds / 5)):
        play.wait(5)
        play.say(W1, a_heartbeat(a_status(running, free=free, last=last)))


def test_a_heartbeat_renews_what_it_lists() -> None:
    play = a_play()
    uid = play.dispatched().attempt_uid
    beat(play, 300, uid)
    assert play.state_of(1) == "running"


def test_a_heartbeat_renews_nothing_that_it_does_not_list() -> None:
    play = a_play()
    play.dispatched()
    beat(play, 25, last=0)  # the dispatch was lost: its number was never reached
    assert play.state_of(1) == "running"
    beat(play, 5, last=0)
    assert play.shelf.progress[1].deaths == ("w1/" + "b1".ljust(32, "0"),)
    assert "stopped answering" in next(iter(play.shelf.attempts.values())).message


def test_a_lost_dispatch_gives_its_slot_back_with_its_lease() -> None:
    play = a_play()
    play.dispatched()
    beat(play, 25, free=1, last=0)
    play.wait(5)
    effects = play.say(W1, a_heartbeat(a_status(free=1, last=0)))
    assert play.state_of(1) == "running"
    assert [row.number for row in play.shelf.attempts.values()] == [1, 2]
    assert sent(effects, Error) == []


def test_what_is_missing_at_or_below_the_last_dispatch_goes_back_at_once() -> None:
    play = a_play()
    uid = play.dispatched().attempt_uid
    effects = play.say(W1, a_heartbeat(a_status(free=1, last=1)))
    assert script(effects) == [
        "save Attempt, WorkerMetric, Event, TaskProgress, Decided",
        "1 <- HeartbeatAck",
        "1 <- Dispatch",
    ]
    assert play.shelf.attempts[uid].state is AttemptState.LOST
    assert "no longer has it" in play.shelf.attempts[uid].message


def test_what_is_above_the_last_dispatch_is_still_under_way() -> None:
    play = a_play(slots=2)
    first = play.dispatched()
    second = play.dispatched(a_spec("b"))
    effects = play.say(W1, a_heartbeat(a_status([first.attempt_uid], free=1, last=1)))
    assert script(effects) == ["1 <- HeartbeatAck"]
    assert play.shelf.attempts[second.attempt_uid].state is AttemptState.RUNNING


def test_a_restarted_agent_loses_what_it_does_not_list_and_gets_it_again() -> None:
    play = a_play()
    uid = play.dispatched().attempt_uid
    effects = play.join(W1, an_agent_hello(boot="b2"))
    assert script(effects) == [
        "save Worker, Attempt, WorkerMetric, Event, TaskProgress, Decided",
        "close 1",
        "3 <- Welcome",
        "3 <- Dispatch",
    ]
    assert play.shelf.attempts[uid].error_class is ErrorClass.AGENT_RESTARTED


def test_a_reconnected_agent_keeps_what_it_lists() -> None:
    play = a_play()
    uid = play.dispatched().attempt_uid
    effects = play.join(W1, an_agent_hello(a_status([uid], free=0, last=1)))
    assert script(effects) == ["save Worker", "close 1", "3 <- Welcome"]
    assert play.state_of(1) == "running"
    assert play.shelf.attempts[uid].state is AttemptState.RUNNING


def test_what_it_has_spooled_is_not_given_out_again() -> None:
    play = a_play()
    uid = play.dispatched().attempt_uid
    effects = play.join(W1, an_agent_hello(a_status(spooled=[uid], free=1), boot="b2"))
    assert sent(effects, Dispatch) == []
    play.say(W1, a_result(uid))
    assert play.state_of(1) == "succeeded"


def test_an_attempt_found_alive_is_adopted_while_its_task_waits() -> None:
    play = a_play()
    uid = play.dispatched().attempt_uid
    play.wait(31)
    assert play.state_of(1) == "queued"
    effects = play.say(W1, a_heartbeat(a_status([uid], free=0, last=1)))
    assert script(effects) == ["save Attempt, Event, TaskProgress", "no alert silent:w1", "1 <- HeartbeatAck"]
    progress = the(saved(effects, TaskProgress))
    assert (progress.state, progress.deaths, progress.attempts) == ("running", (), 1)
    play.say(W1, a_result(uid))
    assert play.state_of(1) == "succeeded"


def test_a_superseded_attempt_keeps_its_slot_and_is_adopted_when_the_newer_fails() -> None:
    play = a_play()
    old = play.dispatched().attempt_uid
    play.wait(31)
    new = the(sent(play.join(W2), Dispatch)).attempt_uid
    play.submit(a_spec("other"))
    effects = play.say(W1, a_heartbeat(a_status([old], free=0, last=1)))
    assert (sent(effects, Abort), sent(effects, Dispatch)) == ([], [])
    play.say(W2, a_failure(new, ErrorClass.STALLED, a_status(spooled=[new], free=0, last=1)))
    assert play.state_of(1) == "queued"
    play.say(W1, a_heartbeat(a_status([old], free=0, last=1)))
    assert play.state_of(1) == "running"
    play.say(W1, a_result(old))
    assert play.shelf.attempts[old].state is AttemptState.SUCCEEDED


def test_leases_run_from_the_moment_their_batch_is_durable() -> None:
    play = a_play()
    play.durable = False
    play.dispatched()
    play.wait(100)
    assert play.state_of(1) == "running"
    play.make_durable()
    play.wait(29)
    assert play.state_of(1) == "running"
    play.wait(1)
    assert play.state_of(1) == "queued"


def test_only_the_batches_on_disk_start_their_leases() -> None:
    play = a_play(slots=2)
    play.durable = False
    play.dispatched()
    first = play.core.end_batch()
    play.dispatched(a_spec("b"))
    second = play.core.end_batch()
    assert (first, second - first) == (first, 1)
    play.core.durable(first, play.now)
    play.wait(31)
    assert (play.state_of(1), play.state_of(2)) == ("queued", "running")


def test_a_gap_in_reading_is_nobodys_silence() -> None:
    play = a_play()
    uid = play.dispatched().attempt_uid
    play.now = replace(play.now, mono_s=play.now.mono_s + 3_600)
    play.core.stretch(3_600, play.now)
    assert script(play.core.tick(play.now)) == []
    play.wait(29)
    assert play.shelf.attempts[uid].state is AttemptState.RUNNING
    play.wait(1)
    assert play.shelf.attempts[uid].state is AttemptState.LOST


def test_a_gap_in_reading_makes_no_worker_silent() -> None:
    play = a_play()
    play.now = replace(play.now, mono_s=play.now.mono_s + 3_600)
    play.core.stretch(3_600, play.now)
    assert len(sent(play.submit(), Dispatch)) == 1


def test_a_heartbeat_renews_what_is_spooled_too() -> None:
    play = a_play()
    uid = play.dispatched().attempt_uid
    for _ in range(10):
        play.wait(5)
        play.say(W1, a_heartbeat(a_status(spooled=[uid], free=0, last=1)))
    assert play.state_of(1) == "running"


def test_a_lost_session_ends_no_attempt() -> None:
    play = a_play()
    uid = play.dispatched().attempt_uid
    play.close(W1)
    play.wait(20)
    assert play.state_of(1) == "running"
    play.join(W1, an_agent_hello(a_status([uid], free=0)))
    play.wait(29)
    assert play.state_of(1) == "running"


def test_a_silent_worker_gets_nothing_more() -> None:
    play = a_play()
    play.wait(16)
    assert sent(play.submit(), Dispatch) == []
    assert len(sent(play.say(W1, a_heartbeat()), Dispatch)) == 1


def test_the_first_message_twice_is_one_session() -> None:
    play = a_play()
    effects = play.say(W1, an_agent_hello())
    assert script(effects) == ["save Worker", "1 <- Welcome"]


def test_numbers_of_dispatches_go_on_in_a_session_that_the_broker_forgot() -> None:
    play = a_play()
    play.dispatched()
    effects = play.join(W1, an_agent_hello(a_status(free=1, last=7)))
    assert the(sent(effects, Dispatch)).number == 8


def test_an_unknown_session_must_say_hello() -> None:
    play = a_play()
    error = refusal(play.say(W1, a_heartbeat(), session=77))
    assert (error.code, error.request_id) == (Code.HELLO_REQUIRED, "")


def test_another_key_on_a_session_must_say_hello() -> None:
    play = a_play()
    assert refusal(play.say(W2, a_heartbeat(), session=play.session_of(W1))).code is Code.HELLO_REQUIRED


def test_a_protocol_from_another_time_is_refused_with_both_ranges() -> None:
    play = Play()
    error = refusal(play.join(W1, replace(an_agent_hello(), proto_min=7, proto_max=9)))
    assert error.code is Code.VERSION
    assert f"protocol {PROTO_MIN}-{PROTO_MAX}" in error.message
    assert "7-9" in error.message


def test_what_runs_and_nobody_knows_is_aborted() -> None:
    play = a_play()
    stranger = "f" * 32
    effects = play.say(W1, a_heartbeat(a_status([stranger], free=0)))
    assert script(effects) == ["1 <- HeartbeatAck", "look up FindAttempt", "1 <- Abort"]
    assert the(sent(effects, Abort)).reason is AbortReason.UNKNOWN


def test_what_runs_of_an_ended_task_is_aborted_as_over() -> None:
    play = a_play()
    uid = play.dispatched().attempt_uid
    play.say(W1, a_result(uid))
    effects = play.say(W1, a_heartbeat(a_status([uid], free=0, last=1)))
    assert the(sent(effects, Abort)).reason is AbortReason.OVER


def test_the_result_of_an_unknown_attempt_is_parked_and_reported() -> None:
    play = a_play()
    effects = play.say(W1, a_result("f" * 32))
    assert script(effects) == ["look up FindAttempt", "save Parked", "1 <- ResultStored", "alert parked:w1"]
    assert the(sent(effects, ResultStored)).disposition is Disposition.PARKED
    assert the(saved(effects, Parked)).raw is not None


def test_nobody_delivers_for_another_worker() -> None:
    play = a_play()
    uid = play.dispatched().attempt_uid
    play.join(W2)
    effects = play.say(W2, a_result(uid))
    assert the(sent(effects, ResultStored)).disposition is Disposition.PARKED
    assert play.state_of(1) == "running"


def test_an_agent_cannot_end_a_task_in_the_brokers_name() -> None:
    play = a_play()
    uid = play.dispatched().attempt_uid
    play.say(W1, a_failure(uid, ErrorClass.DEADLINE))
    assert play.state_of(1) == "queued"
    assert play.shelf.attempts[uid].error_class is ErrorClass.AGENT_ERROR


def test_goodbye_hands_back_at_once_what_is_not_spooled() -> None:
    play = a_play(slots=2)
    first, second = play.dispatched(), play.dispatched(a_spec("b"))
    effects = play.say(W1, Goodbye(a_status([first.attempt_uid], [second.attempt_uid], free=0, last=2)))
    assert script(effects) == ["save Attempt, WorkerMetric, Event, TaskProgress", "close 1"]
    assert (play.state_of(1), play.state_of(2)) == ("queued", "running")
    assert play.shelf.attempts[first.attempt_uid].error_class is ErrorClass.DRAIN


def test_an_ollama_that_is_down_does_not_forget_its_models() -> None:
    play = a_play()
    down = replace(a_health(), ollama_ok=False, models=())
    assert saved(play.say(W1, a_heartbeat(health=down)), Worker) == []


def test_progress_in_heartbeats_is_shown() -> None:
    play = a_play()
    uid = play.dispatched().attempt_uid
    status = a_status([uid], free=0, last=1)
    busy = replace(status, running=(replace(status.running[0], tokens=42),))
    play.say(W1, a_heartbeat(busy))
    assert play.core._state.attempts[uid].tokens == 42
    assert saved(play.say(W1, a_result(uid)), Attempt)[0].state is AttemptState.SUCCEEDED


def test_a_look_with_the_workers_key_tells_all_and_disturbs_nothing() -> None:
    play = a_play()
    uid = play.dispatched().attempt_uid
    theirs = play.session_of(W1)
    effects = play.say(W1, replace(an_agent_hello(boot="b9"), looks_only=True), session=77)
    welcome = the(sent(effects, Welcome))
    assert script(effects) == ["77 <- Welcome"]
    assert (welcome.session, welcome.worker.worker_id) == (0, "w1")
    assert welcome.now_ms > 0
    assert welcome.software.startswith("koubou-broker")
    assert play.state_of(1) == "running"
    play.say(W1, a_result(uid), session=theirs)
    assert play.state_of(1) == "succeeded"
