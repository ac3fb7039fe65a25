"""Dialogues with the agent's core: sessions, dispatches, aborts, heartbeats."""

import logging

import pytest

from koubou_agent.core.core import EXIT_REMOVED
from koubou_agent.core.session import HELLO_AGAIN_S
from koubou_agent.effects import Effect, Exit, Log, SpoolWrite, StartAttempt, StopAttempt, WipeCaches
from koubou_common.errors import Code
from koubou_common.messages import (
    UNASKED,
    Abort,
    AgentHello,
    Error,
    Failure,
    Heartbeat,
    HeartbeatAck,
    Removed,
    Result,
)
from koubou_common.messages.values import AbortReason, AgentHealth, WorkerMode
from support.agent_play import (
    EPOCH,
    HEALTHY,
    SESSION,
    WORKER,
    Play,
    a_dispatch,
    a_failure,
    a_success,
    a_welcome,
    none_of,
    only,
    sent,
    uid,
)


def test_a_new_connection_begins_with_a_hello_that_lists_all_that_is_held() -> None:
    play = Play([a_success(9)])
    hello = only(AgentHello, sent(play.connect()))
    assert hello.status.spooled == (uid(9),)
    assert hello.status.running == ()


def test_an_unanswered_hello_is_repeated() -> None:
    play = Play()
    play.connect()
    assert sent(play.wait(HELLO_AGAIN_S - 0.1)) == []
    only(AgentHello, sent(play.wait(0.2)))


def test_a_dispatch_of_this_session_starts_with_the_settings_of_the_welcome() -> None:
    play = Play()
    play.welcomed()
    assert only(StartAttempt, play.hear(a_dispatch(1))) == StartAttempt(a_dispatch(1), WORKER)
    assert play.core.status().free_slots == 1
    assert play.core.status().last_dispatch == 1


def test_a_dispatch_of_another_session_is_dropped() -> None:
    play = Play()
    play.welcomed()
    assert play.hear(a_dispatch(1, session=SESSION - 1)) == []
    assert play.core.status().last_dispatch == 0


def test_a_message_of_an_older_term_is_dropped() -> None:
    play = Play()
    play.welcomed()
    assert play.hear(a_dispatch(1), epoch=EPOCH - 1) == []
    assert play.core.status().running == ()


def test_a_doubled_dispatch_starts_once_even_after_its_end() -> None:
    play = Play()
    play.welcomed()
    play.hear(a_dispatch(1))
    assert none_of(StartAttempt, play.hear(a_dispatch(1)))
    play.end(1, a_success(1))
    assert none_of(StartAttempt, play.hear(a_dispatch(1)))


def test_a_new_term_in_the_same_connection_is_greeted_anew() -> None:
    play = Play()
    play.welcomed()
    only(AgentHello, sent(play.hear(HeartbeatAck(0, WorkerMode.ACTIVE), epoch=EPOCH + 1)))
    assert play.hear(a_dispatch(1), epoch=EPOCH + 1) == []
    play.hear(a_welcome(session=SESSION), epoch=EPOCH + 1)
    only(StartAttempt, play.hear(a_dispatch(1), epoch=EPOCH + 1))


def test_the_count_of_dispatches_begins_anew_with_the_session() -> None:
    play = Play()
    play.welcomed()
    play.hear(a_dispatch(1))
    play.core.disconnected(play.now)
    play.welcomed(session=SESSION + 1)
    assert play.core.status().last_dispatch == 0
    assert [item.uid for item in play.core.status().running] == [uid(1)]


def test_a_lost_connection_stops_nothing() -> None:
    play = Play()
    play.welcomed()
    play.hear(a_dispatch(1))
    assert none_of(StopAttempt, play.core.disconnected(play.now))
    assert only(SpoolWrite, play.end(1, a_success(1))).outcome == a_success(1)
    assert sent(play.spooled(1)) == []
    result = only(Result, sent(play.welcomed(session=SESSION + 1)))
    assert result.attempt_uid == uid(1)


