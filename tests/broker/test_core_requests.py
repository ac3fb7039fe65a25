"""What is asked without changing anything: the store's rows under what the core knows better."""

from dataclasses import replace

from koubou_broker.core import Limits
from koubou_broker.effects import FindTasks, Lookup
from koubou_common import codec
from koubou_common.errors import Code, ErrorClass
from koubou_common.messages import (
    Cancel,
    Changes,
    Dispatch,
    Error,
    GetResult,
    GetStatus,
    GetStory,
    GetTasks,
    GetWorkers,
    Message,
    ResultStored,
    Retry,
    Status,
    Story,
    Submit,
    Submitted,
    TaskResult,
    Tasks,
    Watch,
    Watching,
    Workers,
)
from koubou_common.messages.limits import BATCH_TASKS
from koubou_common.messages.values import AttemptState, Change, TaskState
from support.core_play import (
    Play,
    a_client,
    a_failure,
    a_heartbeat,
    a_result,
    a_spec,
    a_status,
    a_worker,
    an_agent,
    an_operator,
    refusal,
    script,
    sent,
    some_settings,
    the,
)

MIKA, KEN, BOSS = a_client(), a_client("ken"), an_operator()
W1 = an_agent("w1")


def a_play() -> Play:
    play = Play(some_settings(), MIKA, KEN, BOSS, W1)
    for peer in (MIKA, KEN, BOSS, W1):
        play.join(peer)
    return play


def test_a_list_shows_ones_own_tasks_newest_first_and_an_operator_all() -> None:
    play = a_play()
    play.submit(a_spec("a"))
    play.submit(a_spec("b"), who=KEN)
    play.submit(a_spec("c"))
    mine = the(sent(play.say(MIKA, GetTasks("t")), Tasks))
    assert [view.task_id for view in mine.tasks] == [3, 1]
    all_tasks = the(sent(play.say(BOSS, GetTasks("t")), Tasks))
    assert [view.task_id for view in all_tasks.tasks] == [3, 2, 1]


def test_a_list_goes_on_page_by_page() -> None:
    play = a_play()
    play.submit(*(a_spec(str(nth)) for nth in range(5)))
    pages, before = [], 0
    while True:
        page = the(sent(play.say(MIKA, GetTasks("t", most=2, before_id=before)), Tasks))
        pages.append([view.task_id for view in page.tasks])
        before = page.next_before
        if not before:
            break
    assert pages == [[5, 4], [3, 2], [1]]


def test_a_row_older_than_the_core_is_shown_as_it_is_now() -> None:
    play = a_play()
    uid = play.dispatched().attempt_uid
    play.answering = False
    play.say(MIKA, GetTasks("t", states=(TaskState.RUNNING,)))
    question = play.questions.pop()
    rows = play.shelf.find(question.query)
    play.say(W1, a_result(uid))
    stale = the(sent(play.core.found(question.token, rows, play.now), Tasks))
    assert stale.tasks == ()


def test_missing_ids_are_named() -> None:
    play = a_play()
    play.submit()
    page = the(sent(play.say(MIKA, GetTasks("t", (1, 7))), Tasks))
    assert ([view.task_id for view in page.tasks], page.missing, page.next_before) == ([1], (7,), 0)


def test_a_page_of_the_longest_texts_fits_one_message() -> None:
    play = a_play()
    name, flags = "𝕏" * 255, ("𝕏" * 64,) * 16
    long = replace(a_spec(target="𝕏" * 60), custom_id=name, out_path=name)
    uid = the(sent(play.submit(*[long] * 200), Dispatch)).attempt_uid
    for _ in range(200):
        given = sent(play.say(W1, replace(a_result(uid), flags=flags)), Dispatch)
        uid = given[0].attempt_uid if given else ""
    seen, before = 0, 0
    while True:
        page = the(sent(play.say(MIKA, GetTasks("t", before_id=before)), Tasks))
        codec.encode(page)
        seen += len(page.tasks)
        before = page.next_before
        if not before:
            break
    assert seen == 200


def test_a_story_has_the_task_its_attempts_and_events() -> None:
    play = a_play()
    first = play.dispatched()
    play.say(W1, a_failure(first.attempt_uid, ErrorClass.DRAIN))
    story = the(sent(play.say(MIKA, GetStory("s", 1)), Story))
    assert [(one.number, one.state) for one in story.attempts] == [(1, "failed"), (2, "running")]
    assert [(one.before, one.after) for one in story.events] == [
        ("", "queued"),
        ("queued", "running"),
        ("running", "queued"),
        ("queued", "running"),
    ]
    assert story.attempts[0].placement == "no rule: all workers; w1 200 (residency -53)"
    assert play.core.story(1)[0] == "submitted"
    assert play.core.story(99) == []


