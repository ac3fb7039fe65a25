"""Which questions are the same one: everything that makes the answer counts, nothing else does."""

from dataclasses import replace

import pytest

from koubou_broker.cache_keys import Answerer, answer_key
from koubou_broker.records import BodyRef, NewTask
from koubou_common.messages.values import Body, File, Label, Option
from support.core_play import a_new_task

ANSWERER = Answerer(
    "m:latest", "sha256:1", (Option("num_ctx", 8192), Option("seed", 7)), 2048, "koubou-agent 1", "0.24.0"
)
A, B = File("a.py", Body(b"a" * 32, 1)), File("b.py", Body(b"b" * 32, 1))
TASK = replace(a_new_task(), files=(A, B), repo="r", target="t.md")


def of(task: NewTask = TASK, answerer: Answerer = ANSWERER) -> bytes:
    key = answer_key(task, answerer)
    assert key is not None
    return key


@pytest.mark.parametrize(
    "other",
    [
        replace(TASK, principal="somebody else"),
        replace(TASK, prompt=BodyRef(b"p" * 32, 10)),
        replace(TASK, files=(B, A)),
        replace(TASK, files=(A,)),
        replace(TASK, files=(A, replace(B, name="c.py"))),
        replace(TASK, files=(A, replace(B, body=Body(b"c" * 32, 1)))),
        replace(TASK, repo="another"),
        replace(TASK, target="other.md"),
        replace(TASK, strict_output=True),
        replace(TASK, options=(Option("seed", 8),)),
        replace(TASK, options=(Option("num_predict", 100),)),
        replace(TASK, options=(Option("stop", ("END",)),)),
        replace(TASK, options=(Option("top_k", 1),)),
    ],
)
def test_another_question_has_another_key(other: NewTask) -> None:
    assert of(other) != of()


@pytest.mark.parametrize(
    "other",
    [
        replace(ANSWERER, model="n:latest"),
        replace(ANSWERER, digest="sha256:2"),
        replace(ANSWERER, options=(Option("num_ctx", 4096), Option("seed", 7))),
        replace(ANSWERER, options=(Option("seed", 7),)),
        replace(ANSWERER, thinking_allowance=0),
        replace(ANSWERER, software="koubou-agent 2"),
        replace(ANSWERER, ollama_version="0.25.0"),
    ],
)
def test_who_would_answer_otherwise_has_another_key(other: Answerer) -> None:
    assert of(answerer=other) != of()


@pytest.mark.parametrize(
    "same",
    [
        replace(TASK, task_id=99, batch_id=3, batch_index=2, custom_id="x", idempotency_key="y"),
        replace(TASK, priority=10, deadline_ms=5, timeout_s=9.0, max_attempts=1, submitted_ms=7, queue_timeout_s=1.0),
        replace(TASK, model="m:latest", worker="w9", labels=(Label("gpu", "yes"),), min_context=10, task_type="doc"),
        replace(TASK, capabilities=("doc",), digest="sha256:1", prefix_files=1, out_path="t.md", out_digest="d"),
        replace(TASK, options=(Option("seed", 7),)),
    ],
)
def test_how_urgent_where_and_under_which_name_makes_no_difference(same: NewTask) -> None:
    assert of(same) == of()


def test_the_order_of_options_makes_no_difference_and_a_tasks_own_beat_the_workers() -> None:
    turned = replace(ANSWERER, options=ANSWERER.options[::-1])
    assert of(answerer=turned) == of()
    own = replace(TASK, options=(Option("seed", 8),))
    assert of(own) == of(answerer=replace(ANSWERER, options=(Option("num_ctx", 8192), Option("seed", 8))))


@pytest.mark.parametrize(
    ("general", "own", "is_repeatable"),
    [
        ((), (), False),
        ((Option("temperature", 0.3),), (), False),
        ((Option("temperature", 0),), (), True),
        ((Option("temperature", 0.0),), (), True),
        ((Option("temperature", 0.3),), (Option("temperature", 0),), True),
        ((Option("temperature", 0),), (Option("temperature", 0.7),), False),
        ((Option("seed", 0),), (), True),
        ((Option("temperature", 0.3),), (Option("seed", 42),), True),
        ((Option("seed", 42),), (Option("seed", -1),), False),
    ],
)
def test_only_a_fixed_seed_or_temperature_zero_makes_an_answer_repeatable(
    general: tuple[Option, ...], own: tuple[Option, ...], is_repeatable: bool
) -> None:
    key = answer_key(replace(TASK, options=own), replace(ANSWERER, options=general))
    assert (key is not None) == is_repeatable


def test_a_model_of_unknown_version_has_no_key() -> None:
    assert answer_key(TASK, replace(ANSWERER, digest="")) is None
