"""What a task needs and what a worker is, in the core: windows, versions, capabilities, foreign load."""

from dataclasses import replace

import pytest

from koubou_broker.core_settings import WorkerSettings
from koubou_broker.effects import Alert, Effect, Peer
from koubou_common.errors import Code, ErrorClass
from koubou_common.messages import (
    AgentHello,
    Dispatch,
    GetTasks,
    GetWorkers,
    Preview,
    RemoveWorker,
    Submit,
    Submitted,
    Tasks,
    Workers,
)
from koubou_common.messages.values import AgentHealth, AttemptState, Metrics, ModelSeen, Option, TaskState, WorkerView
from koubou_common.reasons import Reason
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
    an_operator,
    refusal,
    sent,
    some_settings,
    task_ids,
    the,
)

W1, W2, W3 = an_agent("w1"), an_agent("w2"), an_agent("w3")
BOSS, MIKA = an_operator(), a_client()
OLD, NEW = "a" * 64, "b" * 64
PINNED = replace(a_spec(model=MODEL), same_digest=True)


def a_hello(health: AgentHealth | None = None, *, slots: int = 1, proto: int = 2) -> AgentHello:
    return replace(an_agent_hello(a_status(free=slots), health=health), proto_max=proto)


def having(digest: str, context_length: int = 0) -> AgentHealth:
    return AgentHealth(ollama_ok=True, models=(ModelSeen(MODEL, digest=digest, context_length=context_length),))


def loaded(*models: str) -> AgentHealth:
    """An Ollama that has MODEL and these, and these are loaded."""
    seen = (ModelSeen(MODEL, loaded=MODEL in models), *(ModelSeen(one, loaded=True) for one in models if one != MODEL))
    return AgentHealth(ollama_ok=True, models=seen)


def with_own_window(num_ctx: int) -> WorkerSettings:
    return replace(a_worker("w1"), model_options=((MODEL, (Option("num_ctx", num_ctx), Option("seed", 1))),))


def worker_of(play: Play, worker_id: str = "w1") -> WorkerView:
    if BOSS.name not in play._sessions:
        play.join(BOSS)
    return the(sent(play.say(BOSS, GetWorkers("g", worker_id)), Workers)).workers[0]


def alerts(effects: list[Effect], code: str) -> list[str]:
    return [one.message for one in effects if isinstance(one, Alert) and one.code == code]


def waits_for(play: Play, task_id: int) -> str:
    return the(sent(play.say(MIKA, GetTasks("t", (task_id,))), Tasks)).tasks[0].waiting_for


# Windows


def test_options_of_a_model_leave_with_the_dispatch() -> None:
    play = Play(some_settings(with_own_window(16_384)))
    play.join(W1, a_hello())
    dispatch = play.dispatched(a_spec(min_context=16_000))
    assert dispatch.model_options == (Option("num_ctx", 16_384), Option("seed", 1))


def test_an_older_agent_has_the_general_window_and_is_sent_no_options() -> None:
    play = Play(some_settings(with_own_window(16_384)))
    play.join(W1, a_hello(proto=1))
    assert refusal(play.submit(a_spec(min_context=16_000))).code is Code.CONTEXT_TOO_SMALL
    assert play.dispatched(a_spec()).model_options == ()


def test_a_task_that_waits_is_sorted_in_again_when_a_window_turns_out_smaller() -> None:
    play = Play(some_settings(with_own_window(16_384), a_worker("w2")))
    task_id = the(sent(play.submit(a_spec(min_context=16_000)), Submitted)).tasks[0].task_id
    small = a_hello(having(OLD, context_length=4_096))
    assert sent(play.join(W1, small), Dispatch) == [], "the model was trained for 4,096 tokens"
    assert "below --min-context" in waits_for(play, task_id)
    play.say(W1, replace(a_heartbeat(a_status(), having(OLD, context_length=131_072)), sent_ms=1))
    assert play.state_of(task_id) is TaskState.RUNNING


