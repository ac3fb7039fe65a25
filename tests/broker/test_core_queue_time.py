"""Queue time limits: a task that no worker begins in time fails, and says what it waited for."""

from collections import Counter
from dataclasses import replace

import pytest

from koubou_broker.core import Core
from koubou_broker.effects import Now
from koubou_broker.routing.queue import Need
from koubou_broker.routing.workers import LiveWorker
from koubou_common.errors import Code, ErrorClass
from koubou_common.messages import ClientHello, ClientWelcome, GetStory, GetTasks, Retry, Story, Tasks
from koubou_common.messages.values import TaskView
from koubou_common.reasons import Reason
from support.core_play import (
    START,
    Play,
    a_client,
    a_failure,
    a_spec,
    a_status,
    a_worker,
    an_agent,
    refusal,
    sent,
    some_settings,
    the,
)

W1, MIKA = an_agent("w1"), a_client()


def view(play: Play, task_id: int) -> TaskView:
    return the(sent(play.say(MIKA, GetTasks("t", (task_id,))), Tasks)).tasks[0]


def test_a_task_that_no_worker_begins_in_time_fails_and_says_what_it_waited_for() -> None:
    play = Play()
    play.submit(a_spec(queue_timeout_s=30))
    play.wait(29.9)
    assert play.state_of(1) == "queued"
    play.wait(0.2)
    progress = play.shelf.progress[1]
    assert progress.error_class is ErrorClass.QUEUE_TIMEOUT
    assert progress.error_message == "no worker began it within 30 s; it waited for w1 (not connected)"


def test_a_task_that_has_begun_has_no_queue_time_limit_any_more() -> None:
    play = Play()
    play.join(W1)
    attempt = play.dispatched(a_spec(queue_timeout_s=1))
    play.say(W1, a_failure(attempt.attempt_uid, ErrorClass.STALLED, a_status(last=1)))
    play.close(W1)
    play.wait(600)
    assert play.state_of(1) == "queued"
    again = play.restart()
    again.wait(600)
    assert again.state_of(1) == "queued"


def test_a_queue_time_limit_goes_on_over_a_restart() -> None:
    play = Play()
    play.submit(a_spec(queue_timeout_s=60))
    play.wait(50)
    again = play.restart()
    again.wait(9.9)
    assert again.state_of(1) == "queued"
    again.wait(0.2)
    assert again.shelf.progress[1].error_class is ErrorClass.QUEUE_TIMEOUT


def test_a_clock_set_back_does_not_lengthen_a_queue_time_limit() -> None:
    play = Play()
    play.submit(a_spec(queue_timeout_s=60))
    early = Now(START.mono_s, START.wall_ms - 10**9)
    core = Core(play.settings, play.shelf.snapshot(), 9, early)
    assert core.next_deadline is not None
    assert core.next_deadline <= START.mono_s + 60


def test_a_clock_that_jumps_while_the_broker_runs_changes_no_queue_time_limit() -> None:
    play = Play()
    play.submit(a_spec(queue_timeout_s=60))
    for jump_ms in (-(10**9), 10**9):
        play.core.tick(Now(START.mono_s + 59, START.wall_ms + jump_ms))
        assert play.state_of(1) == "queued"


def test_a_retry_waits_for_as_long_as_it_takes() -> None:
    play = Play()
    play.submit(a_spec(queue_timeout_s=60))
    play.wait(61)
    play.say(MIKA, Retry("r", (1,)))
    play.wait(3_600)
    assert play.state_of(1) == "queued"
    again = play.restart()
    again.wait(3_600)
    assert again.state_of(1) == "queued"


def test_a_queue_time_limit_of_nothing_is_refused() -> None:
    assert refusal(Play().submit(a_spec(queue_timeout_s=0.0))).code is Code.BAD_INPUT


def test_a_batch_that_is_too_late_looks_at_the_workers_once(monkeypatch: pytest.MonkeyPatch) -> None:
    play = Play(replace(some_settings(), workers=tuple(a_worker(f"w{nth}") for nth in range(20))))
    play.submit(*(a_spec(str(nth), queue_timeout_s=5) for nth in range(300)))
    named: list[str] = []
    in_words = play.core._state.router.in_words

    def noted(need: Need, worker: LiveWorker, reason: Reason) -> str:
        named.append(worker.worker_id)
        return in_words(need, worker, reason)

    monkeypatch.setattr(play.core._state.router, "in_words", noted)
    play.wait(6)
    assert Counter(progress.state for progress in play.shelf.progress.values()) == {"failed": 300}
    assert len(named) == len(set(named)) > 0


def test_the_queue_time_limit_is_shown() -> None:
    play = Play()
    play.submit(a_spec(queue_timeout_s=90))
    assert view(play, 1).queue_timeout_s == 90


@pytest.mark.parametrize(("proto", "word"), [(1, ErrorClass.DEADLINE), (2, ErrorClass.QUEUE_TIMEOUT)])
def test_a_peer_of_an_older_release_is_told_a_word_it_knows(proto: int, word: ErrorClass) -> None:
    play = Play()
    welcome = the(sent(play.join(MIKA, ClientHello(1, proto, "koubou-ctl")), ClientWelcome))
    assert welcome.proto == proto
    play.submit(a_spec(queue_timeout_s=1))
    play.wait(2)
    assert view(play, 1).error_class is word
    assert the(sent(play.say(MIKA, GetStory("s", 1)), Story)).task.error_class is word
