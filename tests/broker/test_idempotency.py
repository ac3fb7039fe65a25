"""What makes a repeated submission the same one."""

from dataclasses import replace

import pytest

from koubou_broker.idempotency import submission_digest, submission_hash
from koubou_common.messages.values import File, Label, Option, TaskSpec
from support.core_play import a_body, a_spec

BASE = a_spec("p", files=[("a.py", 3)])


def digest(*specs: TaskSpec, as_batch: bool = False) -> bytes:
    return submission_digest(specs, as_batch=as_batch)


@pytest.mark.parametrize(
    "other",
    [
        replace(BASE, prompt=a_body("q")),
        replace(BASE, files=()),
        replace(BASE, files=(File("b.py", BASE.files[0].body),)),
        replace(BASE, target="out.py"),
        replace(BASE, repo="koubou"),
        replace(BASE, model="qwen"),
        replace(BASE, options=(Option("seed", 1),)),
        replace(BASE, worker="w1"),
        replace(BASE, labels=(Label("gpu", "yes"),)),
        replace(BASE, min_context=9_000),
        replace(BASE, strict_output=True),
        replace(BASE, task_type="review"),
        replace(BASE, capabilities=("review",)),
        replace(BASE, same_digest=True),
    ],
)
def test_what_is_asked_for_makes_another_digest(other: TaskSpec) -> None:
    assert digest(other) != digest(BASE)


@pytest.mark.parametrize(
    "other",
    [
        replace(BASE, priority=10),
        replace(BASE, deadline_s=9.0),
        replace(BASE, queue_timeout_s=9.0),
        replace(BASE, custom_id="mine"),
        replace(BASE, out_digest="0" * 64),
    ],
)
def test_how_urgent_it_is_makes_none(other: TaskSpec) -> None:
    assert digest(other) == digest(BASE)


def test_spellings_and_orders_that_mean_the_same_are_the_same() -> None:
    one = replace(BASE, model="qwen", options=(Option("seed", 1), Option("top_k", 2)))
    two = replace(BASE, model="qwen:latest", options=(Option("top_k", 2), Option("seed", 1)))
    assert digest(one) == digest(two)


def test_a_submission_of_an_older_release_is_still_the_same_after_an_upgrade() -> None:
    """As 0.1.0 made it: its key was stored with this digest, and a repeated submission must not conflict with it."""
    assert digest(BASE).hex() == "0fbeb7402c045464308b276a190638fe7e0589789a71a8fc5c6689c1eeeec24f"


@pytest.mark.parametrize(
    ("model", "known"),
    [
        ("Qwen2.5-Coder:7B-Q4_K_M", "e9c1db76534aefaf682dc8ba3d2bb6e9f0582b43fae35fbf16fa73827012b8f1"),
        ("library/Qwen2.5-Coder", "d02fdd742c8265cd14ef13c2a277a16e98786d022ae689ae6c48baa432d72335"),
    ],
)
def test_a_model_in_capitals_is_told_apart_as_by_older_releases(model: str, known: str) -> None:
    """These two were made by 0.1.0, which kept the case."""
    assert digest(replace(BASE, model=model)).hex() == known


def test_one_task_is_not_a_batch_of_one() -> None:
    assert digest(BASE) != digest(BASE, as_batch=True)


def test_the_order_of_files_counts() -> None:
    ahead = replace(BASE, files=(File("a", a_body("1")), File("b", a_body("2"))))
    assert digest(ahead) != digest(replace(ahead, files=ahead.files[::-1]))


def test_a_hash_belongs_to_principal_and_key() -> None:
    hashes = {submission_hash(*names) for names in [("mika", "k"), ("mik", "ak"), ("k", "mika"), ("工房", "鍵")]}
    assert len(hashes) == 4
    assert all(0 <= one < 2**64 for one in hashes)
