"""The result cache in the core: who gets an earlier answer, who does not, and what happens in between."""

import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from koubou_broker.core import WorkerSettings
from koubou_broker.effects import Effect, FindCached, Lookup, Peer
from koubou_broker.records import Attempt
from koubou_common.errors import ErrorClass
from koubou_common.messages import (
    Cancel,
    Dispatch,
    GetTasks,
    Purge,
    Retry,
    Submitted,
    TaskChanged,
    Tasks,
    Watch,
)
from koubou_common.messages.values import AgentHealth, ModelSeen, Option, TaskSpec, TaskState
from support.core_play import (
    MODEL,
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
    sent,
    some_settings,
    the,
    with_settings,
)

W1, W2, MIKA, NOA = an_agent("w1"), an_agent("w2"), a_client(), a_client("noa")
OLD, NEW = "sha256:old", "sha256:new"
SEEDED = (Option("num_ctx", 8192), Option("seed", 7))


def a_play(*workers: WorkerSettings, cache_days: float = 30.0) -> Play:
    settings = some_settings(*(workers or (replace(a_worker("w1", slots=8), options=SEEDED),)))
    peers = [an_agent(one.worker_id) for one in settings.workers]
    play = Play(with_settings(settings, cache_days=cache_days), MIKA, NOA, *peers)
    for peer in peers:
        join(play, peer)
    return play


def join(play: Play, peer: Peer = W1, *, digest: str = OLD, boot: str = "b1") -> None:
    health = AgentHealth(ollama_ok=True, ollama_version="0.24.0", models=(ModelSeen(MODEL, digest),))
    play.join(peer, an_agent_hello(a_status(free=8), boot=boot, health=health))


def answer(
    play: Play, dispatch: Dispatch, text: str = "# Docs", *, by: Peer = W1, digest: str = OLD, **more: object
) -> None:
    """The agent delivers a success and is free again."""
    told = a_result(dispatch.attempt_uid, text=text)
    result = replace(told, model_digest=digest, **more)  # type: ignore[arg-type] # names are checked by replace itself
    play.say(by, replace(result, status=a_status(free=8, last=99)))


def asked(play: Play, spec: TaskSpec | None = None, text: str = "# Docs", **more: object) -> None:
    """A task is submitted, run and answered."""
    dispatch = the(sent(play.submit(spec or a_spec()), Dispatch))
    answer(play, dispatch, text, **more)  # type: ignore[arg-type] # as in `answer`


def is_answered(play: Play, effects: list[Effect], task_id: int) -> bool:
    """Whether the task ended at once with an answer of the cache; else it was dispatched."""
    dispatched = [one.task_id for one in sent(effects, Dispatch)]
    row = play.shelf.progress[task_id]
    assert (row.state is TaskState.SUCCEEDED) == (task_id not in dispatched), row
    return row.state is TaskState.SUCCEEDED


def test_the_same_question_is_answered_at_once_without_an_attempt() -> None:
    play = a_play()
    asked(play, flags=("chatty",))
    effects = play.submit()
    assert not sent(effects, Dispatch)
    first, second = play.shelf.progress[1], play.shelf.progress[2]
    assert (second.state, second.result, second.flags) == (TaskState.SUCCEEDED, first.result, ("chatty", "cached"))
    assert (second.output_offset, second.output_length) == (first.output_offset, first.output_length)
    assert (second.attempts, second.worker_id, second.started_ms, second.metrics) == (0, "", 0, None)
    assert second.finished_ms == play.now.wall_ms
    assert [one.task_id for one in play.shelf.attempts.values()] == [1]
    assert [(one.actor, one.before, one.after, one.reason) for one in play.shelf.events_of(2)] == [
        ("mika", "", "queued", "submitted"),
        ("broker", "queued", "succeeded", "the answer of task 1, from the result cache"),
    ]
    assert the(sent(effects, Submitted)).tasks[0].state is TaskState.QUEUED


