"""Statuses that were overtaken: a Result waits for its text, and heartbeats that were said after it come first."""

from dataclasses import replace

import pytest

from koubou_common.errors import ErrorClass
from koubou_common.messages import Abort, Dispatch, FromAgent, ResultStored
from koubou_common.messages.values import AgentStatus, AttemptState
from support.core_play import (
    Play,
    a_failure,
    a_heartbeat,
    a_result,
    a_spec,
    a_status,
    a_worker,
    an_agent,
    an_agent_hello,
    sent,
    some_settings,
    the,
)

W1, W2 = an_agent("w1"), an_agent("w2")


def numbered(
    sequence: int, running: list[str] | None = None, spooled: list[str] | None = None, *, free: int = 0, last: int = 0
) -> AgentStatus:
    return replace(a_status(running or [], spooled or [], free=free, last=last), sequence=sequence)


def a_play(slots: int = 2) -> Play:
    play = Play(some_settings(a_worker("w1", slots=slots), a_worker("w2", slots=slots)))
    play.join(W1, an_agent_hello(numbered(1, free=slots)))
    return play


def a_full_play() -> tuple[Play, str, str, str]:
    """Two slots: `done` ended, its slot is taken again; a fourth task waits."""
    play = a_play()
    done = play.dispatched(a_spec("a")).attempt_uid
    still = play.dispatched(a_spec("b")).attempt_uid
    play.submit(a_spec("c"))
    play.submit(a_spec("d"))
    free = a_heartbeat(numbered(3, [still], [done], free=1, last=2))
    newer = the(sent(play.say(W1, free), Dispatch)).attempt_uid
    play.say(W1, a_heartbeat(numbered(4, [still, newer], [done], last=3)))
    return play, done, still, newer


def outcome(is_result: bool, uid: str, status: AgentStatus) -> FromAgent:
    return a_result(uid, status) if is_result else a_failure(uid, ErrorClass.EMPTY_OUTPUT, status)


@pytest.mark.parametrize("is_result", [True, False], ids=["result", "failure"])
def test_the_old_status_of_an_overtaken_outcome_gives_no_slot_away_a_second_time(is_result: bool) -> None:
    play, done, still, _ = a_full_play()
    effects = play.say(W1, outcome(is_result, done, numbered(2, [still], [done], free=1, last=2)))
    assert sent(effects, Dispatch) == [], "3 of 2 slots in use"
    assert the(sent(effects, ResultStored)).attempt_uid == done
    assert play.shelf.attempts[done].state is (AttemptState.SUCCEEDED if is_result else AttemptState.FAILED)


def test_an_agent_that_numbers_nothing_is_believed_as_before() -> None:
    play = a_play(slots=1)
    first = play.dispatched(a_spec("a")).attempt_uid
    play.submit(a_spec("b"))
    effects = play.say(W1, a_result(first, a_status([], [first], free=1, last=1)))
    assert len(sent(effects, Dispatch)) == 1


def test_a_worker_whose_old_status_was_ignored_gets_its_next_task_with_the_newer_one() -> None:
    play, done, still, newer = a_full_play()
    play.say(W1, a_result(done, numbered(2, [still], [done], free=1, last=2)))
    effects = play.say(W1, a_heartbeat(numbered(5, [still], [newer], free=1, last=3)))
    assert len(sent(effects, Dispatch)) == 1


def test_the_same_status_twice_is_no_older_one() -> None:
    play = a_play(slots=1)
    first = play.dispatched(a_spec("a")).attempt_uid
    play.submit(a_spec("b"))
    play.say(W1, a_heartbeat(numbered(2, [first], last=1)))
    effects = play.say(W1, a_result(first, numbered(3, [], [first], free=1, last=1)))
    second = the(sent(effects, Dispatch)).attempt_uid
    # A doubled message: it says nothing of the dispatch that has left since, and takes nothing of it back.
    assert sent(play.say(W1, a_result(first, numbered(3, [], [first], free=1, last=1))), Dispatch) == []
    play.say(W1, a_result(second, numbered(4, [], [second], free=1, last=2)))
    assert play.state_of(2) == "succeeded"


def test_an_old_status_does_not_take_an_attempt_up_again_that_a_newer_one_gave_up() -> None:
    play = a_play()
    play.close(W1)
    play.join(W2, an_agent_hello(numbered(1, free=2)))
    first = play.dispatched(a_spec("a")).attempt_uid
    second = play.dispatched(a_spec("b")).attempt_uid
    play.say(W2, a_heartbeat(numbered(3, [second], free=0, last=2)))  # `first` is gone, no slot for it
    assert play.state_of(1) == "queued"
    play.say(W2, a_heartbeat(numbered(2, [first, second], last=2)))
    assert play.state_of(1) == "queued"


def test_an_old_status_stops_nothing() -> None:
    play, done, still, _ = a_full_play()
    unknown = "0" * 32
    effects = play.say(W1, a_result(done, numbered(2, [still, unknown], [done], free=1, last=2)))
    assert sent(effects, Abort) == []


def test_numbers_begin_anew_with_a_session() -> None:
    play = a_play(slots=1)
    first = play.dispatched(a_spec("a")).attempt_uid
    play.submit(a_spec("b"))
    play.say(W1, a_heartbeat(numbered(900, [first], last=1)))
    play.join(W1, an_agent_hello(numbered(1, [first], last=1), boot="b1"))
    effects = play.say(W1, a_result(first, numbered(2, [], [first], free=1, last=1)))
    assert len(sent(effects, Dispatch)) == 1


def test_what_a_newer_status_lists_stays_leased_while_old_ones_come() -> None:
    play, done, still, newer = a_full_play()
    for sequence in range(5, 25):
        play.wait(5)
        play.say(W1, a_heartbeat(numbered(sequence, [still, newer], [done], last=3)))
        play.say(W1, a_heartbeat(numbered(2, [still], [done], free=1, last=2)))
    assert (play.state_of(2), play.state_of(3)) == ("running", "running")
