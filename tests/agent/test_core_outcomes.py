"""Dialogues with the agent's core: outcomes from the spool to ResultStored, full disks, stopping."""

import itertools

from koubou_agent.core.core import DISK_DOUBT_S, FAREWELL_S, SPOOLED_MOST
from koubou_agent.core.deliveries import RESEND_CAP_S, RESEND_FIRST_S, REWRITE_S, WINDOW
from koubou_agent.effects import Exit, SpoolDelete, SpoolWrite, StartAttempt, StopAttempt
from koubou_common.errors import ErrorClass
from koubou_common.messages import (
    AgentHello,
    Failure,
    Goodbye,
    Heartbeat,
    Removed,
    Result,
    ResultStored,
)
from koubou_common.messages.values import Disposition
from support.agent_play import (
    Play,
    a_dispatch,
    a_failure,
    a_success,
    none_of,
    only,
    sent,
    uid,
)


def ended(play: Play, number: int) -> None:
    play.hear(a_dispatch(number))
    play.end(number, a_success(number))


def test_nothing_is_said_of_an_outcome_before_it_is_durable() -> None:
    play = Play()
    play.welcomed()
    play.hear(a_dispatch(1))
    effects = play.end(1, a_success(1))
    assert only(SpoolWrite, effects).outcome == a_success(1)
    assert sent(effects) == []
    result = only(Result, sent(play.spooled(1)))
    assert result.status.spooled == (uid(1),)
    assert result.status.running == ()
    assert result.status.free_slots == 2
    assert result.raw.inline is None


def test_a_failure_travels_the_same_way() -> None:
    play = Play()
    play.welcomed()
    play.hear(a_dispatch(1))
    only(SpoolWrite, play.end(1, a_failure(1)))
    assert only(Failure, sent(play.spooled(1))).error_class is ErrorClass.EMPTY_OUTPUT


def test_an_attempt_that_ended_without_an_outcome_is_a_named_failure() -> None:
    play = Play()
    play.welcomed()
    play.hear(a_dispatch(1))
    outcome = only(SpoolWrite, play.end(1, None)).outcome
    assert outcome == a_failure(1, ErrorClass.AGENT_ERROR).__class__(
        uid(1), ErrorClass.AGENT_ERROR, "the attempt ended without an outcome"
    )


def test_an_outcome_is_forgotten_when_the_broker_has_stored_it() -> None:
    play = Play()
    play.welcomed()
    ended(play, 1)
    play.spooled(1)
    effects = play.hear(ResultStored(uid(1), Disposition.RECORDED))
    assert only(SpoolDelete, effects) == SpoolDelete(uid(1))
    assert play.core.status().spooled == ()
    assert none_of(SpoolDelete, play.hear(ResultStored(uid(1), Disposition.RECORDED)))


def test_an_unanswered_outcome_is_repeated_with_growing_pauses_up_to_the_cap() -> None:
    play = Play()
    play.welcomed()
    ended(play, 1)
    play.spooled(1)
    times = []
    for _ in range(2000):
        if not none_of(Result, sent(play.wait(1.0))):
            times.append(play.now)
        play.hear(ResultStored(uid(999), Disposition.RECORDED))  # the broker lives, and answers others
    pauses = [int(later - earlier) for earlier, later in itertools.pairwise(times)]
    assert pauses[:4] == [RESEND_FIRST_S * factor for factor in (2, 4, 8, 16)]
    assert max(pauses) == RESEND_CAP_S


def test_a_new_session_repeats_every_outcome_at_once() -> None:
    play = Play()
    play.welcomed()
    ended(play, 1)
    play.spooled(1)
    play.core.disconnected(play.now)
    assert only(AgentHello, sent(play.connect())).status.spooled == (uid(1),)


def test_a_large_spool_is_delivered_in_a_bounded_window() -> None:
    play = Play([a_success(number) for number in range(1, 41)])
    results = [m for m in sent(play.welcomed()) if isinstance(m, Result)]
    assert [m.attempt_uid for m in results] == [uid(number) for number in range(1, WINDOW + 1)]
    following = play.hear(ResultStored(uid(1), Disposition.RECORDED))
    assert only(Result, sent(following)).attempt_uid == uid(WINDOW + 1)


def test_outcomes_that_are_never_answered_do_not_hold_up_the_others() -> None:
    play = Play([a_success(number) for number in range(1, WINDOW + 2)])
    play.welcomed()
    seen: set[str] = set()
    for _ in range(60):
        seen |= {m.attempt_uid for m in sent(play.wait(1.0)) if isinstance(m, Result)}
        play.hear(ResultStored(uid(999), Disposition.RECORDED))
    assert uid(WINDOW + 1) in seen


def test_a_full_disk_keeps_the_outcome_in_memory_says_so_and_refuses_work() -> None:
    play = Play()
    play.welcomed()
    ended(play, 1)
    effects = play.done(play.core.spool_failed(uid(1), "the disk of the spool is full", play.now))
    only(Result, sent(effects))  # the sooner the broker has it the better
    heartbeat = only(Heartbeat, sent(effects))
    assert heartbeat.health is not None
    assert heartbeat.health.issue == "the disk of the spool is full"
    assert not heartbeat.health.can_work
    assert heartbeat.status.free_slots == 0
    assert only(SpoolWrite, play.wait(REWRITE_S)).outcome == a_success(1)


def test_work_is_taken_again_when_the_disk_has_room() -> None:
    play = Play()
    play.welcomed()
    ended(play, 1)
    play.core.spool_failed(uid(1), "the disk of the spool is full", play.now)
    heartbeat = only(Heartbeat, sent(play.spooled(1)))
    assert heartbeat.health is not None
    assert heartbeat.health.issue == ""
    assert heartbeat.status.free_slots == 2