@pytest.mark.parametrize("told", [0, 8_192])
def test_after_an_overflow_a_task_goes_to_a_larger_window_and_to_no_other(told: int) -> None:
    """`told`: the window that the failed attempt had, as its agent says."""
    play = Play(some_settings(a_worker("w1"), a_worker("w2"), a_worker("w3", num_ctx=4_096), a_worker("w4")))
    for agent in (W1, W2, W3):
        play.join(agent)
    dispatch = play.dispatched(a_spec())
    failure = replace(a_failure(dispatch.attempt_uid, ErrorClass.CONTEXT_OVERFLOW), metrics=Metrics(num_ctx=told))
    first = play.shelf.attempts[dispatch.attempt_uid].worker_id
    effects = play.say(an_agent(first), failure)
    assert sent(effects, Dispatch) == []
    assert play.shelf.progress[1].error_class is ErrorClass.CONTEXT_OVERFLOW, "nobody has a larger one"

    wide = Play(some_settings(a_worker("w1"), a_worker("w2"), a_worker("w3", num_ctx=16_384, factor=0.1)))
    for agent in (W1, W2, W3):
        wide.join(agent)
    dispatch = wide.dispatched(a_spec())
    failure = replace(a_failure(dispatch.attempt_uid, ErrorClass.CONTEXT_OVERFLOW), metrics=Metrics(num_ctx=told))
    again = the(sent(wide.say(an_agent(wide.shelf.attempts[dispatch.attempt_uid].worker_id), failure), Dispatch))
    assert wide.shelf.attempts[again.attempt_uid].worker_id == "w3"


def test_a_doubtful_prompt_goes_to_the_larger_window_first() -> None:
    play = Play(some_settings(a_worker("fast", factor=2.0), a_worker("wide", num_ctx=32_768, factor=0.2)))
    for name in ("fast", "wide"):
        play.join(an_agent(name))
    sure = play.dispatched(a_spec(size_bytes=1_000))
    assert play.shelf.attempts[sure.attempt_uid].worker_id == "fast"
    play.say(an_agent("fast"), a_result(sure.attempt_uid, a_status(last=1)))
    doubtful = play.dispatched(a_spec(size_bytes=7_000 * 4))
    assert play.shelf.attempts[doubtful.attempt_uid].worker_id == "wide"
    next_best = play.dispatched(a_spec("b", size_bytes=7_000 * 4))
    assert play.shelf.attempts[next_best.attempt_uid].worker_id == "fast", "doubtful is not impossible"


def test_where_all_are_doubtful_the_largest_window_comes_first() -> None:
    play = Play(some_settings(a_worker("fast", factor=2.0), a_worker("wide", num_ctx=9_000, factor=0.2)))
    for name in ("fast", "wide"):
        play.join(an_agent(name))
    dispatch = play.dispatched(a_spec(size_bytes=9_000 * 5))
    assert play.shelf.attempts[dispatch.attempt_uid].worker_id == "wide"


def test_a_ratio_follows_many_small_differences() -> None:
    """Each measurement moved it by less than was taken for a change, and it stayed where the first one was."""
    play = Play()
    play.join(W1)
    for nth in range(40):
        dispatch = play.dispatched(a_spec(str(nth), size_bytes=8_000))
        tokens = 2_000 if nth == 0 else 1_700
        metrics = Metrics(prompt_tokens=tokens, output_tokens=5, total_ms=10)
        done = replace(a_result(dispatch.attempt_uid, a_status(last=nth + 1)), metrics=metrics)
        play.say(W1, done)
    ratio = play.core._state.router.fitting.bytes_per_token(MODEL)
    assert ratio == pytest.approx((8_000 + 1_150) / 1_700, rel=0.01)


def test_a_task_goes_to_a_window_that_turned_out_large_enough_while_it_waited() -> None:
    play = Play(some_settings(a_worker("small"), a_worker("big", num_ctx=131_072)))
    small, big = an_agent("small"), an_agent("big")
    play.join(small)
    play.join(big)

    def learn(name: str, agent: Peer, tokens: int) -> list[Effect]:
        dispatch = play.dispatched(a_spec(name, size_bytes=8_000, worker=agent.name))
        metrics = Metrics(prompt_tokens=tokens, output_tokens=5, total_ms=10)
        return play.say(agent, replace(a_result(dispatch.attempt_uid, a_status(last=99)), metrics=metrics))

    learn("dense", big, 4_000)
    play.dispatched(a_spec("busy", worker="big"))
    waits = [the(task_ids(play.submit(a_spec(f"long {nth}", size_bytes=60_000)))) for nth in range(3)]
    assert all("big" in waits_for(play, one) for one in waits), "at two bytes a token the small one surely cannot"
    sparse = (learn(f"sparse {nth}", small, 900) for nth in range(20))
    first = next(one for effects in sparse for one in sent(effects, Dispatch))
    assert first.task_id == waits[0]
    assert play.shelf.attempts[first.attempt_uid].worker_id == "small"
    effects = play.say(small, a_result(first.attempt_uid, a_status(last=99)))
    assert the(sent(effects, Dispatch)).task_id == waits[1]


# Models


