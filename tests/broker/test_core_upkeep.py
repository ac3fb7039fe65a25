"""Backups, purges and parked outcomes, as the core decides them: whose, when, and what may not happen meanwhile."""

from dataclasses import replace

from koubou_broker.core import Core
from koubou_broker.effects import AskBackup, Effect, Erase, Erased, Loss, Peer, Send
from koubou_broker.records import Audit, Event
from koubou_common import codec
from koubou_common.errors import Code
from koubou_common.messages import (
    BackupMade,
    Cancel,
    Changes,
    ClientWelcome,
    Dispatch,
    EndBackup,
    Error,
    GetBackupPart,
    GetParked,
    GetResult,
    GetStory,
    MakeBackup,
    ParkedWork,
    Purge,
    Purged,
    Retry,
)
from koubou_common.messages.limits import PAGE_PARKED
from koubou_common.messages.values import Change, TaskState
from support.core_play import (
    START,
    Play,
    a_client,
    a_heartbeat,
    a_result,
    a_status,
    an_agent,
    an_operator,
    refusal,
    saved,
    sent,
    some_settings,
    the,
)

MIKA, KEN, BOSS, W1 = a_client(), a_client("ken"), an_operator(), an_agent("w1")


def a_play() -> Play:
    play = Play(some_settings(), MIKA, KEN, BOSS, W1)
    for peer in (MIKA, KEN, BOSS, W1):
        play.join(peer)
    return play


def done(play: Play, who: Peer = MIKA) -> int:
    """A task that has succeeded."""
    dispatch = the(sent(play.submit(who=who), Dispatch))
    play.say(W1, a_result(dispatch.attempt_uid))
    play.say(W1, a_heartbeat(a_status(last=99)))
    return dispatch.task_id


def erase_of(effects: list[Effect]) -> Erase:
    """What the store is asked to remove."""
    return the([one for one in effects if isinstance(one, Erase)])


def erased(play: Play, asked: Erase, **more: object) -> list[Effect]:
    """The store has done it."""
    figures = replace(Erased(asked.task_ids, texts=2, size_bytes=30), **more)  # type: ignore[arg-type] # its own fields
    return play.step(play.core.erased(asked.token, figures, play.now))


def test_a_backup_is_asked_for_after_all_that_came_before_and_is_on_record() -> None:
    play = a_play()
    effects = play.say(BOSS, MakeBackup("b1"))
    assert effects == [AskBackup(play.session_of(BOSS), "boss", MakeBackup("b1"))]
    made = BackupMade("b1", 4_096, bytes(32), 7, 2, 15)
    effects = play.step(play.core.backed_up(play.session_of(BOSS), "boss", made, play.now))
    assert [one.action for one in saved(effects, Audit)] == ["backup"]
    assert sent(effects, BackupMade) == [made]


def test_a_client_may_not_have_backups_or_see_what_is_parked() -> None:
    play = a_play()
    for message in (MakeBackup("b"), GetBackupPart("p", "b", 0), EndBackup("e", "b"), GetParked("g")):
        assert refusal(play.say(MIKA, message)).code is Code.NOT_AUTHORISED


def test_a_purge_is_told_when_it_is_durable_and_is_on_record() -> None:
    play = a_play()
    task_id = done(play)
    effects = play.say(MIKA, Purge("p", (task_id,)))
    asked = erase_of(effects)
    assert (asked.task_ids, asked.history, sent(effects, Purged)) == ((task_id,), False, [])
    effects = erased(play, asked, shared=1)
    assert sent(effects, Purged) == [Purged("p", 1, 2, 30, 1, True)]
    audit = the(saved(effects, Audit))
    assert (audit.actor, audit.action, audit.subject) == ("mika", "purge", f"task {task_id}")
    event = the(saved(effects, Event))
    assert (event.actor, event.before, event.after) == ("mika", "succeeded", "succeeded")
    assert "removed" in event.reason


def test_a_purge_of_the_record_leaves_no_event_of_it() -> None:
    play = a_play()
    task_id = done(play)
    asked = erase_of(play.say(MIKA, Purge("p", (task_id,), history=True)))
    assert asked.history
    assert saved(erased(play, asked), Event) == []


def test_only_ones_own_tasks_can_be_purged_and_an_operator_all() -> None:
    play = a_play()
    mine, other = done(play), done(play, KEN)
    asked = erase_of(play.say(MIKA, Purge("p", (mine, other, 99))))
    assert asked.task_ids == (mine,)
    assert the(sent(erased(play, asked), Purged)).missing == (other, 99)
    assert erase_of(play.say(BOSS, Purge("p", (mine, other)))).task_ids == (mine, other)


def test_what_has_not_ended_is_refused_by_name_and_the_rest_is_purged() -> None:
    play = a_play()
    task_id = done(play)
    running = the(sent(play.submit(), Dispatch)).task_id
    told = the(sent(play.say(MIKA, Purge("p", (running,))), Purged))
    live = (Change(running, TaskState.RUNNING, False, "is running"),)
    assert (told.tasks, told.refused) == (0, live)
    asked = erase_of(play.say(MIKA, Purge("q", (task_id, running))))
    assert asked.task_ids == (task_id,)
    assert the(sent(erased(play, asked), Purged)).refused == live


