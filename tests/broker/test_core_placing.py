"""Where the core sends tasks, what it knows of the boxes for that, and what it keeps of the decision."""

from dataclasses import replace

from koubou_broker.records import Attempt, Decided
from koubou_broker.routing.placing import placement_text
from koubou_common.errors import ErrorClass
from koubou_common.messages import AgentHello, Dispatch
from koubou_common.messages.values import AgentHealth, ModelSeen
from support.core_play import (
    MODEL,
    Play,
    a_failure,
    a_heartbeat,
    a_result,
    a_spec,
    a_status,
    a_worker,
    an_agent,
    an_agent_hello,
    saved,
    sent,
    some_settings,
    task_ids,
    the,
    with_settings,
)

A, B = an_agent("a"), an_agent("b")
OTHER = "qwen3:latest"


def loaded(*models: str) -> AgentHealth:
    """An Ollama that has both models, and these loaded."""
    seen = tuple(ModelSeen(name, loaded=name in models) for name in (MODEL, OTHER))
    return AgentHealth(ollama_ok=True, models=seen)


def a_hello(*models: str, boot: str = "b1") -> AgentHello:
    """An agent whose Ollama has these models loaded."""
    return an_agent_hello(boot=boot, health=loaded(*models))


def two_equal() -> Play:
    """Two boxes with both models; `b` has the other one loaded."""
    workers = [a_worker(name, models=[MODEL, OTHER]) for name in "ab"]
    play = Play(some_settings(*workers))
    play.join(A, a_hello(MODEL))
    play.join(B, a_hello(OTHER))
    return play


def slow_and_fast() -> Play:
    """`a` is slow, `b` ten times as fast; both have the model loaded."""
    workers = (a_worker("a", factor=0.2), a_worker("b", factor=2.0))
    play = Play(with_settings(some_settings(*workers), strategy="earliest_finish"))
    play.join(A, a_hello(MODEL))
    play.join(B, a_hello(MODEL))
    return play


def test_the_decision_is_stored_with_its_attempt_and_says_what_the_line_says() -> None:
    play = two_equal()
    effects = play.submit(a_spec(model=OTHER))
    attempt, decided = the(saved(effects, Attempt)), the(saved(effects, Decided))
    assert decided.attempt_uid == attempt.attempt_uid
    assert decided.task_id == attempt.task_id
    assert [one.worker_id for one in decided.decision.candidates] == [attempt.worker_id, "a"] == ["b", "a"]
    assert attempt.placement == placement_text(decided.decision)
    # As it was taken: neither is counted as busy by what follows from it.
    assert {part.name for one in decided.decision.candidates for part in one.parts} == {
        "factor",
        "idle",
        "success",
        "capability",
        "residency",
    }


def test_the_box_that_has_the_model_loaded_gets_the_task() -> None:
    play = two_equal()
    assert play.dispatched(a_spec(model=OTHER)).session == play.session_of(B)
    assert play.dispatched(a_spec(model=MODEL)).session == play.session_of(A)


def test_what_was_dispatched_last_counts_as_loaded_until_the_agent_says_so_or_falls_idle_without() -> None:
    play = two_equal()
    play.close(B)
    worker = play.core._state.workers["a"]
    task = play.dispatched(a_spec(model=OTHER))
    assert worker.is_resident(OTHER)
    assert not worker.is_resident(MODEL)
    play.say(A, a_heartbeat(a_status([task.attempt_uid], free=0, last=1), loaded(MODEL)))
    assert worker.is_resident(OTHER)
    play.say(A, a_failure(task.attempt_uid, ErrorClass.OLLAMA_ERROR, a_status(last=1)))
    assert worker.is_resident(MODEL)
    assert not worker.is_resident(OTHER)


def test_a_success_shows_what_is_loaded_before_any_health_does() -> None:
    play = two_equal()
    play.close(B)
    worker = play.core._state.workers["a"]
    task = play.dispatched(a_spec(model=OTHER))
    play.say(A, a_heartbeat(a_status([task.attempt_uid], free=0, last=1)))
    play.say(A, replace(a_result(task.attempt_uid, a_status(last=1)), model=OTHER))
    assert not worker.in_use
    assert worker.is_resident(OTHER)


def test_a_success_out_of_the_spool_says_nothing_of_what_is_loaded_now() -> None:
    play = two_equal()
    play.close(B)
    worker = play.core._state.workers["a"]
    task = play.dispatched(a_spec(model=OTHER))
    play.close(A)
    play.join(A, an_agent_hello(a_status(spooled=[task.attempt_uid], last=1), health=loaded(MODEL)))
    play.say(A, replace(a_result(task.attempt_uid, a_status(last=1)), model=OTHER))
    assert worker.is_resident(MODEL)
    assert not worker.is_resident(OTHER)


def test_tasks_that_begin_alike_go_to_the_box_that_has_read_the_beginning() -> None:
    play = Play(some_settings(a_worker("a"), a_worker("b")))
    play.join(A, a_hello(MODEL))
    play.join(B, a_hello(MODEL))
    files = [("all.md", 20_000)]
    shared = [replace(a_spec(files=[*files, (f"{nth}.py", 900)]), prefix_files=1) for nth in range(2)]
    first = play.dispatched(shared[0])
    assert first.session == play.session_of(A)
    play.wait(1.0)
    play.say(A, a_result(first.attempt_uid, a_status(last=1)))
    effects = play.submit(shared[1])
    assert the(sent(effects, Dispatch)).session == play.session_of(A)
    winner = the(saved(effects, Decided)).decision.candidates[0]
    assert [part.points > 0 for part in winner.parts if part.name == "prefix"] == [True]
    again = play.dispatched(a_spec(files=files))
    assert again.session == play.session_of(B)


