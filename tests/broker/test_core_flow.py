"""A task's way through the core, as a dialogue: what comes in, every effect that goes out."""

from dataclasses import replace

from koubou_broker.records import Attempt, Event, NewTask, Submission, TaskProgress, WorkerMetric
from koubou_common.errors import Code, ErrorClass
from koubou_common.messages import (
    Cancel,
    Changes,
    Dispatch,
    ResultStored,
    Retry,
    Submit,
    Submitted,
    TaskChanged,
    Watch,
    Watching,
)
from koubou_common.messages.values import (
    AbortReason,
    AttemptState,
    Body,
    Change,
    Disposition,
    Metrics,
    TaskMark,
    TaskRef,
    TaskState,
)
from support.core_play import (
    MODEL,
    Play,
    a_client,
    a_failure,
    a_health,
    a_heartbeat,
    a_result,
    a_spec,
    a_status,
    a_worker,
    an_agent,
    an_agent_hello,
    refusal,
    saved,
    script,
    sent,
    some_settings,
    the,
)

W1 = an_agent("w1")
MIKA = a_client()


def a_play(*, agent: bool = True) -> Play:
    play = Play()
    play.join(MIKA)  # session 1
    if agent:
        play.join(W1)  # session 2
    return play


def test_a_submission_with_an_idle_worker_is_stored_told_and_dispatched_in_one_step() -> None:
    play = a_play()
    effects = play.submit(a_spec("hello"))
    assert script(effects) == [
        "save Submission, NewTask, Event, TaskProgress, Attempt, Decided",
        "1 <- Submitted",
        "2 <- Dispatch",
    ]
    assert the(sent(effects, Submitted)).tasks == (TaskRef(1, TaskState.QUEUED, existing=False),)
    dispatch = the(sent(effects, Dispatch))
    attempt = the(saved(effects, Attempt))
    assert (dispatch.number, dispatch.session, dispatch.attempt, dispatch.task_id) == (1, 2, 1, 1)
    assert dispatch.attempt_uid == attempt.attempt_uid
    assert attempt.placement == "no rule: all workers; w1 200 (residency -53)"
    assert the(saved(effects, TaskProgress)).state is TaskState.RUNNING
    assert [(one.before, one.after) for one in saved(effects, Event)] == [("", "queued"), ("queued", "running")]


def test_without_a_worker_it_waits_and_goes_with_the_first_hello() -> None:
    play = a_play(agent=False)
    assert script(play.submit()) == ["save Submission, NewTask, Event, TaskProgress", "1 <- Submitted"]
    assert script(play.join(W1)) == [
        "save Worker, Attempt, Event, TaskProgress, Decided",
        "2 <- Welcome",
        "2 <- Dispatch",
    ]


def test_a_result_is_recorded_and_the_next_task_leaves_in_the_same_step() -> None:
    play = a_play()
    first = play.dispatched()
    play.submit(a_spec("second"))
    effects = play.say(W1, a_result(first.attempt_uid))
    assert script(effects) == [
        "save Attempt, WorkerMetric, Event, TaskProgress, Decided",
        "2 <- ResultStored",
        "2 <- Dispatch",
    ]
    assert sent(effects, ResultStored) == [ResultStored(first.attempt_uid, Disposition.RECORDED)]
    assert [(row.task_id, row.state) for row in saved(effects, TaskProgress)] == [(1, "succeeded"), (2, "running")]
    metric = the(saved(effects, WorkerMetric))
    assert (metric.success, metric.tokens_processed, metric.execution_time_ms) == (True, 120, 1_500)


def test_a_repeated_result_gets_the_same_answer_and_changes_nothing() -> None:
    play = a_play()
    dispatch = play.dispatched()
    play.say(W1, a_result(dispatch.attempt_uid))
    effects = play.say(W1, a_result(dispatch.attempt_uid))
    assert script(effects) == ["look up FindAttempt", "2 <- ResultStored"]
    assert the(sent(effects, ResultStored)).disposition is Disposition.RECORDED


def test_a_transient_failure_waits_and_runs_again_elsewhere() -> None:
    play = Play(some_settings(a_worker("w1"), a_worker("w2", factor=0.5)))
    play.join(MIKA)
    play.join(W1)
    play.join(an_agent("w2"))
    dispatch = play.dispatched()
    effects = play.say(W1, a_failure(dispatch.attempt_uid, ErrorClass.STALLED))
    assert script(effects) == ["save Attempt, WorkerMetric, Event, TaskProgress", "2 <- ResultStored"]
    progress = the(saved(effects, TaskProgress))
    assert (progress.state, progress.transient_failures) == (TaskState.QUEUED, 1)
    wait_ms = progress.not_before_ms - play.now.wall_ms
    assert 0 < wait_ms <= 2_000
    assert sent(play.wait(wait_ms / 1000 - 0.01), Dispatch) == []
    again = the(sent(play.wait(0.02), Dispatch))
    assert (again.attempt, play.shelf.attempts[again.attempt_uid].worker_id) == (2, "w2")


