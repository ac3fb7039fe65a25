"""What the agent's core says of its slots: every status has a number, every outcome how long it waited for one."""

import pytest

from koubou_agent.effects import Failed, Success
from koubou_common.errors import ErrorClass
from koubou_common.messages import (
    UNASKED,
    AgentHello,
    Failure,
    Goodbye,
    Heartbeat,
    HeartbeatAck,
    Result,
)
from koubou_common.messages.values import WorkerMode
from support.agent_play import Play, a_dispatch, a_failure, a_success, a_welcome, only, sent, uid


def test_the_numbers_of_statuses_rise_in_the_order_they_are_said() -> None:
    play = Play([a_success(9)])
    said = sent(play.connect()) + sent(play.hear(a_welcome()))
    said += sent(play.hear(a_dispatch(1))) + sent(play.wait(5)) + sent(play.end(1, a_failure(1)))
    said += sent(play.spooled(1)) + sent(play.wait(10)) + sent(play.done(play.core.stop(0.0, play.now)))
    kinds = {type(message) for message in said}
    assert {AgentHello, Heartbeat, Result, Failure} <= kinds
    numbers = [message.status.sequence for message in said]
    assert numbers == list(range(1, len(said) + 1))


def test_the_goodbye_has_the_highest_number() -> None:
    play = Play()
    play.welcomed()
    last = only(Heartbeat, sent(play.wait(5))).status.sequence
    assert only(Goodbye, sent(play.done(play.core.stop(0.0, play.now)))).status.sequence > last


def test_looking_at_the_status_says_nothing_and_counts_nothing() -> None:
    play = Play()
    play.welcomed()
    before = play.core.status()
    assert play.core.status() == before
    assert only(Heartbeat, sent(play.wait(5))).status.sequence == before.sequence + 1


def test_a_repeated_outcome_carries_the_status_of_now() -> None:
    play = Play([a_success(9)])
    first = only(Result, sent(play.welcomed())).status
    play.hear(a_dispatch(1))
    again = next(message for message in sent(play.wait(6)) if isinstance(message, Result)).status
    assert again.sequence > first.sequence
    assert [item.uid for item in again.running] == [uid(1)]


def test_the_numbers_go_on_in_the_next_session() -> None:
    play = Play()
    play.welcomed()
    last = only(Heartbeat, sent(play.wait(5))).status.sequence
    play.done(play.core.disconnected(play.now))
    assert only(AgentHello, sent(play.connect())).status.sequence > last


def waits_for_a_slot() -> Play:
    """Attempt 3 found both slots busy."""
    play = Play()
    play.welcomed()
    for number in (1, 2, 3):
        play.hear(a_dispatch(number))
    return play


@pytest.mark.parametrize("outcome", [a_success(3), a_failure(3)], ids=["success", "failure"])
def test_an_outcome_says_how_long_its_attempt_waited_for_a_slot(outcome: Success | Failed) -> None:
    play = waits_for_a_slot()
    play.wait(2.5)
    play.end(1, a_success(1))
    play.wait(4)
    play.end(3, outcome)
    said = next(message for message in sent(play.spooled(3)) if isinstance(message, Result | Failure))
    assert said.metrics.slot_wait_ms == 2_500
    assert said.metrics.total_ms == 0, "the wait is no part of the time it took"


def test_an_attempt_that_began_at_once_did_not_wait() -> None:
    play = waits_for_a_slot()
    play.wait(3)
    play.end(1, a_success(1))
    assert only(Result, sent(play.spooled(1))).metrics.slot_wait_ms == 0


def test_a_slot_that_is_released_late_is_waited_for() -> None:
    play = Play()
    play.welcomed(slots=1)
    play.done(play.core.releasing(1, play.now))
    play.hear(a_dispatch(1))
    play.wait(7)
    play.done(play.core.releasing(0, play.now))
    play.end(1, a_success(1))
    assert only(Result, sent(play.spooled(1))).metrics.slot_wait_ms == 7_000


def test_an_attempt_that_is_handed_back_before_it_began_says_how_long_it_waited() -> None:
    play = waits_for_a_slot()
    play.wait(4)
    play.hear(HeartbeatAck(UNASKED, WorkerMode.DRAINING))
    failure = only(Failure, sent(play.spooled(3)))
    assert (failure.error_class, failure.metrics.slot_wait_ms) == (ErrorClass.DRAIN, 4_000)


def test_one_that_began_late_and_is_handed_back_says_what_it_waited_until_it_began() -> None:
    play = waits_for_a_slot()
    play.wait(1)
    play.end(1, a_success(1))
    play.wait(8)
    play.done(play.core.stop(0.0, play.now))
    failure = next(one for one in sent(play.spooled(3)) if isinstance(one, Failure))
    assert (failure.attempt_uid, failure.metrics.slot_wait_ms) == (uid(3), 1_000)