def test_a_story_of_many_long_attempts_fits_one_message() -> None:
    play = Play(replace(some_settings(), poison_deaths=99))
    play.join(W1)
    uid = play.dispatched(a_spec(max_attempts=20)).attempt_uid
    for _ in range(18):
        bad = replace(a_failure(uid, ErrorClass.DRAIN, message="𝕏" * 2_000), log="𝕏" * 16_000)
        uid = the(sent(play.say(W1, bad), Dispatch)).attempt_uid
    story = the(sent(play.say(MIKA, GetStory("s", 1)), Story))
    codec.encode(story)
    assert len(story.attempts) == 19
    assert len(story.attempts[-2].log) == 16_000


def test_a_result_names_its_body_and_the_output_in_it() -> None:
    play = a_play()
    uid = play.dispatched().attempt_uid
    early = the(sent(play.say(MIKA, GetResult("g", 1)), TaskResult))
    assert (early.body, early.task.state) == (None, TaskState.RUNNING)
    result = replace(a_result(uid, text="```\ncode\n```"), output_offset=4, output_length=4)
    play.say(W1, result)
    answer = the(sent(play.say(MIKA, GetResult("g", 1)), TaskResult))
    assert answer.body is not None
    assert (answer.body.sha256, answer.output_offset, answer.output_length) == (result.raw.sha256, 4, 4)
    raw = the(sent(play.say(MIKA, GetResult("g", 1, raw=True)), TaskResult))
    assert (raw.output_offset, raw.output_length) == (0, result.raw.size_bytes)


def test_the_status_counts_ones_own_and_an_operator_sees_all_and_the_alerts() -> None:
    play = a_play()
    play.say(W1, a_result(play.dispatched().attempt_uid))
    play.say(W1, a_heartbeat(a_status(free=1, last=1)))
    play.submit(a_spec("b"))
    play.wait(2)
    play.submit(a_spec("c"), who=KEN)
    play.core.alert("disk", "it is nearly full", play.now)
    mine = the(sent(play.say(MIKA, GetStatus("s")), Status))
    everything = the(sent(play.say(BOSS, GetStatus("s")), Status))
    assert {one.state: one.count for one in mine.counts if one.count} == {"succeeded": 1, "running": 1}
    assert {one.state: one.count for one in everything.counts if one.count} == {
        "succeeded": 1,
        "running": 1,
        "queued": 1,
    }
    assert (mine.oldest_queued_ms, everything.oldest_queued_ms) == (0, play.now.wall_ms)
    assert (mine.alerts, [one.code for one in everything.alerts]) == ((), ["disk"])
    assert [one.worker_id for one in mine.workers] == ["w1"]


def test_an_alert_ends_with_an_empty_text() -> None:
    play = a_play()
    assert script(play.core.alert("disk", "full", play.now)) == ["alert disk"]
    assert script(play.core.alert("disk", "full", play.now)) == []
    assert script(play.core.alert("disk", "", play.now)) == ["no alert disk"]
    assert script(play.core.alert("disk", "", play.now)) == []


def test_workers_are_shown_as_they_are() -> None:
    play = a_play()
    play.dispatched()
    view = the(the(sent(play.say(MIKA, GetWorkers("g", "w1")), Workers)).workers)
    assert (view.connected, view.running, view.slots, view.models) == (True, 1, 1, ("gpt-oss:20b",))
    play.wait(31)
    gone = the(the(sent(play.say(MIKA, GetWorkers("g")), Workers)).workers)
    assert (gone.connected, gone.issue) == (False, "stopped answering")
    assert refusal(play.say(MIKA, GetWorkers("g", "nobody"))).code is Code.NOT_FOUND


def waiting(play: Play, task_id: int) -> str:
    """Why a task waits, as its view says."""
    return the(the(sent(play.say(MIKA, GetTasks("t", (task_id,))), Tasks)).tasks).waiting_for


def test_a_waiting_task_says_for_what() -> None:
    play = Play(some_settings(a_worker("w1"), a_worker("w2", model="qwen:7b")))
    play.submit(a_spec(model="qwen:7b"))
    assert waiting(play, 1) == "w2 (not connected)"
    play.join(W1)
    uid = the(sent(play.submit(a_spec("b")), Dispatch)).attempt_uid
    play.submit(a_spec("c"))
    assert waiting(play, 3) == "a free slot on w1"
    play.say(W1, a_failure(uid, ErrorClass.STALLED, a_status(free=0, last=1)))
    assert waiting(play, 2).startswith("its next attempt, in")
    empty = Play(replace(some_settings(), workers=()))
    empty.submit()
    assert waiting(empty, 1) == "a worker: none has joined yet"


