"""What is refused: every refusal names what is wrong and its limit, and nothing is accepted."""

from dataclasses import replace

import pytest

from koubou_broker.core import Limits, Rule
from koubou_broker.core.submissions import STAGED_IDLE_S
from koubou_broker.effects import Found, Lookup
from koubou_common.errors import Code
from koubou_common.messages import Preview, Retry, Submit, Submitted
from koubou_common.messages.values import Label, Option, TaskSpec
from support.core_play import (
    Play,
    a_client,
    a_health,
    a_result,
    a_spec,
    a_worker,
    an_agent,
    an_agent_hello,
    refusal,
    script,
    sent,
    some_settings,
    the,
)

MIB = 1024 * 1024
MIKA = a_client()


@pytest.mark.parametrize(
    ("spec", "code", "words"),
    [
        (a_spec(size_bytes=0), Code.BAD_INPUT, ["the prompt is empty"]),
        (a_spec(size_bytes=2 * MIB), Code.TOO_LARGE, ["the prompt", "prompt_bytes", "2,097,152", "1,048,576"]),
        (a_spec(files=[("big.py", 5 * MIB)]), Code.TOO_LARGE, ["big.py", "file_bytes", "4,194,304"]),
        (a_spec(files=[(f"{n}.py", 4 * MIB) for n in range(4)]), Code.TOO_LARGE, ["task_bytes", "16,777,216"]),
        (a_spec(files=[(f"{n}.py", 1) for n in range(201)]), Code.TOO_LARGE, ["201 files", "task_files", "200"]),
        (a_spec(files=[("a", 1), ("a", 1)]), Code.BAD_INPUT, ["a is there twice"]),
        (a_spec(files=[("a", 1), ("a/b", 1)]), Code.BAD_INPUT, ["a is a file and the folder of a/b"]),
        (a_spec(files=[("../etc/passwd", 1)]), Code.BAD_INPUT, ["'..'"]),
        (a_spec(files=[("/etc/passwd", 1)]), Code.BAD_INPUT, ["absolute"]),
        (a_spec(target="x\0y"), Code.BAD_INPUT, ["a control character"]),
        (replace(a_spec(), repo="a\nb"), Code.BAD_INPUT, ["repository's name", "control characters"]),
        (a_spec(priority=11), Code.BAD_INPUT, ["priority 11", "1-10"]),
        (a_spec(priority=0), Code.BAD_INPUT, ["priority 0", "1-10"]),
        (a_spec(deadline_s=0), Code.BAD_INPUT, ["deadline"]),
        (replace(a_spec(), timeout_s=0.0), Code.BAD_INPUT, ["timeout"]),
        (a_spec(options=[Option("num_ctx", 4096)]), Code.BAD_INPUT, ["num_ctx", "--min-context"]),
        (a_spec(options=[Option("num_predict", 0)]), Code.BAD_INPUT, ["num_predict", "at least 1"]),
        (a_spec(options=[Option("tempratur", 0)]), Code.BAD_INPUT, ["did you mean temperature"]),
        (a_spec(options=[Option("seed", 1), Option("seed", 2)]), Code.BAD_INPUT, ["twice"]),
        (a_spec(model="llama:70b"), Code.UNKNOWN_MODEL, ["llama:70b", "known models are: gpt-oss:20b"]),
        (a_spec(model="gpt-oss:120b-cloud"), Code.UNKNOWN_MODEL, ["somebody else's servers"]),
        (a_spec(model="no model!"), Code.UNKNOWN_MODEL, ["is not a model's name"]),
        (a_spec(model="llama", worker="w1"), Code.UNKNOWN_MODEL, ["worker w1 does not list"]),
        (a_spec(worker="w9"), Code.NOT_FOUND, ["'w9'", "known are: w1"]),
        (a_spec(labels=[Label("gpu", "yes")]), Code.REFUSED, ["gpu=yes", "known labels are: none"]),
        (a_spec(min_context=9_000), Code.CONTEXT_TOO_SMALL, ["9,000", "num_ctx 8,192 on w1", "--min-context"]),
        (a_spec(size_bytes=MIB), Code.CONTEXT_TOO_SMALL, ["1,048,576 bytes", "at least 65,6", "num_ctx 8,192 on w1"]),
    ],
)
def test_a_bad_task_is_refused_with_its_reason(spec: TaskSpec, code: Code, words: list[str]) -> None:
    play = Play()
    effects = play.submit(spec)
    error = refusal(effects)
    assert error.code is code
    assert error.request_id == "r1"
    for word in words:
        assert word in f"{error.message} {error.hint}"
    assert script(effects) == ["1 <- Error"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", ["is empty"]),
        ("工" * 86, ["longer than 255 bytes", "the limit name_bytes"]),
        ("~/.ssh/id_rsa", ["absolute"]),
        ("a\\b", ["backslash"]),
        ("a\u202egnp.exe", ["invisible character"]),
        ("src/nul", ["device on Windows"]),
    ],
)
def test_a_name_that_is_unsafe_anywhere_is_refused_by_the_broker_too(name: str, words: list[str]) -> None:
    error = refusal(Play().submit(a_spec(files=[(name, 1)])))
    assert error.code is Code.BAD_INPUT
    for word in words:
        assert word in error.message