def test_the_wait_before_a_retry_is_drawn_anew_each_time() -> None:
    waits_ms = []
    for seed in range(8):
        play = Play(seed=seed)
        play.join(W1)
        effects = play.say(W1, a_failure(play.dispatched().attempt_uid, ErrorClass.STALLED))
        waits_ms.append(the(saved(effects, TaskProgress)).not_before_ms - play.now.wall_ms)
    assert len(set(waits_ms)) == 8
    assert min(waits_ms) < 1_000 < max(waits_ms) <= 2_000


def test_a_permanent_failure_ends_the_task() -> None:
    play = a_play()
    dispatch = play.dispatched()
    effects = play.say(W1, a_failure(dispatch.attempt_uid, ErrorClass.CUT_OUTPUT, message="it reached num_predict"))
    progress = the(saved(effects, TaskProgress))
    assert (progress.state, progress.error_class) == (TaskState.FAILED, ErrorClass.CUT_OUTPUT)
    assert progress.error_message == "it reached num_predict"


def test_what_a_failed_task_cost_is_kept_with_it() -> None:
    play = a_play()
    dispatch = play.dispatched()
    failure = replace(
        a_failure(dispatch.attempt_uid, ErrorClass.EMPTY_OUTPUT), metrics=Metrics(prompt_tokens=7, thinking_tokens=90)
    )
    assert the(saved(play.say(W1, failure), TaskProgress)).metrics == failure.metrics


def test_a_cancel_is_durable_first_and_an_abort_second() -> None:
    play = a_play()
    dispatch = play.dispatched()
    effects = play.say(MIKA, Cancel("c", (1,)))
    assert script(effects) == ["save Event, TaskProgress, Attempt, WorkerMetric", "2 <- Abort", "1 <- Changes"]
    assert the(sent(effects, Changes)).changes == (Change(1, TaskState.CANCELLED, changed=True, message=""),)
    assert play.shelf.attempts[dispatch.attempt_uid].state is AttemptState.ABORTED
    again = play.say(MIKA, Cancel("c", (1,)))
    assert script(again) == ["look up FindMarks", "1 <- Changes"]
    assert the(sent(again, Changes)).changes == (
        Change(1, TaskState.CANCELLED, changed=False, message="had cancelled before"),
    )


def test_a_cancelled_attempt_keeps_its_slot_until_its_agent_stops_listing_it() -> None:
    play = a_play()
    uid = play.dispatched().attempt_uid
    play.submit(a_spec("next"))
    assert sent(play.say(MIKA, Cancel("c", (1,))), Dispatch) == []
    listed = play.say(W1, a_heartbeat(a_status([uid], free=0, last=1)))
    assert script(listed) == ["2 <- HeartbeatAck", "2 <- Abort"]
    gone = play.say(W1, a_heartbeat(a_status(free=1, last=1)))
    assert the(sent(gone, Dispatch)).task_id == 2


def test_a_success_after_the_cancel_is_late_and_changes_nothing() -> None:
    play = a_play()
    uid = play.dispatched().attempt_uid
    play.say(MIKA, Cancel("c", (1,)))
    effects = play.say(W1, a_result(uid))
    assert saved(effects, TaskProgress) == []
    assert the(saved(effects, Attempt)).state is AttemptState.LATE
    assert the(sent(effects, ResultStored)).disposition is Disposition.LATE
    assert play.state_of(1) == "cancelled"


def test_a_result_of_an_older_attempt_counts_and_the_newer_is_aborted() -> None:
    play = Play(some_settings(a_worker("w1"), a_worker("w2")))
    play.join(MIKA)
    play.join(W1)
    first = play.dispatched()
    play.wait(31)  # w1 says nothing: its lease ends
    second = the(sent(play.join(an_agent("w2")), Dispatch))
    effects = play.say(W1, a_result(first.attempt_uid, a_status(spooled=[first.attempt_uid], free=0, last=1)))
    assert script(effects) == [
        "save Attempt, WorkerMetric, Event, TaskProgress",
        "no alert silent:w1",
        "3 <- Abort",
        "2 <- ResultStored",
    ]
    abort = next(one for one in effects if script([one]) == ["3 <- Abort"])
    assert repr(AbortReason.SUPERSEDED) in repr(abort)
    states = {uid: row.state for uid, row in play.shelf.attempts.items()}
    assert states == {first.attempt_uid: AttemptState.SUCCEEDED, second.attempt_uid: AttemptState.ABORTED}
    late = play.say(an_agent("w2"), a_result(second.attempt_uid))
    assert the(sent(late, ResultStored)).disposition is Disposition.LATE
    assert play.shelf.progress[1].worker_id == "w1"