def test_heartbeats_come_at_the_pace_of_the_welcome_and_list_what_runs() -> None:
    play = Play()
    play.welcomed()
    play.hear(a_dispatch(1))
    play.core.progress(uid(1), "answering", 42)
    assert sent(play.wait(4.9)) == []
    heartbeat = only(Heartbeat, sent(play.wait(0.2)))
    assert [(item.uid, item.phase, item.tokens) for item in heartbeat.status.running] == [(uid(1), "answering", 42)]
    assert heartbeat.status.free_slots == 1


def test_the_round_trip_of_a_heartbeat_is_told_with_the_next_one() -> None:
    play = Play()
    play.welcomed()
    first = only(Heartbeat, sent(play.wait(5.0)))
    play.now += 0.25
    play.hear(HeartbeatAck(first.sent_ms, WorkerMode.ACTIVE))
    assert only(Heartbeat, sent(play.wait(5.0))).latency_ms == 250


def test_a_word_of_the_broker_that_answers_no_heartbeat_is_no_round_trip() -> None:
    play = Play()
    play.now = 20.0  # a box that was started 20 s ago: its clock is as small as a latency
    play.welcomed()
    play.hear(HeartbeatAck(UNASKED, WorkerMode.PAUSED))
    assert only(Heartbeat, sent(play.wait(5.0))).latency_ms == 0


def test_a_change_of_health_is_told_at_once() -> None:
    play = Play()
    play.welcomed()
    ill = AgentHealth(ollama_ok=False, issue="Ollama stopped answering", can_work=False)
    heartbeat = only(Heartbeat, sent(play.core.health(ill, play.now)))
    assert heartbeat.health == ill
    assert heartbeat.status.free_slots == 0
    assert sent(play.core.health(ill, play.now)) == []


def test_health_is_told_with_each_heartbeat_until_one_that_tells_it_was_answered() -> None:
    play = Play()
    play.welcomed()
    before = only(Heartbeat, sent(play.wait(5.0)))
    assert before.health == HEALTHY
    ill = AgentHealth(ollama_ok=False, issue="Ollama stopped answering", can_work=False)
    play.now += 1.0
    only(Heartbeat, sent(play.core.health(ill, play.now)))
    play.hear(HeartbeatAck(before.sent_ms, WorkerMode.ACTIVE))
    again = only(Heartbeat, sent(play.wait(5.0)))
    assert again.health == ill
    play.hear(HeartbeatAck(again.sent_ms, WorkerMode.ACTIVE))
    assert only(Heartbeat, sent(play.wait(5.0))).health is None


def test_hello_required_is_answered_with_one_hello_a_second() -> None:
    play = Play()
    play.welcomed()
    play.now += 10
    refusal = Error(Code.HELLO_REQUIRED, "say hello")
    only(AgentHello, sent(play.hear(refusal)))
    assert none_of(AgentHello, sent(play.hear(refusal)))
    only(AgentHello, sent(play.wait(1.0)))


def test_a_broker_that_is_connected_but_silent_is_greeted_again() -> None:
    play = Play()
    play.welcomed()
    messages = [message for _ in range(30) for message in sent(play.wait(1.0))]
    only(AgentHello, messages)


def test_an_aborted_attempt_is_stopped_and_its_end_told_by_its_absence() -> None:
    play = Play()
    play.welcomed()
    play.hear(a_dispatch(1))
    stop = only(StopAttempt, play.hear(Abort(uid(1), AbortReason.CANCELLED)))
    assert stop.error_class is None
    assert [item.uid for item in play.core.status().running] == [uid(1)]  # the slot is not free yet
    effects = play.end(1, a_success(1))
    assert none_of(SpoolWrite, effects)
    assert only(Heartbeat, sent(effects)).status.running == ()


def test_a_doubled_abort_stops_once() -> None:
    play = Play()
    play.welcomed()
    play.hear(a_dispatch(1))
    play.hear(Abort(uid(1), AbortReason.CANCELLED))
    assert none_of(StopAttempt, play.hear(Abort(uid(1), AbortReason.CANCELLED)))


def test_a_success_that_an_unknowing_broker_aborted_is_kept() -> None:
    play = Play()
    play.welcomed()
    play.hear(a_dispatch(1))
    play.hear(a_dispatch(2))
    play.hear(Abort(uid(1), AbortReason.UNKNOWN))
    play.hear(Abort(uid(2), AbortReason.UNKNOWN))
    only(SpoolWrite, play.end(1, a_success(1)))
    assert none_of(SpoolWrite, play.end(2, a_failure(2)))