def test_a_broker_may_allow_shorter_names_only() -> None:
    play = Play(replace(some_settings(), limits=Limits(name_bytes=8)))
    assert "longer than 8 bytes, the limit name_bytes" in refusal(play.submit(a_spec(target="a" * 9))).message
    assert len(sent(play.submit(a_spec(target="a" * 8)), Submitted)) == 1


@pytest.mark.parametrize("name", ["a.py", "src/a b.py", "工房/設計.md", "-rf", "a..b", "x" * 255])
def test_an_ordinary_name_is_taken(name: str) -> None:
    assert len(sent(Play().submit(a_spec(files=[(name, 1)])), Submitted)) == 1


def test_a_prompt_of_a_megabyte_runs_where_the_window_is_wide() -> None:
    play = Play(some_settings(a_worker("w1"), a_worker("wide", num_ctx=262_144)))
    play.join(an_agent("w1"))
    play.join(an_agent("wide"))
    dispatch = play.dispatched(a_spec(size_bytes=MIB))
    assert play.shelf.attempts[dispatch.attempt_uid].worker_id == "wide"


def test_one_bad_task_refuses_the_whole_batch_and_is_named() -> None:
    play = Play()
    error = refusal(play.submit(a_spec("a"), replace(a_spec("b", priority=99), custom_id="mine")))
    assert "task 2 of 2 (mine)" in error.message
    assert "none was accepted" in error.message
    assert play.shelf.tasks == {}
    assert play.shelf.submissions == {}


def test_a_refused_key_may_be_used_again() -> None:
    play = Play()
    play.submit(a_spec(priority=99), key="k")
    assert len(sent(play.submit(a_spec(), key="k"), Submitted)) == 1


def test_the_same_key_with_another_body_is_a_conflict() -> None:
    play = Play()
    play.submit(a_spec("a"), key="k")
    error = refusal(play.submit(a_spec("b"), key="k"))
    assert error.code is Code.CONFLICT
    assert "'k'" in error.message
    assert len(play.shelf.tasks) == 1


def test_the_same_key_of_another_person_is_another_submission() -> None:
    play = Play(some_settings(), MIKA, a_client("ken"))
    play.submit(a_spec("a"), key="k")
    assert len(sent(play.submit(a_spec("b"), key="k", who=a_client("ken")), Submitted)) == 1


def test_a_full_queue_says_when_to_come_back() -> None:
    play = Play(replace(some_settings(), limits=Limits(queue_per_client=2)))
    play.submit(a_spec("a"), a_spec("b"))
    error = refusal(play.submit(a_spec("c")))
    assert error.code is Code.BUSY
    assert "queue_per_client is 2" in error.message
    assert error.retry_after_s > 0


def test_a_full_queue_refuses_retries_too() -> None:
    play = Play(replace(some_settings(), limits=Limits(queue_per_client=1)))
    play.join(an_agent("w1"))
    play.say(an_agent("w1"), a_result(play.dispatched().attempt_uid))
    play.submit(a_spec("b"))
    error = refusal(play.say(MIKA, Retry("r", (1,))))
    assert "queue_per_client" in error.message
    assert play.state_of(1) == "succeeded"


def test_a_repeated_submission_is_answered_even_if_the_queue_is_full() -> None:
    play = Play(replace(some_settings(), limits=Limits(queue_per_client=1)))
    play.submit(a_spec("a"), key="k")
    assert len(sent(play.submit(a_spec("a"), key="k"), Submitted)) == 1


def test_a_full_disk_refuses_submissions_with_the_reason_and_takes_them_again() -> None:
    play = Play()
    assert script(play.core.refuse_submits("the disk is full", 20.0)) == ["alert store_full"]
    error = refusal(play.submit(a_spec(), key="k"))
    assert (error.code, error.message, error.retry_after_s) == (Code.STORE_FULL, "the disk is full", 20.0)
    assert script(play.core.accept_submits()) == ["no alert store_full"]
    assert len(sent(play.submit(a_spec(), key="k"), Submitted)) == 1


def test_what_was_looked_up_while_the_disk_was_full_is_not_accepted_by_the_answer() -> None:
    play = Play()
    play.submit(a_spec("a"), key="k")
    play.answering = False
    play.core.refuse_submits("the disk is full", 20.0)
    effects = play.submit(a_spec("b"), key="k")
    (lookup,) = [effect for effect in effects if isinstance(effect, Lookup)]
    play.core.accept_submits()
    # Another key has the same hash, say: this one is unknown. Its bodies were not kept when it came.
    error = refusal(play.core.found(lookup.token, Found(), play.now))
    assert (error.code, error.message) == (Code.STORE_FULL, "the disk is full")