@pytest.mark.parametrize("asked", ["", MODEL, "GPT-OSS:20b"])
def test_a_model_that_settings_list_and_ollama_does_not_have_waits_and_says_so(asked: str) -> None:
    play = Play()
    play.join(W1, a_hello(a_health("other:7b")))
    effects = play.submit(a_spec(model=asked))
    assert sent(effects, Dispatch) == []
    task_id = the(sent(effects, Submitted)).tasks[0].task_id
    assert f"its Ollama does not have {MODEL} now" in waits_for(play, task_id)
    play.say(W1, a_heartbeat(health=a_health(MODEL.upper())))
    assert play.state_of(task_id) is TaskState.RUNNING


def test_an_agent_that_has_not_listed_its_models_is_trusted() -> None:
    play = Play()
    play.join(W1, a_hello(AgentHealth(ollama_ok=True)))
    assert len(sent(play.submit(), Dispatch)) == 1


# Capabilities


def test_a_capability_that_was_asked_for_is_a_requirement() -> None:
    play = Play(some_settings(a_worker("w1", factor=2.0), a_worker("w2", capabilities=("code", "review"))))
    play.join(W1)
    play.join(W2)
    dispatch = play.dispatched(replace(a_spec(), capabilities=("review", "code")))
    assert play.shelf.attempts[dispatch.attempt_uid].worker_id == "w2"
    assert sent(play.submit(replace(a_spec("b"), capabilities=("code",))), Dispatch) == [], "it is busy"


def test_a_capability_that_nobody_has_is_refused_with_those_there_are() -> None:
    play = Play(some_settings(a_worker("w1", capabilities=("code",)), a_worker("w2", capabilities=("review",))))
    error = refusal(play.submit(replace(a_spec(), capabilities=("code", "review"))))
    assert (error.code, error.message) == (Code.REFUSED, "no worker has all the capabilities code, review")
    assert "known capabilities are: code, review" in error.hint
    error = refusal(play.submit(replace(a_spec("b"), capabilities=("art",))))
    assert error.message == "no worker has the capability art"


def test_a_capability_without_a_name_is_bad_input() -> None:
    play = Play(some_settings(a_worker("w1")))
    error = refusal(play.submit(replace(a_spec(), capabilities=("", "code"))))
    assert (error.code, error.message) == (Code.BAD_INPUT, "a capability has no name")


def test_a_window_that_only_a_model_which_was_not_asked_for_has_is_named_with_it() -> None:
    wide = (("wide:latest", (Option("num_ctx", 16_384),)),)
    play = Play(some_settings(replace(a_worker("w1", models=(MODEL, "wide:latest")), model_options=wide)))
    error = refusal(play.submit(a_spec(min_context=16_000)))
    assert error.code is Code.CONTEXT_TOO_SMALL
    assert "with its default model" in error.message


# Versions of a model


def a_workshop_of_two(first: str = OLD, second: str = NEW) -> Play:
    play = Play(some_settings(a_worker("w1", slots=2), a_worker("w2")))
    play.join(W1, a_hello(having(first), slots=2))
    play.join(W2, a_hello(having(second)))
    return play


def test_a_difference_raises_an_alert_that_ends_by_itself() -> None:
    play = Play(some_settings(a_worker("w1"), a_worker("w2")))
    assert alerts(play.join(W1, a_hello(having(OLD))), "model_versions") == []
    said = the(alerts(play.join(W2, a_hello(having(NEW))), "model_versions"))
    assert f"{MODEL} is aaaaaaaaaaaa on w1, bbbbbbbbbbbb on w2" in said
    assert alerts(play.say(W2, a_heartbeat(health=having(OLD))), "model_versions") == [""]


def test_a_difference_ends_when_one_of_them_is_removed() -> None:
    play = a_workshop_of_two()
    play.join(BOSS)
    assert alerts(play.say(BOSS, RemoveWorker("x", "w2")), "model_versions") == [""]


def test_a_model_that_a_worker_may_not_run_is_nobodys_business() -> None:
    play = Play(some_settings(a_worker("w1", models=("*",)), a_worker("w2")))
    more = ModelSeen("other:7b", digest=OLD)
    play.join(W1, a_hello(AgentHealth(ollama_ok=True, models=(ModelSeen(MODEL, digest=OLD), more))))
    differs = (ModelSeen(MODEL, digest=OLD), replace(more, digest=NEW))
    assert alerts(play.join(W2, a_hello(AgentHealth(ollama_ok=True, models=differs))), "model_versions") == []