def test_near_the_end_a_task_waits_for_the_fast_box_and_goes_when_it_is_free() -> None:
    play = slow_and_fast()
    first = play.dispatched()
    assert first.session == play.session_of(B)
    assert not sent(play.submit(), Dispatch)
    deadline_s = play.core.next_deadline
    assert deadline_s is not None
    assert deadline_s <= play.now.mono_s + 5.0, "it is looked at again soon, whatever happens"
    then = the(sent(play.say(B, a_result(first.attempt_uid, a_status(last=1))), Dispatch))
    assert then.session == play.session_of(B)
    assert not play.core._state.queue


def test_a_task_that_waits_for_the_fast_box_goes_to_the_slow_one_when_that_box_is_gone() -> None:
    play = slow_and_fast()
    play.dispatched()
    assert not sent(play.submit(), Dispatch)
    effects = play.close(B)
    assert the(sent(effects, Dispatch)).session == play.session_of(A)


def test_a_task_does_not_wait_for_ever_for_a_fast_box_that_hangs() -> None:
    play = slow_and_fast()
    first = play.dispatched()
    assert not sent(play.submit(), Dispatch)
    for _ in range(60):
        effects = play.wait(4.0)
        effects += play.say(A, a_heartbeat(a_status()))
        effects += play.say(B, a_heartbeat(a_status([first.attempt_uid], free=0, last=1)))
        if sent(effects, Dispatch):
            assert the(sent(effects, Dispatch)).session == play.session_of(A)
            return
    raise AssertionError("it still waits")


def test_a_task_does_not_wait_for_ever_for_a_fast_box_that_more_urgent_tasks_take_again_and_again() -> None:
    play = slow_and_fast()
    urgent = play.dispatched(a_spec("urgent", priority=9))
    effects = play.submit(a_spec("the rest", priority=2))
    assert not sent(effects, Dispatch)
    task_id = the(task_ids(effects))
    for nth in range(100):
        assert not sent(play.submit(a_spec(f"urgent {nth}", priority=9)), Dispatch), "only the fast box is for it"
        effects = play.wait(5.0) + play.say(A, a_heartbeat(a_status()))
        effects += play.say(B, a_result(urgent.attempt_uid, a_status(last=99)))
        dispatched = {one.task_id: one for one in sent(effects, Dispatch)}
        rest = dispatched.pop(task_id, None)
        if rest is not None:
            assert rest.session == play.session_of(A)
            decided = next(one for one in saved(effects, Decided) if one.task_id == task_id)
            assert "waited for a faster worker" in decided.decision.note
            return
        urgent = the(list(dispatched.values()))
    raise AssertionError("it still waits beside a free box")


def test_a_task_does_not_avoid_a_box_for_ever_while_more_urgent_tasks_take_the_other_again_and_again() -> None:
    play = Play(some_settings(a_worker("a"), a_worker("b")))
    play.join(A)
    failed = play.dispatched(a_spec("failed", priority=2))
    play.join(B)
    urgent = play.dispatched(a_spec("urgent", priority=9))
    assert not sent(play.say(A, a_failure(failed.attempt_uid, ErrorClass.OLLAMA_ERROR, a_status(last=99))), Dispatch)
    for nth in range(150):
        play.submit(a_spec(f"urgent {nth}", priority=9, worker="b"))
        effects = play.wait(6.0) + play.say(A, a_heartbeat(a_status(last=99)))
        dispatched = {one.task_id: one for one in sent(effects, Dispatch)}
        if failed.task_id in dispatched:
            assert nth * 6.0 > 500.0, "it should be glad of another one for a while"
            assert dispatched[failed.task_id].session == play.session_of(A)
            return
        urgent = the(sent(play.say(B, a_result(urgent.attempt_uid, a_status(last=99))), Dispatch))
    raise AssertionError("it still waits beside a free box")


def test_with_plenty_of_work_the_slow_box_works_too() -> None:
    play = slow_and_fast()
    dispatched = sent(play.submit(*(a_spec(f"task {nth}") for nth in range(40))), Dispatch)
    assert {one.session for one in dispatched} == {play.session_of(A), play.session_of(B)}


def test_what_an_attempt_is_expected_to_take_is_kept_with_it() -> None:
    play = slow_and_fast()
    uid = play.dispatched().attempt_uid
    attempt = play.core._state.attempts[uid]
    assert attempt.expected_end_s is not None
    assert attempt.expected_end_s > play.now.mono_s
    worker = play.core._state.workers["b"]
    assert worker.expected_ends_s == {uid: attempt.expected_end_s}
    play.say(B, a_result(uid, a_status(last=1)))
    assert not worker.expected_ends_s


def test_the_same_inputs_give_the_same_decisions() -> None:
    def decisions() -> list[Decided]:
        play = two_equal()
        specs = [a_spec(f"task {nth}", model=(MODEL, OTHER)[nth % 2]) for nth in range(6)]
        taken = saved(play.submit(*specs), Decided)
        for agent in (A, B):
            uid = next(iter(play.core._state.workers[agent.name].unconfirmed))
            taken += saved(play.say(agent, a_result(uid, a_status(last=1))), Decided)
        return taken

    first = decisions()
    assert len(first) == 4
    assert decisions() == first