def test_nothing_is_kept_or_asked_for_where_the_cache_is_off() -> None:
    play = a_play(cache_days=0.0)
    asked(play)
    effects = play.submit()
    assert play.shelf.cached == {}
    assert not [one for one in effects if isinstance(one, Lookup)]
    assert len(sent(effects, Dispatch)) == 1


@pytest.mark.parametrize(
    "other",
    [
        a_spec("Write the tests."),
        a_spec(files=[("a.py", 10)]),
        a_spec(options=[Option("num_predict", 10)]),
        a_spec(options=[Option("seed", 8)]),
        a_spec(target="b.md"),
        replace(a_spec(), repo="another"),
        replace(a_spec(), strict_output=True),
        replace(a_spec(), use_cache=False),
    ],
)
def test_another_question_is_asked_anew(other: TaskSpec) -> None:
    play = a_play()
    asked(play)
    assert not is_answered(play, play.submit(other), 2)


@pytest.mark.parametrize(
    "same",
    [a_spec(priority=9), a_spec(model="gpt-oss:20b"), a_spec(task_type="doc"), a_spec(worker="w1", max_attempts=2)],
)
def test_the_same_question_in_another_hurry_is_the_same(same: TaskSpec) -> None:
    play = a_play()
    asked(play)
    assert is_answered(play, play.submit(same), 2)


def test_nobody_gets_the_answers_of_somebody_else() -> None:
    play = a_play()
    asked(play)
    assert not is_answered(play, play.submit(who=NOA), 2)


def test_a_question_that_bypasses_the_cache_brings_a_newer_answer_into_it() -> None:
    play = a_play()
    asked(play)
    asked(play, replace(a_spec(), use_cache=False), "# Newer docs")
    assert is_answered(play, play.submit(), 3)
    assert play.shelf.progress[3].result == play.shelf.progress[2].result


def test_failures_are_never_kept() -> None:
    play = a_play()
    uid = play.dispatched().attempt_uid
    play.say(W1, a_failure(uid, ErrorClass.EMPTY_OUTPUT, a_status(free=8, last=99)))
    assert play.shelf.cached == {}
    assert not is_answered(play, play.submit(), 2)


def test_an_answer_that_is_a_failure_after_all_is_not_kept() -> None:
    play = a_play()
    answer(play, play.dispatched(), output_length=0)
    assert (play.state_of(1), play.shelf.cached) == (TaskState.FAILED, {})


def test_where_another_run_may_answer_otherwise_nothing_is_kept() -> None:
    play = a_play(replace(a_worker("w1", slots=8), options=(Option("temperature", 0.3),)))
    asked(play)
    assert play.shelf.cached == {}
    asked(play, a_spec(options=[Option("temperature", 0)]))
    assert len(play.shelf.cached) == 1
    assert is_answered(play, play.submit(a_spec(options=[Option("temperature", 0)])), 3)


def test_an_answer_of_unknown_version_is_not_kept() -> None:
    play = a_play()
    asked(play, digest="")
    assert play.shelf.cached == {}


def test_another_version_of_the_model_answers_anew() -> None:
    play = a_play()
    asked(play)
    health = AgentHealth(ollama_ok=True, ollama_version="0.24.0", models=(ModelSeen(MODEL, NEW),))
    play.say(W1, a_heartbeat(a_status(free=8, last=99), health))
    assert not is_answered(play, play.submit(), 2)


def test_an_agent_of_another_version_answers_anew() -> None:
    play = a_play()
    asked(play)
    health = AgentHealth(ollama_ok=True, ollama_version="0.24.0", models=(ModelSeen(MODEL, OLD),))
    hello = replace(an_agent_hello(a_status(free=8), boot="b2", health=health), software="koubou-agent 1")
    play.join(W1, hello)
    assert not is_answered(play, play.submit(), 2)