def test_a_batch_is_cancelled_watched_and_retried_as_one() -> None:
    play = a_play()
    uid = the(sent(play.submit(a_spec("a"), a_spec("b"), a_spec("c")), Dispatch)).attempt_uid
    play.say(W1, a_result(uid, a_status(free=0, last=1)))
    marks = the(sent(play.say(MIKA, Watch("w", batch_id=1)), Watching)).tasks
    assert [mark.state for mark in marks] == ["succeeded", "queued", "queued"]
    changes = the(sent(play.say(MIKA, Cancel("c", batch_id=1)), Changes)).changes
    assert [one.changed for one in changes] == [False, True, True]
    retried = the(sent(play.say(MIKA, Retry("r", batch_id=1)), Changes)).changes
    assert retried == (
        Change(1, TaskState.SUCCEEDED, changed=False, message="is succeeded"),
        Change(2, TaskState.QUEUED, changed=True, message=""),
        Change(3, TaskState.QUEUED, changed=True, message=""),
    )


def test_two_retries_that_read_the_same_row_open_the_task_once() -> None:
    play = a_play()
    play.say(W1, a_result(play.dispatched().attempt_uid, a_status(free=0, last=1)))
    play.answering = False
    for _ in range(2):
        play.say(MIKA, Retry("r", (1,)))
    answers = [one.changes[0].changed for one in sent(play.answer_questions(), Changes)]
    assert answers == [True, False]


def test_a_retry_that_reads_a_row_older_than_a_whole_generation_numbers_on() -> None:
    play = a_play()
    play.say(W1, a_result(play.dispatched().attempt_uid))
    play.answering = False
    play.say(MIKA, Retry("r", (1,)))
    stale = play.questions.pop()
    rows = play.shelf.find(stale.query)
    play.say(MIKA, Retry("r2", (1,)))
    again = the(sent(play.answer_questions(), Dispatch))
    play.say(W1, a_result(again.attempt_uid))
    assert play.shelf.progress[1].generation == 2
    effects = play._done(play.core.found(stale.token, rows, play.now))
    assert the(sent(effects, Dispatch)).attempt == 3
    assert play.shelf.progress[1].generation == 3


def test_a_cancel_of_nothing_and_of_an_unknown_batch_are_refused() -> None:
    play = a_play()
    assert refusal(play.say(MIKA, Cancel("c"))).code is Code.BAD_INPUT
    error = refusal(play.say(MIKA, Cancel("c", batch_id=9)))
    assert (error.code, "b9" in error.message) == (Code.NOT_FOUND, True)


def test_questions_to_the_store_are_bounded() -> None:
    play = Play(replace(some_settings(), limits=Limits(lookups_per_session=2)))
    play.join(MIKA)
    play.answering = False
    errors = [sent(play.say(MIKA, GetTasks(f"t{nth}")), Error) for nth in range(3)]
    assert [len(one) for one in errors] == [0, 0, 1]
    assert "lookups_per_session" in errors[2][0].message
    play.answer_questions()
    assert sent(play.say(MIKA, GetTasks("t")), Error) == []


def test_watched_tasks_are_bounded() -> None:
    play = Play(replace(some_settings(), limits=Limits(watched_per_session=2)))
    play.submit(*[a_spec()] * 3)
    assert "watched_per_session is 2" in refusal(play.say(MIKA, Watch("w", batch_id=1))).message
    assert len(sent(play.say(MIKA, Watch("w", (1, 2))), Watching)) == 1
    assert len(sent(play.say(MIKA, Watch("w", (2, 3))), Watching)) == 1


def test_a_closed_session_is_told_nothing_more() -> None:
    play = a_play()
    uid = play.dispatched().attempt_uid
    play.say(MIKA, Watch("w", (1,)))
    play.answering = False
    play.say(MIKA, GetTasks("t"))
    play.close(MIKA)
    assert play.answer_questions() == []
    assert all(line.startswith(("save", "4 <-")) for line in script(play.say(W1, a_result(uid))))


def test_the_client_silent_for_longest_gives_way() -> None:
    play = Play(replace(some_settings(), limits=Limits(sessions_max=2)), MIKA, KEN, BOSS)
    play.join(MIKA)
    play.wait(1)
    play.join(KEN)
    play.wait(1)
    effects = play.join(BOSS)
    assert script(effects) == ["close 1", "3 <- ClientWelcome"]
    assert refusal(play.say(MIKA, GetStatus("s"))).code is Code.HELLO_REQUIRED


def test_an_answer_to_an_earlier_core_is_ignored() -> None:
    play = a_play()
    assert play.core.found(12_345, play.shelf.find(FindTasks("")), play.now) == []


def test_a_lookup_comes_after_the_save_of_its_step() -> None:
    play = a_play()
    play.answering = False
    effects = play.say(MIKA, GetTasks("t"))
    assert [type(one) for one in effects] == [Lookup]
    play.answer_questions()