def test_the_same_digest_is_kept_for_all_tasks_of_a_submission() -> None:
    play = a_workshop_of_two()
    effects = play.submit(*(replace(PINNED, custom_id=str(nth)) for nth in range(5)))
    assert {task.digest for task in play.shelf.tasks.values()} == {OLD}, "two slots against one"
    assert len(sent(effects, Dispatch)) == 2
    assert all(play.shelf.attempts[one.attempt_uid].worker_id == "w1" for one in sent(effects, Dispatch))
    assert "has version bbbbbbbbbbbb" not in waits_for(play, 3), "w1 is busy, that is what it waits for"


def test_a_model_that_was_pulled_again_makes_its_tasks_wait_and_say_why() -> None:
    play = a_workshop_of_two()
    play.say(W2, a_heartbeat(health=having(OLD)))
    play.submit(*(replace(PINNED, custom_id=str(nth)) for nth in range(4)))
    play.say(W1, a_heartbeat(a_status(free=2), health=having(NEW)))
    play.say(W2, a_heartbeat(a_status(), health=having(NEW)))
    assert "has version bbbbbbbbbbbb of gpt-oss:20b, not aaaaaaaaaaaa" in waits_for(play, 4)
    assert len(sent(play.say(W2, a_heartbeat(a_status(last=9), health=having(OLD))), Dispatch)) == 1


def test_a_task_that_waits_for_its_version_holds_up_no_other() -> None:
    play = Play()
    play.join(W1, a_hello(having(OLD)))
    uid = play.dispatched(PINNED).attempt_uid
    play.submit(replace(PINNED, custom_id="waits"), replace(PINNED, custom_id="waits too"))
    play.say(W1, a_result(uid, a_status(free=0, last=1)))
    play.say(W1, a_heartbeat(a_status(free=1, last=1), having(NEW)))
    assert len(sent(play.submit(a_spec(model=MODEL)), Dispatch)) == 1


def test_the_version_is_kept_over_a_restart_and_nobody_gets_the_task_before_he_has_told() -> None:
    play = a_workshop_of_two()
    play.submit(*(replace(PINNED, custom_id=str(nth)) for nth in range(3)))
    again = play.restart()
    assert again.core._state.tasks[3].spec.digest == OLD
    assert sent(again.join(W2, a_hello(having(NEW))), Dispatch) == []
    assert sent(again.join(W1, a_hello(AgentHealth(ollama_ok=True), slots=2)), Dispatch) == []


def test_an_answer_of_another_version_is_none() -> None:
    play = Play()
    play.join(W1, a_hello(having(OLD)))
    uid = play.dispatched(PINNED).attempt_uid
    play.say(W1, replace(a_result(uid), model_digest=NEW))
    assert play.shelf.attempts[uid].state is AttemptState.FAILED
    assert play.shelf.attempts[uid].error_class is ErrorClass.MODEL_MISSING
    assert "version bbbbbbbbbbbb" in play.shelf.attempts[uid].message
    assert play.state_of(1) is TaskState.FAILED


@pytest.mark.parametrize("told", ["", OLD])
def test_an_answer_of_the_version_asked_for_or_of_one_not_told_counts(told: str) -> None:
    play = Play()
    play.join(W1, a_hello(having(OLD)))
    uid = play.dispatched(PINNED).attempt_uid
    play.say(W1, replace(a_result(uid), model_digest=told))
    assert play.state_of(1) is TaskState.SUCCEEDED


def test_where_nobody_has_told_a_version_the_submission_is_refused() -> None:
    error = refusal(Play().submit(PINNED))
    assert error.code is Code.REFUSED
    assert error.message == f"no worker has told yet which version of {MODEL} it has (could run it: w1)"


def test_without_a_model_all_that_could_take_it_must_have_the_same_default() -> None:
    play = a_workshop_of_two()
    play.submit(replace(a_spec(), same_digest=True))
    assert play.shelf.tasks[1].digest == OLD
    mixed = Play(some_settings(a_worker("w1"), a_worker("w2", model="other:7b")))
    error = refusal(mixed.submit(replace(a_spec(), same_digest=True)))
    assert "gpt-oss:20b on w1, other:7b on w2" in error.message
    assert error.hint == "name it with --model"


def test_tasks_that_no_one_version_serves_are_refused_together() -> None:
    play = a_workshop_of_two()
    error = refusal(play.submit(replace(PINNED, worker="w1"), replace(PINNED, worker="w2")))
    assert "no one version of gpt-oss:20b" in error.message
    assert play.shelf.tasks == {}


def test_a_dry_run_names_the_version_that_would_be_chosen() -> None:
    play = a_workshop_of_two()
    play.join(MIKA)
    preview = the(sent(play.say(MIKA, Submit("p", "k", (PINNED,), dry_run=True)), Preview))
    assert preview.plans[0].digest == OLD
    codes = {one.worker_id: one.code for one in preview.plans[0].candidates}
    assert codes == {"w1": None, "w2": Reason.DIGEST_DIFFERS}