def test_a_late_success_of_a_queued_task_ends_it() -> None:
    play = a_play()
    uid = play.dispatched().attempt_uid
    play.wait(31)
    assert play.state_of(1) == "queued"
    play.say(W1, a_result(uid))
    assert play.state_of(1) == "succeeded"


def test_a_failure_of_an_older_attempt_is_only_recorded() -> None:
    play = a_play()
    uid = play.dispatched().attempt_uid
    play.wait(31)
    before = play.shelf.progress[1]
    effects = play.say(W1, a_failure(uid, ErrorClass.BAD_REQUEST, a_status(spooled=[uid], free=0, last=1)))
    assert saved(effects, TaskProgress) == []
    assert the(saved(effects, Attempt)).error_class is ErrorClass.BAD_REQUEST
    assert play.shelf.progress[1] == before


def test_a_retry_opens_the_task_again_and_keeps_its_history() -> None:
    play = a_play()
    first = play.dispatched()
    play.say(W1, a_failure(first.attempt_uid, ErrorClass.EMPTY_OUTPUT))
    effects = play.say(MIKA, Retry("r", (1,)))
    assert script(effects) == [
        "look up FindMarks",
        "save Event, TaskProgress, Attempt, Decided",
        "1 <- Changes",
        "2 <- Dispatch",
    ]
    again = the(sent(effects, Dispatch))
    assert again.attempt == 2
    progress = play.shelf.progress[1]
    assert (progress.generation, progress.error_class) == (2, None)
    assert play.shelf.attempts[first.attempt_uid].state is AttemptState.FAILED
    assert the(sent(play.say(MIKA, Retry("r", (1,))), Changes)).changes == (
        Change(1, TaskState.RUNNING, changed=False, message="is running"),
    )


def test_after_a_retry_only_the_new_generation_counts() -> None:
    play = a_play()
    old = play.dispatched()
    play.say(MIKA, Cancel("c", (1,)))
    play.say(MIKA, Retry("r", (1,)))
    effects = play.say(W1, a_result(old.attempt_uid, a_status(spooled=[old.attempt_uid], free=1, last=1)))
    assert the(sent(effects, ResultStored)).disposition is Disposition.LATE
    assert play.state_of(1) == "running"
    new = the(sent(effects, Dispatch))
    play.say(W1, a_result(new.attempt_uid))
    assert play.state_of(1) == "succeeded"


def test_a_deadline_ends_a_waiting_and_a_running_task() -> None:
    play = a_play()
    running = play.dispatched(a_spec("a", deadline_s=10))
    play.submit(a_spec("b", deadline_s=20))
    play.say(W1, a_heartbeat(a_status([running.attempt_uid], free=0, last=1)))
    effects = play.wait(10)
    assert script(effects)[:2] == ["save Event, TaskProgress, Attempt, WorkerMetric", "2 <- Abort"]
    play.wait(10)
    for task_id, where in [(1, "while it ran"), (2, "while it waited")]:
        progress = play.shelf.progress[task_id]
        assert (progress.state, progress.error_class) == (TaskState.FAILED, ErrorClass.DEADLINE)
        assert where in progress.error_message


def test_a_watch_tells_every_change_until_the_end() -> None:
    play = a_play()
    uid = play.dispatched().attempt_uid
    effects = play.say(MIKA, Watch("w", (1,)))
    assert sent(effects, Watching) == [Watching("w", (TaskMark(1, TaskState.RUNNING, "w1", 1),))]
    lost = play.say(W1, a_failure(uid, ErrorClass.DRAIN))
    marks = [one.task for one in sent(lost, TaskChanged)]
    assert [(mark.state, mark.attempts) for mark in marks] == [("queued", 1), ("running", 2)]
    again = the(sent(lost, Dispatch))
    done = play.say(W1, a_result(again.attempt_uid))
    assert [one.task.state for one in sent(done, TaskChanged)] == [TaskState.SUCCEEDED]
    assert sent(play.say(MIKA, Retry("r", (1,))), TaskChanged) == []