def test_an_outcome_that_an_earlier_run_of_the_agent_made_is_not_kept() -> None:
    play = a_play()
    dispatch = play.dispatched()
    health = AgentHealth(ollama_ok=True, models=(ModelSeen(MODEL, OLD),))
    play.join(W1, an_agent_hello(a_status(spooled=[dispatch.attempt_uid], free=8), boot="b2", health=health))
    answer(play, dispatch)
    assert (play.state_of(1), play.shelf.cached) == (TaskState.SUCCEEDED, {})


def test_an_outcome_begun_before_the_broker_started_is_not_kept_as_settings_may_have_changed() -> None:
    play = a_play()
    dispatch = play.dispatched()
    play.wait(1)
    again = play.restart()
    health = AgentHealth(ollama_ok=True, models=(ModelSeen(MODEL, OLD),))
    again.join(W1, an_agent_hello(a_status([dispatch.attempt_uid], free=7), health=health))
    answer(again, dispatch)
    assert (again.state_of(1), again.shelf.cached) == (TaskState.SUCCEEDED, {})


def test_any_worker_that_could_run_it_may_have_answered() -> None:
    other = (Option("num_ctx", 4096), Option("seed", 7))
    play = a_play(replace(a_worker("w1", slots=8), options=SEEDED), replace(a_worker("w2", slots=8), options=other))
    asked(play, a_spec(worker="w2"), by=W2)
    assert is_answered(play, play.submit(a_spec()), 2)
    assert not is_answered(play, play.submit(a_spec(worker="w1")), 3)


def test_the_newest_of_several_answers_is_given() -> None:
    other = (Option("num_ctx", 4096), Option("seed", 7))
    play = a_play(replace(a_worker("w1", slots=8), options=SEEDED), replace(a_worker("w2", slots=8), options=other))
    asked(play, a_spec(worker="w2"), "# By the second", by=W2)
    play.wait(1)
    asked(play, a_spec(worker="w1"), "# By the first")
    assert is_answered(play, play.submit(a_spec()), 3)
    assert play.shelf.progress[3].result == play.shelf.progress[2].result


def test_a_task_of_one_version_gets_answers_of_that_version_alone() -> None:
    play = a_play(*(replace(a_worker(name, slots=8), options=SEEDED) for name in ("w1", "w2")))
    join(play, W2, digest=NEW, boot="b2")
    asked(play, a_spec(worker="w2"), by=W2, digest=NEW)
    spec = replace(a_spec(model=MODEL, worker="w2"), same_digest=True)
    assert is_answered(play, play.submit(spec), 2)
    assert not is_answered(play, play.submit(replace(a_spec(model=MODEL, worker="w1"), same_digest=True)), 3)


def test_an_answer_is_given_for_as_long_as_the_settings_say() -> None:
    play = a_play(cache_days=1.0)
    asked(play)
    play.wait(86_000 * 0.99)
    join(play)
    assert is_answered(play, play.submit(), 2)
    play.wait(86_400 * 0.02)
    join(play)
    assert not is_answered(play, play.submit(), 3)


def test_an_answer_whose_text_was_removed_is_not_given() -> None:
    play = a_play()
    asked(play)
    play.shelf.refs[1].clear()
    assert not is_answered(play, play.submit(), 2)


def test_a_retry_of_the_source_takes_its_answer_back_and_brings_another() -> None:
    play = a_play()
    asked(play)
    play.wait(1)
    again = the(sent(play.say(MIKA, Retry("r", (1,))), Dispatch))
    assert not is_answered(play, play.submit(), 2)
    answer(play, again, "# Better docs", digest=NEW)
    assert len(play.shelf.cached) == 2
    # The first key names a task that has another outcome now, of another version of the model.
    assert not is_answered(play, play.submit(), 3)


def test_a_retry_of_a_cached_answer_runs() -> None:
    play = a_play()
    asked(play)
    play.submit()
    dispatch = the(sent(play.say(MIKA, Retry("r", (2,))), Dispatch))
    answer(play, dispatch, "# Better docs")
    row = play.shelf.progress[2]
    assert (row.state, row.flags, row.generation, row.attempts) == (TaskState.SUCCEEDED, (), 2, 1)