def test_an_outcome_stored_while_in_memory_is_deleted_if_the_disk_took_it_after_all() -> None:
    play = Play()
    play.welcomed()
    ended(play, 1)
    play.core.spool_failed(uid(1), "full", play.now)
    only(SpoolDelete, play.hear(ResultStored(uid(1), Disposition.RECORDED)))
    assert play.core.status().free_slots == 0, "the disk is as full as before"
    assert play.spooled(1) == [SpoolDelete(uid(1))]
    assert play.core.status().free_slots == 2


def test_a_disk_that_refused_an_outcome_gets_no_work_before_it_was_looked_at_again() -> None:
    play = Play()
    play.welcomed()
    ended(play, 1)
    play.core.spool_failed(uid(1), "full", play.now)
    play.hear(ResultStored(uid(1), Disposition.RECORDED))
    assert play.core.next_deadline is not None
    assert play.core.next_deadline <= play.now + DISK_DOUBT_S
    said = [m.health.issue for m in sent(play.wait(DISK_DOUBT_S - 1.0)) if isinstance(m, Heartbeat) and m.health]
    assert set(said) <= {"full"}
    assert play.core.status().free_slots == 0
    heartbeat = only(Heartbeat, sent(play.wait(1.0)))
    assert heartbeat.health is not None
    assert (heartbeat.health.issue, heartbeat.status.free_slots) == ("", 2)


def test_a_spool_that_nobody_empties_stops_the_taking_of_work() -> None:
    play = Play([a_success(number) for number in range(1, SPOOLED_MOST + 1)])
    assert only(AgentHello, sent(play.connect())).status.free_slots == 0


def test_a_stopping_agent_finishes_what_runs_delivers_it_and_says_goodbye() -> None:
    play = Play()
    play.welcomed()
    play.hear(a_dispatch(1))
    assert only(Heartbeat, sent(play.core.stop(60.0, play.now))).status.free_slots == 0
    assert none_of(Exit, play.end(1, a_success(1)))
    only(Result, sent(play.spooled(1)))
    effects = play.hear(ResultStored(uid(1), Disposition.RECORDED))
    only(Goodbye, sent(effects))
    assert only(Exit, effects).code == 0


def test_a_stopping_agent_hands_back_what_comes_and_what_waits() -> None:
    play = Play()
    play.welcomed(slots=1)
    play.hear(a_dispatch(1))
    play.hear(a_dispatch(2))
    waiting = only(SpoolWrite, play.done(play.core.stop(60.0, play.now))).outcome
    assert waiting.attempt_uid == uid(2)
    effects = play.hear(a_dispatch(3))
    assert none_of(StartAttempt, effects)
    assert only(SpoolWrite, effects).outcome.attempt_uid == uid(3)
    assert only(Failure, sent(play.spooled(3))).error_class is ErrorClass.DRAIN


def test_what_still_runs_when_the_grace_is_over_is_stopped_and_handed_back() -> None:
    play = Play()
    play.welcomed()
    play.hear(a_dispatch(1))
    play.core.stop(20.0, play.now)
    assert none_of(StopAttempt, play.wait(19.9))
    effects = play.wait(0.2)
    assert only(StopAttempt, effects).error_class is ErrorClass.DRAIN
    assert only(SpoolWrite, effects).outcome.attempt_uid == uid(1)
    assert only(Failure, sent(play.spooled(1))).error_class is ErrorClass.DRAIN
    assert play.end(1, a_success(1)) == []  # too late: it is another worker's now


def test_an_agent_without_a_broker_stops_as_soon_as_all_is_in_the_spool() -> None:
    play = Play()
    play.welcomed()
    play.hear(a_dispatch(1))
    play.core.disconnected(play.now)
    play.core.stop(60.0, play.now)
    play.end(1, a_success(1))
    assert "1 outcome(s) wait in the spool" in only(Exit, play.spooled(1)).message


def test_a_stopping_agent_waits_a_moment_for_a_slow_broker_and_then_leaves() -> None:
    play = Play([a_success(1)])
    play.welcomed()
    assert none_of(Exit, play.core.stop(60.0, play.now))
    assert none_of(Exit, play.wait(FAREWELL_S - 0.1))
    effects = play.wait(0.2)
    assert only(Goodbye, sent(effects)).status.spooled == (uid(1),)
    only(Exit, effects)


def test_a_second_request_to_stop_ends_without_waiting_for_anybody() -> None:
    play = Play([a_success(9)])
    play.welcomed()
    play.hear(a_dispatch(1))
    play.core.stop(60.0, play.now)
    effects = play.done(play.core.stop(0.0, play.now))
    assert only(StopAttempt, effects).attempt_uid == uid(1)
    assert none_of(Exit, effects)
    effects = play.spooled(1)
    assert only(Failure, sent(effects)).error_class is ErrorClass.DRAIN
    assert "2 outcome(s) wait in the spool" in only(Exit, effects).message


def test_a_longer_second_request_does_not_delay_the_hand_back() -> None:
    play = Play()
    play.welcomed()
    play.hear(a_dispatch(1))
    play.core.stop(2.0, play.now)
    play.core.stop(60.0, play.now)
    assert play.core.next_deadline == play.now + 2.0
    only(StopAttempt, play.wait(2.0))


def test_a_removed_agent_that_is_stopped_says_nothing_more() -> None:
    play = Play()
    play.welcomed(slots=1)
    play.hear(a_dispatch(1))
    play.hear(a_dispatch(2))
    play.hear(Removed())
    assert play.core.stop(0.0, play.now) == []
    assert play.core.next_deadline is None