def test_watching_what_has_ended_is_answered_once() -> None:
    play = a_play()
    play.say(W1, a_result(play.dispatched().attempt_uid))
    effects = play.say(MIKA, Watch("w", (1, 99)))
    assert sent(effects, Watching) == [Watching("w", (TaskMark(1, TaskState.SUCCEEDED, "w1", 1),), (99,))]


def test_a_watch_that_reads_an_old_row_still_tells_the_end() -> None:
    play = a_play()
    uid = play.dispatched().attempt_uid
    play.submit(a_spec("b"), a_spec("c"))
    play.answering = False
    play.say(MIKA, Watch("w", batch_id=1))
    stale = [(one, play.shelf.find(one.query)) for one in play.questions]
    play.questions = []
    second = the(sent(play.say(W1, a_result(uid)), Dispatch))
    play.say(W1, a_result(second.attempt_uid))
    assert play.state_of(2) == "succeeded"
    effects = [effect for one, rows in stale for effect in play.core.found(one.token, rows, play.now)]
    marks = the(sent(effects, Watching)).tasks
    assert [(mark.task_id, mark.state) for mark in marks] == [(2, "succeeded"), (3, "running")]


def test_urgent_tasks_go_first_and_equals_in_order() -> None:
    play = a_play()
    uid = play.dispatched().attempt_uid
    play.submit(a_spec("a", priority=5), a_spec("b", priority=9), a_spec("c", priority=5))
    order = []
    for _ in range(3):
        dispatch = the(sent(play.say(W1, a_result(uid)), Dispatch))
        uid = dispatch.attempt_uid
        order.append(dispatch.task_id)
    assert order == [3, 2, 4]


def test_a_success_that_is_none_is_a_failure_with_a_name() -> None:
    play = a_play()
    play.submit(a_spec("1"), a_spec("2"), a_spec("3"))
    wanted = [ErrorClass.EMPTY_OUTPUT, ErrorClass.OUTPUT_TOO_LARGE]
    uid = next(iter(play.shelf.attempts))
    for task_id, error_class in enumerate(wanted, 1):
        good = a_result(uid)
        bad = {
            ErrorClass.EMPTY_OUTPUT: replace(good, output_length=0),
            ErrorClass.OUTPUT_TOO_LARGE: replace(good, raw=Body(bytes(32), 10**9)),
        }[error_class]
        effects = play.say(W1, bad)
        assert play.shelf.progress[task_id].error_class is error_class
        uid = the(sent(effects, Dispatch)).attempt_uid


def test_a_repeated_submission_is_the_same_task() -> None:
    play = a_play()
    play.submit(a_spec("a"), key="mine")
    effects = play.submit(a_spec("a"), key="mine")
    assert script(effects) == ["look up FindSubmission", "1 <- Submitted"]
    assert the(sent(effects, Submitted)).tasks == (TaskRef(1, TaskState.RUNNING, existing=True),)
    assert len(play.shelf.tasks) == 1


def test_two_repeats_during_one_look_up_are_both_answered() -> None:
    play = a_play()
    play.submit(a_spec("a"), key="mine")
    play.answering = False
    play.submit(a_spec("a"), key="mine")
    play.submit(a_spec("a"), key="mine")
    assert len(play.questions) == 1
    answers = sent(play.answer_questions(), Submitted)
    assert [one.request_id for one in answers] == ["r2", "r3"]
    assert all(ref.existing for one in answers for ref in one.tasks)


def test_another_key_with_the_same_hash_is_a_new_submission_and_only_one() -> None:
    play = a_play()
    play.core._state.submission_hashes = _Everything()
    play.answering = False
    play.submit(a_spec("a"), key="new")
    play.submit(a_spec("a"), key="new")
    answers = sent(play.answer_questions(), Submitted)
    assert [[(ref.task_id, ref.existing) for ref in one.tasks] for one in answers] == [[(1, False)], [(1, True)]]


class _Everything(set[int]):
    def __contains__(self, item: object) -> bool:
        return True


def test_a_batch_has_an_id_and_its_tasks_an_index() -> None:
    play = a_play(agent=False)
    effects = play.submit(a_spec("a"), a_spec("b"))
    assert the(sent(effects, Submitted)).batch_id == 1
    assert [(row.task_id, row.batch_id, row.batch_index) for row in saved(effects, NewTask)] == [(1, 1, 1), (2, 1, 2)]
    assert the(saved(effects, Submission)).count == 2
    alone = play.say(MIKA, Submit("x", "kx", (a_spec("c"),), as_batch=True))
    assert the(sent(alone, Submitted)).batch_id == 2