def test_while_the_look_up_runs_the_task_waits_and_says_for_what() -> None:
    play = a_play()
    asked(play)
    play.answering = False
    effects = play.submit()
    assert not sent(effects, Dispatch)
    assert play.state_of(2) == TaskState.QUEUED
    play.say(MIKA, GetTasks("g", (2,)))
    (cached,) = [one for one in play.questions if isinstance(one.query, FindCached)]
    play.questions.remove(cached)
    view = the(sent(play.answer_questions(), Tasks)).tasks[0]
    assert view.waiting_for == "the result cache"
    play.say(MIKA, Watch("w", (2,)))
    play.answer_questions()
    play.questions = [cached]
    assert [one.task.state for one in sent(play.answer_questions(), TaskChanged)] == [TaskState.SUCCEEDED]


def test_a_cancel_during_the_look_up_holds() -> None:
    play = a_play()
    asked(play)
    play.answering = False
    play.submit()
    play.say(MIKA, Cancel("c", (2,)))
    play.answer_questions()
    assert play.state_of(2) == TaskState.CANCELLED


def test_a_task_cancelled_and_opened_again_during_the_look_up_runs() -> None:
    play = a_play()
    asked(play)
    play.answering = False
    play.submit()
    (cached,) = play.questions
    play.questions = []
    play.say(MIKA, Cancel("c", (2,)))
    play.say(MIKA, Retry("r", (2,)))
    effects = play.answer_questions()
    play.questions = [cached]
    effects += play.answer_questions()
    assert [one.task_id for one in sent(effects, Dispatch)] == [2]
    assert play.state_of(2) == TaskState.RUNNING


def _retried(play: Play) -> None:
    play.say(MIKA, Retry("r", (1,)))


def _retried_and_answered(play: Play) -> None:
    again = the(sent(play.say(MIKA, Retry("r", (1,))), Dispatch))
    answer(play, again, "# Of another version", digest=NEW)


def _purged(play: Play) -> None:
    play.say(MIKA, Purge("p", (1,)))


@pytest.mark.parametrize("happens", [_retried, _retried_and_answered, _purged])
def test_rows_that_were_overtaken_give_no_answer(happens: Callable[[Play], None]) -> None:
    play = a_play()
    asked(play)
    play.wait(1)
    play.answering = False
    play.submit()
    (question,) = play.questions
    play.questions = []
    rows = play.shelf.find(question.query)
    assert [one.stored.task.task_id for one in rows.cached] == [1]
    play.answering = True
    happens(play)
    play.step(play.core.found(question.token, rows, play.now))
    assert play.state_of(2) == TaskState.RUNNING


def test_the_session_may_go_during_the_look_up() -> None:
    play = a_play()
    asked(play)
    play.answering = False
    play.submit()
    play.close(MIKA)
    play.answer_questions()
    assert play.state_of(2) == TaskState.SUCCEEDED


def test_a_look_up_that_fails_lets_the_task_run_and_bothers_nobody() -> None:
    play = a_play()
    asked(play)
    play.answering = False
    play.submit()
    (question,) = play.questions
    play.questions = []
    effects = play.step(play.core.not_found(question.token, play.now))
    assert [type(one) for one in sent(effects, object)] == [Dispatch]
    assert play.state_of(2) == TaskState.RUNNING


def test_a_restart_during_the_look_up_lets_the_task_run() -> None:
    play = a_play()
    asked(play)
    play.answering = False
    play.submit()
    again = play.restart()
    health = AgentHealth(ollama_ok=True, ollama_version="0.24.0", models=(ModelSeen(MODEL, OLD),))
    effects = again.join(W1, an_agent_hello(a_status(free=8), health=health))
    assert [one.task_id for one in sent(effects, Dispatch)] == [2]


def test_answers_survive_a_restart() -> None:
    play = a_play()
    asked(play)
    again = play.restart()
    join(again)
    assert is_answered(again, again.submit(key="another"), 2)