def test_too_many_tasks_in_one_submission_name_the_limit() -> None:
    play = Play(replace(some_settings(), limits=Limits(batch_tasks=2)))
    assert "batch_tasks is 2" in refusal(play.submit(*[a_spec()] * 3)).message
    play.say(MIKA, Submit("p0", "k", (a_spec(),) * 2, part=0, parts=2))
    assert "batch_tasks is 2" in refusal(play.say(MIKA, Submit("p1", "k", (a_spec(),), part=1, parts=2))).message


def test_half_sent_submissions_are_bounded() -> None:
    play = Play(replace(some_settings(), limits=Limits(staged_per_session=2)))
    play.join(MIKA)
    for nth in range(2):
        play.say(MIKA, Submit(f"p{nth}", f"k{nth}", (a_spec(),), part=0, parts=2))
    assert "staged_per_session" in refusal(play.say(MIKA, Submit("p3", "k3", (a_spec(),), part=0, parts=2))).message


def test_a_half_sent_submission_that_nobody_goes_on_with_makes_room_after_a_while() -> None:
    play = Play(replace(some_settings(), limits=Limits(staged_per_session=2)))
    play.join(MIKA)
    play.say(MIKA, Submit("p0", "k0", (a_spec(),), part=0, parts=2))
    play.wait(STAGED_IDLE_S / 2)
    play.say(MIKA, Submit("p1", "k1", (a_spec(),), part=0, parts=2))
    play.wait(STAGED_IDLE_S / 2 + 1)
    assert script(play.say(MIKA, Submit("p2", "k2", (a_spec(),), part=0, parts=2))) == ["1 <- PartStaged"]
    assert script(play.say(MIKA, Submit("p1", "k1", (a_spec(),), part=1, parts=2)))[-1] == "1 <- Submitted"
    late = refusal(play.say(MIKA, Submit("p0", "k0", (a_spec(),), part=1, parts=2)))
    assert (late.code, late.hint) == (Code.BUSY, "send all parts again, from the first")


def test_a_submission_of_nothing_is_refused() -> None:
    play = Play()
    play.join(MIKA)
    assert refusal(play.say(MIKA, Submit("s", "k", ()))).code is Code.BAD_INPUT


def test_a_known_model_that_is_away_waits() -> None:
    play = Play()
    assert len(sent(play.submit(a_spec(model="gpt-oss:20b")), Submitted)) == 1


def test_a_star_worker_never_seen_may_have_any_model_and_once_seen_only_its_tags() -> None:
    settings = some_settings(a_worker(models=("*",)))
    assert len(sent(Play(settings).submit(a_spec(model="qwen:7b")), Submitted)) == 1
    play = Play(settings)
    play.join(an_agent("w1"), an_agent_hello(health=a_health("gpt-oss:20b", "phi")))
    error = refusal(play.submit(a_spec(model="qwen:7b")))
    assert "gpt-oss:20b, phi:latest" in error.hint


def test_without_any_worker_a_plain_task_waits_and_a_model_is_unknown() -> None:
    play = Play(replace(some_settings(), workers=()))
    assert len(sent(play.submit(a_spec()), Submitted)) == 1
    assert refusal(play.submit(a_spec(model="qwen"))).code is Code.UNKNOWN_MODEL


def test_a_dry_run_names_first_who_would_get_it_by_the_rule_not_by_the_score() -> None:
    rules = (Rule(1, 4, ("remote",)), Rule(5, 10, ("local",)))
    workers = (a_worker("fast"), a_worker("far", location="remote", factor=0.5))
    play = Play(replace(some_settings(*workers), rules=rules))
    for name in ("fast", "far"):
        play.join(an_agent(name))
    play.join(MIKA)
    for priority, order in ((2, ["far", "fast"]), (8, ["fast", "far"])):
        preview = the(sent(play.say(MIKA, Submit("d", "k", (a_spec(priority=priority),), dry_run=True)), Preview))
        assert [one.worker_id for one in preview.plans[0].candidates] == order
        attempt = play.shelf.attempts[play.dispatched(a_spec(priority=priority)).attempt_uid]
        assert attempt.worker_id == order[0]


def test_a_dry_run_previews_and_stores_nothing() -> None:
    play = Play(some_settings(a_worker("w1"), a_worker("w2", factor=0.5)))
    play.join(an_agent("w1"))
    play.join(MIKA)
    effects = play.say(MIKA, Submit("d", "k", (a_spec("x" * 2_350), a_spec(model="no")), dry_run=True))
    good, bad = the(sent(effects, Preview)).plans
    assert script(effects) == ["2 <- Preview"]
    assert (good.model, good.prompt_tokens, good.refusal) == ("gpt-oss:20b", 1_000, "")
    assert [(one.worker_id, one.available, one.reason) for one in good.candidates] == [
        ("w1", True, ""),
        ("w2", False, "not connected"),
    ]
    assert "known" not in bad.refusal
    assert "no:latest" in bad.refusal
    assert play.shelf.tasks == {}