# Foreign load


def a_shared_box(slots: int = 2) -> Play:
    """A worker on whose Ollama somebody else has loaded a model."""
    play = Play(some_settings(a_worker("w1", slots=slots)))
    play.join(W1, a_hello(loaded(), slots=slots))
    play.say(W1, a_heartbeat(a_status(free=slots), loaded("llama3:8b")))
    return play


def test_a_strange_model_takes_a_slot_and_is_shown() -> None:
    play = a_shared_box()
    assert worker_of(play).foreign == "llama3:8b is loaded there, not for this broker"
    effects = play.submit(a_spec("a"), a_spec("b"))
    assert len(sent(effects, Dispatch)) == 1
    assert "somebody else is using its Ollama (llama3:8b" in waits_for(play, 2)


def test_the_last_slot_stays() -> None:
    play = a_shared_box(slots=1)
    assert worker_of(play).foreign
    assert len(sent(play.submit(), Dispatch)) == 1


def test_the_slot_comes_back_with_the_heartbeat_that_tells_the_end() -> None:
    play = a_shared_box()
    uids = [one.attempt_uid for one in sent(play.submit(a_spec("a"), a_spec("b")), Dispatch)]
    effects = play.say(W1, a_heartbeat(a_status(uids, free=1, last=1), loaded(MODEL)))
    assert len(sent(effects, Dispatch)) == 1
    assert worker_of(play).foreign == ""


def test_an_ollama_that_is_down_has_nothing_loaded_and_says_nothing_about_others() -> None:
    play = Play(some_settings(a_worker("w1", slots=2)))
    play.join(W1, a_hello(AgentHealth(can_work=False), slots=2))
    play.say(W1, a_heartbeat(a_status(free=2), loaded(MODEL)))
    assert worker_of(play).foreign == "", "what was loaded before the session began may be ours"


def test_the_default_model_that_its_agent_warms_up_is_not_foreign() -> None:
    play = Play()
    play.join(W1, a_hello(loaded()))
    play.say(W1, a_heartbeat(health=loaded(MODEL)))
    assert worker_of(play).foreign == ""


def test_a_model_that_loads_for_a_task_given_out_before_a_restart_is_not_foreign() -> None:
    play = Play(some_settings(a_worker("w1", models=("*",))))
    play.join(W1, a_hello(AgentHealth(ollama_ok=True, models=(ModelSeen("llama3:8b"),))))
    uid = play.dispatched(a_spec(model="llama3:8b")).attempt_uid
    again = play.restart()
    again.join(W1, replace(a_hello(loaded()), status=a_status([uid], free=0, last=1)))
    again.say(W1, a_heartbeat(a_status([uid], free=0, last=1), loaded("llama3:8b")))
    assert worker_of(again).foreign == ""


def test_what_is_loaded_when_its_agent_comes_back_may_be_ours() -> None:
    play = Play(some_settings(a_worker("w1", models=("*",))))
    play.join(W1, a_hello(loaded()))
    play.close(W1)
    play.join(W1, a_hello(loaded("llama3:8b")))
    assert worker_of(play).foreign == ""


def test_first_tokens_that_come_far_too_late_are_a_sign_of_others() -> None:
    play = Play(some_settings(a_worker("w1", slots=2)))
    play.join(W1, a_hello(loaded(), slots=2))

    def run(nth: int, first_token_ms: int) -> None:
        uid = play.dispatched(a_spec(str(nth))).attempt_uid
        metrics = Metrics(
            prompt_tokens=1_000, output_tokens=100, load_ms=2_000, first_token_ms=first_token_ms, prompt_ms=1_000,
            eval_ms=4_000, total_ms=5_000,
        )  # fmt: skip
        play.say(W1, replace(a_result(uid, a_status(free=2, last=nth)), metrics=metrics))

    for nth in range(1, 6):
        run(nth, 3_100)
    assert worker_of(play).foreign == ""
    share = play.core._state.workers["w1"]
    quick_s = play.core._state.router.performance.expected_s(share, MODEL, 1_000)
    for nth in range(6, 9):
        run(nth, 62_000)
    assert worker_of(play).foreign.startswith("the last 3 first tokens came late (60 s, about 1.0 s were expected)")
    assert len(sent(play.submit(a_spec("x"), a_spec("y")), Dispatch)) == 1
    slow_s = play.core._state.router.performance.expected_s(share, MODEL, 1_000)
    assert slow_s == pytest.approx(2 * quick_s), "of two that use it each gets half"