def test_attempts_in_a_story_are_the_core_s_own() -> None:
    play = a_play()
    play.dispatched()
    play.answering = False
    play.say(MIKA, GetStory("s", 1))
    question = play.questions.pop()
    rows = play.shelf.find(question.query)
    play.say(MIKA, Cancel("c", (1,)))
    story = the(sent(play.core.found(question.token, rows, play.now), Story))
    assert (story.task.state, story.attempts[0].state) == (TaskState.CANCELLED, AttemptState.ABORTED)


def test_a_task_without_its_bodies_is_not_opened_again_and_says_why() -> None:
    play = a_play()
    uid = play.dispatched().attempt_uid
    play.say(W1, a_failure(uid, ErrorClass.EMPTY_OUTPUT))
    play.shelf.bodiless.add(1)
    changes = the(sent(play.say(MIKA, Retry("r", (1,))), Changes))
    assert changes.changes == (Change(1, TaskState.FAILED, changed=False, message="its prompt is no longer kept"),)
    assert play.state_of(1) == "failed"


def test_the_largest_answers_fit_one_message() -> None:
    """10,000 tasks with the highest ids, on the longest name there is."""
    play = Play(some_settings(a_worker("w" * 64)), MIKA, an_agent("w" * 64))
    first = 2**53 - 20_000
    play.core._state.next_task_id = first
    play.join(MIKA)
    play.core._state.settings = replace(play.settings, limits=Limits(queue_per_client=20_000))
    spec = a_spec()
    parts = [play.say(MIKA, Submit("s" * 64, "k", (spec,) * 500, part=part, parts=20)) for part in range(20)]
    submitted = the(sent(parts[-1], Submitted))
    ids = tuple(ref.task_id for ref in submitted.tasks)
    missing = tuple(range(1, BATCH_TASKS + 1))
    for task in list(play.core._state.tasks.values()):
        task.worker_id = "w" * 64
    answers: list[Message] = [
        submitted,
        the(sent(play.say(MIKA, Watch("w" * 64, missing, batch_id=1)), Watching)),
        the(sent(play.say(MIKA, Retry("r" * 64, missing, batch_id=1)), Changes)),
        the(sent(play.say(MIKA, Cancel("c" * 64, missing, batch_id=1)), Changes)),
    ]
    play.shelf.bodiless.update(ids)
    answers.append(the(sent(play.say(MIKA, Retry("r" * 64, missing, batch_id=1)), Changes)))
    for answer in answers:
        assert codec.decode(codec.encode(answer, 2**62)).message == answer


def test_a_failed_look_up_is_answered_and_takes_no_place() -> None:
    play = a_play()
    play.core._state.settings = replace(play.settings, limits=Limits(lookups_per_session=1))
    play.answering = False
    for _ in range(3):
        (question,) = [one for one in play.say(MIKA, GetTasks("t")) if isinstance(one, Lookup)]
        error = refusal(play.core.not_found(question.token, play.now))
        assert (error.code, error.request_id) == (Code.INTERNAL, "t")
        assert play.core.not_found(question.token, play.now) == []
    play.core.check()


def test_all_who_wait_for_the_same_submission_hear_that_its_look_up_failed() -> None:
    play = a_play()
    play.submit(a_spec(), key="k")
    play.answering = False
    play.questions.clear()
    play.submit(a_spec(), key="k")
    play.submit(a_spec(), key="k")
    (question,) = play.questions
    play.questions.clear()
    errors = sent(play.core.not_found(question.token, play.now), Error)
    assert [(one.code, one.request_id) for one in errors] == [(Code.INTERNAL, "r2"), (Code.INTERNAL, "r3")]
    play.answering = True
    assert the(sent(play.submit(a_spec(), key="k"), Submitted)).tasks[0].existing


def test_a_result_whose_look_up_failed_is_looked_up_again_when_it_comes_again() -> None:
    play = a_play()
    uid = play.dispatched().attempt_uid
    play.say(W1, a_result(uid))
    play.answering = False
    (question,) = [one for one in play.say(W1, a_result(uid)) if isinstance(one, Lookup)]
    assert play.core.not_found(question.token, play.now) == []
    play.questions.clear()
    play.answering = True
    assert len(sent(play.say(W1, a_result(uid)), ResultStored)) == 1


def test_what_happened_once_is_told_for_a_day_after_the_last_time() -> None:
    play = a_play()
    assert script(play.core.alert("odd", "it happened", play.now)) == ["alert odd"]
    play.wait(80_000)
    assert script(play.core.alert("odd", "it happened", play.now)) == []
    assert "no alert odd" not in script(play.wait(80_000))
    assert "no alert odd" in script(play.wait(10_000))
