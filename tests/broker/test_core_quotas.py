"""Bounds of the queue and of sessions: what is refused, how, and what is not."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from koubou_broker.core_settings import Limits
from koubou_broker.effects import Close, Send
from koubou_common.errors import Code
from koubou_common.messages import (
    Cancel,
    Changes,
    ClientHello,
    ClientWelcome,
    Error,
    GetStatus,
    PartStaged,
    Retry,
    Status,
    Submit,
    Submitted,
    Watch,
    Watching,
)
from koubou_common.messages.values import TaskState
from support.core_play import Play, a_client, a_spec, an_operator, refusal, sent, some_settings, the

MIKA, RIN, BOSS = a_client("mika"), a_client("rin"), an_operator()
HELLO = ClientHello(1, 1, "test")


def a_play(**limits: int) -> Play:
    """A broker without a worker that works: what is submitted waits."""
    return Play(replace(some_settings(), limits=Limits(**limits)), BOSS, MIKA, RIN)


def alerts_of(play: Play) -> dict[str, str]:
    if BOSS.name not in play._sessions:
        play.join(BOSS)
    status = the(sent(play.say(BOSS, GetStatus("s")), Status))
    return {alert.code: alert.message for alert in status.alerts}


@pytest.mark.parametrize(
    ("limits", "first", "second"),
    [
        ({"queue_per_client": 2}, [a_spec("1"), a_spec("2")], [a_spec("3")]),
        ({"queue_tasks": 2}, [a_spec("1"), a_spec("2")], [a_spec("3")]),
        ({"files_per_client": 3}, [a_spec("1", files=[("a", 1), ("b", 1)])], [a_spec("2", files=[("a", 1), ("b", 1)])]),
        ({"bytes_per_client": 100}, [a_spec("1", size_bytes=60)], [a_spec("2", size_bytes=41)]),
    ],
)
def test_what_is_above_a_bound_is_refused_whole_with_its_limit_and_a_time(
    limits: dict[str, int], first: Sequence[object], second: Sequence[object]
) -> None:
    play = a_play(**limits)
    play.submit(*first, key="first")  # type: ignore[arg-type] # the parameters are specs
    error = refusal(play.submit(*second, key="second"))  # type: ignore[arg-type] # as above
    ((limit, most),) = limits.items()
    assert error.code is Code.BUSY
    assert f"{limit} is {most}" in error.message
    assert error.retry_after_s >= 10
    assert len(play.core._state.tasks) == len(first)
    again = the(sent(play.submit(*first, key="first"), Submitted))  # type: ignore[arg-type] # as above
    assert all(task.existing for task in again.tasks)
    play.say(MIKA, Cancel("c", (1,)))
    assert sent(play.submit(*second, key="second"), Submitted)  # type: ignore[arg-type] # as above


def test_what_could_never_be_taken_is_too_large_and_names_no_time() -> None:
    for limit in ("queue_per_client", "bytes_per_client"):
        error = refusal(a_play(**{limit: 1}).submit(a_spec("one"), a_spec("two")))
        assert (error.code, error.retry_after_s) == (Code.TOO_LARGE, 0.0)
        assert limit in error.message


def test_a_body_that_many_tasks_name_counts_once() -> None:
    play = a_play(bytes_per_client=1_300)
    for nth in range(3):
        assert sent(play.submit(a_spec(f"{nth}", size_bytes=100, files=[("shared", 1_000)])), Submitted)
    assert "bytes_per_client" in refusal(play.submit(a_spec("4", size_bytes=1))).message
    play.say(MIKA, Cancel("c", (1, 2)))
    assert play.core._state.accounts["mika"].size_bytes == 1_100
    play.say(MIKA, Cancel("c", (3,)))
    assert "mika" not in play.core._state.accounts


def test_one_client_s_queue_is_not_another_s_and_an_operator_has_a_bound_too() -> None:
    play = a_play(queue_per_client=1)
    for peer in (MIKA, RIN, BOSS):
        assert sent(play.submit(a_spec(), who=peer), Submitted)
        assert "queue_per_client" in refusal(play.submit(a_spec(), who=peer)).message


def test_opening_tasks_again_counts_for_whose_they_are() -> None:
    play = a_play(queue_per_client=1)
    play.submit(a_spec("1"))
    play.say(MIKA, Cancel("c", (1,)))
    play.submit(a_spec("2"))
    play.join(BOSS)
    error = refusal(play.say(BOSS, Retry("r", (1,))))
    assert error.code is Code.BUSY
    assert error.retry_after_s > 0
    play.say(MIKA, Cancel("c", (2,)))
    changes = the(sent(play.say(BOSS, Retry("r", (1,))), Changes)).changes
    assert [(one.task_id, one.state, one.changed) for one in changes] == [(1, TaskState.QUEUED, True)]


def test_the_bounds_hold_after_a_restart() -> None:
    play = a_play(bytes_per_client=100)
    play.submit(a_spec("1", size_bytes=60))
    again = play.restart()
    assert "bytes_per_client" in refusal(again.submit(a_spec("2", size_bytes=60), key="another")).message


def test_people_see_who_is_held_back_until_it_is_over() -> None:
    play = a_play(queue_per_client=1, queue_tasks=2)
    play.submit(a_spec())
    play.submit(a_spec())
    assert "queue_per_client is 1" in alerts_of(play)["held_back:mika"]
    play.submit(a_spec(), who=RIN)
    play.submit(a_spec(), who=BOSS)
    assert "queue_tasks is 2" in alerts_of(play)["queue_full"]
    play.wait(61)
    assert not {"held_back:mika", "queue_full"} & alerts_of(play).keys()


def test_half_sent_submissions_are_bounded_over_all_sessions() -> None:
    play = a_play(staged_per_client=5)
    play.join(MIKA)
    first = play.session_of(MIKA)
    part = (a_spec("1", files=[("a", 1), ("b", 1)]),)
    assert sent(play.say(MIKA, Submit("a", "a", part, part=0, parts=2), first), PartStaged)
    play.join(MIKA)
    error = refusal(play.say(MIKA, Submit("b", "b", part, part=0, parts=2)))
    assert (error.code, error.retry_after_s > 0) == (Code.BUSY, True)
    assert "staged_per_client is 5" in error.message
    assert sent(play.say(MIKA, Submit("a", "a", (a_spec("2"),), part=1, parts=2), first), Submitted)
    assert sent(play.say(MIKA, Submit("b", "b", part, part=0, parts=2)), PartStaged)


def test_watches_are_bounded_over_all_sessions() -> None:
    play = a_play(watched_per_client=3)
    play.submit(a_spec("1"), a_spec("2"))
    assert sent(play.say(MIKA, Watch("w", batch_id=1)), Watching)
    play.join(MIKA)
    assert "watched_per_client is 3" in refusal(play.say(MIKA, Watch("w", batch_id=1))).message


def sessions(play: Play, count: int) -> list[int]:
    """So many sessions of mika, a second apart."""
    numbers = []
    for _ in range(count):
        play.join(MIKA)
        play.wait(1.0)
        numbers.append(play.session_of(MIKA))
    return numbers


def test_of_one_client_s_sessions_that_silent_for_longest_is_forgotten() -> None:
    play = a_play(sessions_per_client=2)
    first, second = sessions(play, 2)
    play.say(MIKA, GetStatus("s"), first)
    play.join(RIN)
    effects = play.join(MIKA)
    assert [one.session for one in effects if isinstance(one, Close)] == [second]
    assert refusal(play.say(MIKA, GetStatus("s"), second)).code is Code.HELLO_REQUIRED
    assert sent(play.say(MIKA, GetStatus("s"), first), Status)


def test_who_waits_for_news_is_forgotten_last_and_told_so() -> None:
    play = a_play(sessions_per_client=2)
    play.submit(a_spec("1"))
    watching = play.session_of(MIKA)
    play.say(MIKA, Watch("w", (1,)), watching)
    play.wait(60)
    (other,) = sessions(play, 1)
    effects = play.join(MIKA)
    assert [one.session for one in effects if isinstance(one, Close)] == [other]
    play.say(MIKA, Watch("w", (1,)))
    effects = play.join(MIKA)
    told = [one for one in effects if isinstance(one, Send) and isinstance(one.message, Error)]
    assert [(one.session, one.message.code) for one in told if isinstance(one.message, Error)] == [
        (watching, Code.HELLO_REQUIRED)
    ]
    assert effects.index(told[0]) < effects.index(Close(watching))


def test_two_that_watch_do_not_push_each_other_out_for_ever() -> None:
    play = a_play(sessions_per_client=1)
    play.submit(a_spec("1"))
    first = play.session_of(MIKA)
    play.say(MIKA, Watch("w", (1,)), first)
    error = refusal(play.join(MIKA))
    assert (error.code, error.retry_after_s) == (Code.BUSY, 30.0)
    assert "sessions_per_client is 1" in error.message
    play.wait(31)
    assert sent(play.say(MIKA, HELLO), ClientWelcome)
