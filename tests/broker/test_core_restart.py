"""A new core from what is stored: nothing is lost, nothing runs twice without need."""

from dataclasses import replace

from koubou_broker.core import Core, Rule
from koubou_broker.effects import Now
from koubou_common.errors import ErrorClass
from koubou_common.messages import Dispatch, ResultStored, Retry, SetWorkerMode, Submitted
from koubou_common.messages.values import AttemptState, Disposition, TaskState, WorkerMode
from support.core_play import (
    START,
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
    script,
    sent,
    some_settings,
    the,
)

W1, W2 = an_agent("w1"), an_agent("w2")


def a_play() -> Play:
    play = Play(some_settings(a_worker("w1"), a_worker("w2")))
    play.join(W1)
    return play


def test_running_tasks_get_one_full_lease_of_grace() -> None:
    play = a_play()
    uid = play.dispatched().attempt_uid
    play.wait(29)
    again = play.restart()
    again.wait(29)
    assert again.state_of(1) == "running"
    effects = again.join(W1, an_agent_hello(a_status([uid], free=0, last=1)))
    assert script(effects) == ["save Worker", "3 <- Welcome"]
    again.wait(29)
    assert again.state_of(1) == "running"
    again.wait(1)
    assert again.state_of(1) == "queued"


def test_a_result_spooled_over_the_restart_is_recorded() -> None:
    play = a_play()
    uid = play.dispatched().attempt_uid
    again = play.restart()
    again.join(W1, an_agent_hello(a_status(spooled=[uid])))
    stored = the(sent(again.say(W1, a_result(uid)), ResultStored))
    assert (stored.disposition, again.state_of(1)) == (Disposition.RECORDED, "succeeded")


def test_what_the_agent_does_not_list_after_the_restart_goes_back_at_once() -> None:
    play = a_play()
    play.dispatched()
    again = play.restart()
    assert the(sent(again.join(W1), Dispatch)).attempt == 2


def test_a_superseded_attempt_counts_after_a_restart_too() -> None:
    play = a_play()
    old = play.dispatched().attempt_uid
    play.wait(31)
    again = play.restart()
    again.join(W1, an_agent_hello(a_status([old], free=0)))
    assert again.state_of(1) == "running"
    again.say(W1, a_result(old))
    assert again.state_of(1) == "succeeded"


def test_waiting_tasks_wait_on_and_never_longer_than_any_backoff() -> None:
    play = a_play()
    play.say(W1, a_failure(play.dispatched().attempt_uid, ErrorClass.STALLED, a_status(free=1, last=1)))
    row = play.shelf.progress[1]
    again = play.restart()
    again.join(W2)
    assert again.state_of(1) == "queued"
    play.shelf.progress[1] = replace(row, not_before_ms=row.not_before_ms + 10**9)  # the wall clock jumped back
    late = play.restart()
    late.wait(301)
    assert len(sent(late.join(W2), Dispatch)) == 1


def test_a_worker_that_failed_last_is_avoided_after_a_restart_too() -> None:
    play = a_play()
    play.say(W1, a_failure(play.dispatched().attempt_uid, ErrorClass.STALLED, a_status(free=1, last=1)))
    again = play.restart()
    again.join(W1)
    again.join(W2)
    given: list[Dispatch] = []
    for _ in range(60):
        given += sent(again.wait(1), Dispatch)
        for peer in (W1, W2):
            if not given:
                given += sent(again.say(peer, a_heartbeat()), Dispatch)
    assert again.shelf.attempts[given[0].attempt_uid].worker_id == "w2"


def test_deadlines_go_on_and_a_clock_set_back_does_not_lengthen_them() -> None:
    play = Play()
    play.submit(a_spec(deadline_s=60))
    play.wait(50)
    again = play.restart()
    again.wait(10)
    assert again.shelf.progress[1].error_class is ErrorClass.DEADLINE
    play = Play()
    play.submit(a_spec(deadline_s=60))
    early = Now(START.mono_s, START.wall_ms - 10**9)
    core = Core(play.settings, play.shelf.snapshot(), 9, early)
    assert core.next_deadline is not None
    assert core.next_deadline <= START.mono_s + 60


def test_a_deadline_binds_no_retry() -> None:
    play = Play()
    play.submit(a_spec(deadline_s=60))
    play.wait(60)
    play.say(a_client(), Retry("r", (1,)))
    again = play.restart()
    again.wait(60)
    assert again.state_of(1) == "queued"


def test_a_repeated_submission_finds_its_task_after_a_restart() -> None:
    play = a_play()
    play.submit(a_spec("a"), key="k")
    again = play.restart()
    answer = the(sent(again.submit(a_spec("a"), key="k"), Submitted))
    assert [(ref.task_id, ref.existing) for ref in answer.tasks] == [(1, True)]
    assert [ref.task_id for ref in the(sent(again.submit(a_spec("b"), key="l"), Submitted)).tasks] == [2]


def test_a_paused_worker_stays_paused() -> None:
    play = a_play()
    play.join(an_operator())
    play.say(an_operator(), SetWorkerMode("m", "w1", WorkerMode.PAUSED))
    again = play.restart()
    again.join(W1)
    assert sent(again.submit(), Dispatch) == []


def test_rows_no_transaction_of_ours_leaves_behind_are_repaired() -> None:
    play = a_play()
    uid = play.dispatched().attempt_uid
    lost = replace(play.shelf.attempts[uid], state=AttemptState.LOST)
    play.shelf.attempts[uid] = lost
    again = play.restart()
    assert again.state_of(1) == TaskState.QUEUED
    assert "found running without an attempt" in again.shelf.events[-1].reason
    play = a_play()
    uid = play.dispatched().attempt_uid
    play.shelf.progress[1] = replace(play.shelf.progress[1], state=TaskState.QUEUED)
    again = play.restart()
    assert again.shelf.attempts[uid].state is AttemptState.LOST


def test_a_task_whose_last_worker_left_the_file_fails_with_its_reason() -> None:
    play = a_play()
    play.say(W1, a_failure(play.dispatched().attempt_uid, ErrorClass.MODEL_MISSING, a_status(free=1, last=1)))
    assert play.state_of(1) == "queued"
    del play.shelf.principals[W2.public_key]
    play.settings = some_settings(a_worker("w1"))
    again = play.restart()
    progress = again.shelf.progress[1]
    assert (progress.error_class, "w1" in progress.error_message) == (ErrorClass.NO_WORKER_LEFT, True)


def test_tasks_wait_for_a_preferred_worker_as_long_as_the_rule_says() -> None:
    settings = some_settings(a_worker("l"), a_worker("r", location="remote"))
    play = Play(replace(settings, rules=(Rule(1, 10, ("local",), overflow_after_s=60.0),)))
    play.join(an_agent("r"))
    assert sent(play.submit(), Dispatch) == []
    given: list[Dispatch] = []
    for _ in range(12):
        given += sent(play.wait(5), Dispatch)
        given += sent(play.say(an_agent("r"), a_heartbeat()), Dispatch)
    assert len(given) == 1
    assert play.now.mono_s == START.mono_s + 60


def test_nothing_is_due_while_nothing_runs() -> None:
    play = Play(replace(some_settings(), workers=()), a_client())
    play.wait(60)
    assert play.core.next_deadline is None