def test_parts_are_staged_and_the_last_decides_all() -> None:
    play = a_play(agent=False)
    parts = [Submit(f"p{nth}", "key", (a_spec(f"t{nth}"),), part=nth, parts=3) for nth in range(3)]
    assert script(play.say(MIKA, parts[0])) == ["1 <- PartStaged"]
    assert script(play.say(MIKA, parts[1])) == ["1 <- PartStaged"]
    assert play.shelf.tasks == {}
    effects = play.say(MIKA, parts[2])
    assert [ref.task_id for ref in the(sent(effects, Submitted)).tasks] == [1, 2, 3]
    again = play.say(MIKA, parts[2])
    assert script(again) == ["1 <- Submitted"]
    assert len(play.shelf.tasks) == 3


def test_a_part_that_comes_late_once_more_is_not_staged_anew() -> None:
    play = a_play(agent=False)
    parts = [Submit(f"p{nth}", "key", (a_spec(f"t{nth}"),), part=nth, parts=2) for nth in range(2)]
    for part in parts:
        play.say(MIKA, part)
    assert script(play.say(MIKA, parts[0])) == ["1 <- PartStaged"]
    assert not play.core._state.sessions[play.session_of(MIKA)].staged
    assert script(play.say(MIKA, parts[1])) == ["1 <- Submitted"]


def test_a_last_part_that_overtook_its_answer_does_not_keep_the_submission_from_being_told() -> None:
    play = a_play(agent=False)
    parts = [Submit(f"p{nth}", "key", (a_spec(f"t{nth}"),), part=nth, parts=2) for nth in range(2)]
    for part in parts:
        play.say(MIKA, part)
    play.say(MIKA, Submit("q1", "key", (a_spec("another"),), part=1, parts=2))
    play.say(MIKA, parts[0])
    answer = play.say(MIKA, parts[1])
    assert [ref.task_id for ref in the(sent(answer, Submitted)).tasks] == [1, 2]


def test_the_same_key_with_other_parts_in_one_session_is_refused() -> None:
    play = a_play(agent=False)
    for nth in range(2):
        play.say(MIKA, Submit(f"p{nth}", "key", (a_spec(f"t{nth}"),), part=nth, parts=2))
    play.say(MIKA, Submit("q0", "key", (a_spec("another"),), part=0, parts=2))
    answer = play.say(MIKA, Submit("q1", "key", (a_spec("t1"),), part=1, parts=2))
    assert refusal(answer).code is Code.CONFLICT
    assert len(play.shelf.tasks) == 2


def test_restarted_between_parts_the_client_is_told_to_send_all_again() -> None:
    play = a_play(agent=False)
    parts = [Submit(f"p{nth}", "key", (a_spec(f"t{nth}"),), part=nth, parts=2) for nth in range(2)]
    play.say(MIKA, parts[0])
    play = play.restart()
    play.join(MIKA)
    assert "send all parts again" in repr(play.say(MIKA, parts[1]))
    play.say(MIKA, parts[0])
    assert len(the(sent(play.say(MIKA, parts[1]), Submitted)).tasks) == 2


def test_the_same_seed_gives_the_same_uids_and_another_seed_others() -> None:
    uids = []
    for seed in (1, 1, 2):
        play = Play(seed=seed)
        play.join(W1, an_agent_hello())
        uids.append(play.dispatched().attempt_uid)
    assert uids[0] == uids[1] != uids[2]


def test_after_a_short_task_that_is_mostly_the_clis_own_words_a_large_file_still_fits() -> None:
    """20 bytes of prompt in 280 tokens: taken for the ratio of this model's text, nothing would fit any more."""
    play = a_play()
    uid = play.dispatched(a_spec("Say hello to 20 bits")).attempt_uid
    effects = play.say(W1, replace(a_result(uid), metrics=Metrics(prompt_tokens=280, output_tokens=5)))
    assert the(saved(effects, WorkerMetric)).prompt_length > 1_000
    large = a_spec("Explain.", files=[("src/large.py", 20_000)])
    assert len(sent(play.submit(large), Dispatch)) == 1
    assert play.core._state.router.fitting.bytes_per_token(MODEL) > 3.5


def test_a_ratio_measured_under_one_spelling_of_a_model_counts_under_every_other() -> None:
    play = Play(some_settings(a_worker("w1", model="qwen3")))
    play.join(W1, an_agent_hello(health=a_health("qwen3")))
    play.join(MIKA)
    result = replace(a_result(play.dispatched(a_spec(size_bytes=8_000)).attempt_uid), model="qwen3")
    play.say(W1, replace(result, metrics=Metrics(prompt_tokens=2_000, output_tokens=5)))
    assert play.core._state.router.fitting.bytes_per_token("qwen3:latest") == (8_000 + 1_150) / 2_000