def test_more_than_the_slots_waits_and_starts_when_one_is_free() -> None:
    play = Play()
    play.welcomed(slots=1)
    play.hear(a_dispatch(1))
    assert none_of(StartAttempt, play.hear(a_dispatch(2)))
    assert play.core.status().free_slots == 0
    assert only(StartAttempt, play.end(1, a_failure(1))).dispatch.attempt_uid == uid(2)


def test_a_waiting_attempt_that_is_aborted_never_starts() -> None:
    play = Play()
    play.welcomed(slots=1)
    play.hear(a_dispatch(1))
    play.hear(a_dispatch(2))
    only(Heartbeat, sent(play.hear(Abort(uid(2), AbortReason.CANCELLED))))
    assert none_of(StartAttempt, play.end(1, a_failure(1)))


def test_the_agents_own_ceiling_bounds_the_slots() -> None:
    play = Play(ceiling=1)
    assert only(AgentHello, sent(play.connect())).status.free_slots == 1
    play.hear(a_welcome(slots=4))
    play.hear(a_dispatch(1))
    assert none_of(StartAttempt, play.hear(a_dispatch(2)))


def test_slots_that_this_box_does_not_give_are_warned_of_once() -> None:
    play = Play(ceiling=1)
    play.connect()
    (warning,) = [effect for effect in play.hear(a_welcome(slots=4)) if is_warning(effect)]
    assert "ollama_parallel" in str(warning)
    assert not [effect for effect in play.hear(a_welcome(slots=4)) if is_warning(effect)]
    assert not [effect for effect in play.hear(a_welcome(slots=1)) if is_warning(effect)]


def is_warning(effect: Effect) -> bool:
    return isinstance(effect, Log) and effect.level == logging.WARNING


def test_a_releasing_slot_is_not_offered_and_its_freedom_is_told_at_once() -> None:
    play = Play()
    play.welcomed(slots=1)
    play.core.releasing(1, play.now)
    assert (play.core.status().free_slots, play.core.status().releasing) == (0, 1)
    assert none_of(StartAttempt, play.hear(a_dispatch(1)))
    effects = play.core.releasing(0, play.now)
    only(StartAttempt, effects)
    only(Heartbeat, sent(effects))


def test_a_draining_worker_hands_back_what_has_not_begun_and_finishes_the_rest() -> None:
    play = Play()
    play.welcomed(slots=1)
    play.hear(a_dispatch(1))
    play.hear(a_dispatch(2))
    effects = play.hear(HeartbeatAck(UNASKED, WorkerMode.DRAINING))
    assert only(SpoolWrite, effects).outcome.attempt_uid == uid(2)
    assert none_of(StopAttempt, effects)
    assert only(Failure, sent(play.spooled(2))).error_class == "drain"


def test_a_removed_worker_wipes_its_caches_keeps_its_spool_and_ends() -> None:
    play = Play([a_success(9)])
    play.welcomed()
    play.hear(a_dispatch(1))
    effects = play.hear(Removed())
    assert [type(effect) for effect in effects] == [StopAttempt, WipeCaches, Exit]
    end = only(Exit, effects)
    assert end.code == EXIT_REMOVED
    assert "removed" in end.message
    assert play.hear(a_dispatch(2)) == []
    assert play.end(1, None) == []


@pytest.mark.parametrize("code", [Code.VERSION, Code.NOT_AUTHORISED])
def test_what_the_broker_refuses_is_logged_and_stops_nothing(code: Code) -> None:
    play = Play()
    play.welcomed()
    play.hear(a_dispatch(1))
    effects = play.hear(Error(code, "no"))
    assert none_of(StopAttempt, effects)
    assert none_of(Exit, effects)


def test_nothing_is_due_between_deadlines() -> None:
    play = Play([a_success(9)])
    play.welcomed()
    play.hear(a_dispatch(1))
    for _ in range(50):
        deadline = play.core.next_deadline
        assert deadline is not None
        gap_s = deadline - play.now
        assert gap_s > 0
        assert play.wait(gap_s * 0.99) == []
        assert play.wait(gap_s * 0.02) != []