def test_a_record_goes_only_when_no_agent_has_a_word_to_say_about_it() -> None:
    play = a_play()
    running = the(sent(play.submit(), Dispatch))
    play.say(W1, a_heartbeat(a_status([running.attempt_uid], last=1)))
    play.say(MIKA, Cancel("c", (running.task_id,)))
    told = the(sent(play.say(MIKA, Purge("p", (running.task_id,), history=True)), Purged))
    assert [one.message for one in told.refused] == ["w1 has not ended its attempt yet"]
    assert erase_of(play.say(MIKA, Purge("q", (running.task_id,)))).task_ids == (running.task_id,)
    play.say(W1, a_heartbeat(a_status(last=1)))
    assert erase_of(play.say(MIKA, Purge("r", (running.task_id,), history=True))).history


def test_nobody_opens_a_task_again_whose_texts_are_going() -> None:
    play = a_play()
    task_id = done(play)
    asked = erase_of(play.say(MIKA, Purge("p", (task_id,))))
    changes = the(sent(play.say(MIKA, Retry("r", (task_id,))), Changes)).changes
    assert changes == (Change(task_id, TaskState.SUCCEEDED, False, "its prompt is no longer kept"),)
    erased(play, asked, task_ids=())
    assert the(sent(play.say(MIKA, Retry("s", (task_id,))), Changes)).changes[0].changed


def test_rows_read_before_a_purge_do_not_open_a_task_after_it() -> None:
    play = a_play()
    task_id = done(play)
    play.answering = False
    play.say(BOSS, Retry("r", (task_id,)))
    [question] = play.questions
    rows = play.shelf.find(question.query)
    play.questions.clear()
    play.answering = True
    erased(play, erase_of(play.say(MIKA, Purge("p", (task_id,)))))
    stale = the(sent(play.step(play.core.found(question.token, rows, play.now)), Changes))
    assert not stale.changes[0].changed
    play.shelf.bodiless.add(task_id)
    assert not the(sent(play.say(MIKA, Retry("s", (task_id,))), Changes)).changes[0].changed


def test_a_purge_repeated_while_it_is_under_way_is_answered_once_in_the_new_session() -> None:
    play = a_play()
    task_id = done(play)
    asked = erase_of(play.say(MIKA, Purge("p", (task_id,))))
    play.close(MIKA)
    play.join(MIKA)
    assert play.say(MIKA, Purge("p", (task_id,))) == []
    answers = [one for one in erased(play, asked) if isinstance(one, Send)]
    assert [(one.session, type(one.message)) for one in answers] == [(play.session_of(MIKA), Purged)]
    assert erased(play, asked) == [], "an answer of an earlier core, or a second one"


def test_a_disk_that_takes_no_more_is_told_with_a_time_to_try_again() -> None:
    play = a_play()
    ids = (done(play), done(play))
    asked = erase_of(play.say(MIKA, Purge("p", ids)))
    effects = erased(play, asked, task_ids=ids[:1], error="database or disk is full")
    refused = the(sent(effects, Error))
    assert (refused.code, refused.request_id, refused.retry_after_s > 0) == (Code.STORE_FULL, "p", True)
    assert "1 of 2" in refused.message
    assert [one.subject for one in saved(effects, Audit)] == [f"task {ids[0]}"]


def test_an_output_that_was_purged_is_said_to_be_no_longer_kept() -> None:
    play = a_play()
    task_id = done(play)
    play.answering = False
    play.say(MIKA, GetResult("g", task_id))
    [question] = play.questions
    found = play.shelf.find(question.query)
    without = replace(found, tasks=tuple(replace(one, has_output=False) for one in found.tasks))
    refused = the(sent(play.step(play.core.found(question.token, without, play.now)), Error))
    assert (refused.code, "no longer kept" in refused.message) == (Code.NOT_FOUND, True)


def test_what_is_parked_is_listed_page_by_page_and_by_its_uid() -> None:
    play = a_play()
    for number in range(PAGE_PARKED + 5):
        play.say(W1, a_result(f"{number:032x}"))
    first = the(sent(play.say(BOSS, GetParked("g")), ParkedWork))
    second = the(sent(play.say(BOSS, GetParked("g", skip=len(first.outcomes))), ParkedWork))
    assert (len(first.outcomes), len(second.outcomes), first.total) == (PAGE_PARKED, 5, PAGE_PARKED + 5)
    codec.encode(first)
    one = the(sent(play.say(BOSS, GetParked("g", f"{3:032x}")), ParkedWork)).outcomes
    assert [(view.uid, view.worker_id, view.body is not None) for view in one] == [(f"{3:032x}", "w1", True)]
    assert refusal(play.say(BOSS, GetParked("g", "f" * 32))).code is Code.NOT_FOUND


def test_who_holds_an_id_of_the_time_that_is_gone_is_told_why_it_is_not_found() -> None:
    play = a_play()
    loss = Loss(START.wall_ms, 5, 1_000_005)
    play.core = Core(play.settings, replace(play.shelf.snapshot(), loss=loss), 2, play.now)
    play.step(play.core.start())
    welcome = the(sent(play.join(MIKA), ClientWelcome))
    assert (welcome.restored_ms, welcome.lost_first_id, welcome.lost_end_id) == (START.wall_ms, 5, 1_000_005)
    assert "restored" in refusal(play.say(MIKA, GetStory("s", 7))).hint
    assert "restored" not in refusal(play.say(MIKA, GetStory("s", 4))).hint