def test_a_busy_session_does_without_the_cache() -> None:
    play = a_play()
    asked(play)
    play.answering = False
    for number in range(play.settings.limits.lookups_per_session):
        play.say(MIKA, GetTasks(f"g{number}", (1,)))
    assert len(sent(play.submit(), Dispatch)) == 1


def test_a_deadline_during_the_look_up_ends_the_task() -> None:
    play = a_play()
    asked(play)
    play.answering = False
    play.submit(a_spec(deadline_s=5))
    play.wait(6)
    play.answer_questions()
    assert play.shelf.progress[2].error_class is ErrorClass.DEADLINE


def test_a_batch_is_looked_up_in_one_question_and_only_what_is_new_runs() -> None:
    play = a_play()
    asked(play, a_spec("one"))
    asked(play, a_spec("three"))
    effects = play.submit(a_spec("one"), a_spec("two"), a_spec("three"), replace(a_spec("one"), use_cache=False))
    assert len([one for one in effects if isinstance(one, Lookup)]) == 1
    assert sorted(one.task_id for one in sent(effects, Dispatch)) == [4, 6]
    assert [play.state_of(task_id) for task_id in (3, 5)] == [TaskState.SUCCEEDED] * 2


def test_a_repeated_submission_is_the_same_task_cached_or_not() -> None:
    play = a_play()
    asked(play)
    play.submit(key="same")
    again = the(sent(play.submit(key="same"), Submitted)).tasks[0]
    assert (again.task_id, again.state, again.existing) == (2, TaskState.SUCCEEDED, True)


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_a_cached_answer_is_that_of_a_success_with_the_same_question(seed: int) -> None:
    """Submissions, answers, failures, retries, cancels and late look-ups in any order."""
    draw = random.Random(seed)
    play = a_play()
    open_uids: set[str] = set()

    def note(effects: list[Effect]) -> None:
        open_uids.update(one.attempt_uid for one in sent(effects, Dispatch))

    for number in range(120):
        play.wait(draw.choice([0.001, 0.5]))
        play.answering = draw.random() < 0.7
        match draw.randrange(6):
            case 0 | 1:
                spec = replace(a_spec(f"question {draw.randrange(4)}"), use_cache=draw.random() < 0.8)
                note(play.submit(spec))
            case 2 if open_uids:
                uid = draw.choice(sorted(open_uids))
                open_uids.discard(uid)
                status = a_status(open_uids, free=8 - len(open_uids), last=999)
                result = replace(a_result(uid, status, f"answer {number}"), model_digest=OLD)
                note(play.say(W1, result))
            case 3 if open_uids:
                uid = draw.choice(sorted(open_uids))
                open_uids.discard(uid)
                status = a_status(open_uids, free=8 - len(open_uids), last=999)
                note(play.say(W1, a_failure(uid, ErrorClass.BAD_REQUEST, status)))
            case 4 if play.shelf.tasks:
                note(play.say(MIKA, Retry(f"r{number}", (draw.choice(list(play.shelf.tasks)),))))
            case 5 if play.shelf.tasks:
                note(play.say(MIKA, Cancel(f"c{number}", (draw.choice(list(play.shelf.tasks)),))))
            case _:
                note(play.answer_questions())
    play.answering = True
    note(play.answer_questions())
    hits = [row for row in play.shelf.written if not isinstance(row, Attempt) and "cached" in row.flags]
    assert hits, f"seed {seed}: the cache never answered"
    prompts = {task_id: task.prompt for task_id, task in play.shelf.tasks.items()}
    for hit in hits:
        given = {
            (prompts[row.task_id], row.result)
            for row in play.shelf.written
            if not isinstance(row, Attempt) and row.state is TaskState.SUCCEEDED and "cached" not in row.flags
        }
        assert (prompts[hit.task_id], hit.result) in given, f"seed {seed}: {hit}"
        assert hit.task_id not in {
            one.task_id for one in play.shelf.attempts.values() if one.generation == hit.generation
        }
