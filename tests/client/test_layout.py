"""The order of a batch's files: what its tasks share comes first, and nothing else changes."""

import random
from pathlib import Path

import pytest

from koubou_client.layout import lay_out
from koubou_client.tasks import TaskDraft, draft_task

FILES = ("README.md", "api.py", "a.py", "b.py", "c.py", "style.md")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in FILES:
        (tmp_path / name).write_text(f"# {name}\n")
    return tmp_path


def a_draft(root: Path, *files: str, prompt: str = "Write its docs.", model: str = "", repo: str = "r") -> TaskDraft:
    return draft_task(prompt, files=files, root=root, model=model, repo=repo)


def orders(drafts: list[TaskDraft]) -> list[tuple[str, int]]:
    """Of each task its files, a shared one in capitals, and how many are said to be shared."""
    return [
        (
            " ".join(
                file.name.upper() if nth < draft.spec.prefix_files else file.name
                for nth, file in enumerate(draft.spec.files)
            ),
            draft.spec.prefix_files,
        )
        for draft in drafts
    ]


def test_what_all_share_comes_first_in_the_order_of_the_first_task_and_the_rest_keeps_its_own(root: Path) -> None:
    drafts = [
        a_draft(root, "a.py", "style.md", "c.py", "README.md"),
        a_draft(root, "README.md", "b.py", "style.md"),
        a_draft(root, "style.md", "README.md", "c.py"),
    ]
    assert orders(lay_out(drafts)) == [
        ("STYLE.MD README.MD a.py c.py", 2),
        ("STYLE.MD README.MD b.py", 2),
        ("STYLE.MD README.MD c.py", 2),
    ]


def test_tasks_with_another_prompt_repository_or_model_share_nothing(root: Path) -> None:
    drafts = [
        a_draft(root, "a.py", "README.md"),
        a_draft(root, "b.py", "README.md", prompt="Write its tests."),
        a_draft(root, "b.py", "README.md", model="other:1b"),
        a_draft(root, "b.py", "README.md", repo="elsewhere"),
    ]
    assert lay_out(drafts) == drafts


def test_each_prompt_has_a_beginning_of_its_own(root: Path) -> None:
    drafts = [
        a_draft(root, "a.py", "README.md"),
        a_draft(root, "a.py", "api.py", prompt="Write its tests."),
        a_draft(root, "b.py", "README.md"),
        a_draft(root, "b.py", "api.py", prompt="Write its tests."),
    ]
    assert orders(lay_out(drafts)) == [
        ("README.MD a.py", 1),
        ("API.PY a.py", 1),
        ("README.MD b.py", 1),
        ("API.PY b.py", 1),
    ]


def test_a_file_of_the_same_name_with_another_text_is_another_file(root: Path) -> None:
    first = a_draft(root, "a.py", "README.md")
    (root / "README.md").write_text("# changed\n")
    drafts = [first, a_draft(root, "b.py", "README.md")]
    assert lay_out(drafts) == drafts


def test_a_task_alone_keeps_its_order(root: Path) -> None:
    drafts = [a_draft(root, "b.py", "a.py", "README.md")]
    assert lay_out(drafts) == drafts


def test_a_task_that_keeps_its_order_neither_changes_nor_counts(root: Path) -> None:
    drafts = [
        a_draft(root, "a.py", "README.md"),
        a_draft(root, "style.md", "c.py"),
        a_draft(root, "b.py", "README.md"),
    ]
    assert orders(lay_out(drafts, {1})) == [("README.MD a.py", 1), ("style.md c.py", 0), ("README.MD b.py", 1)]


@pytest.mark.parametrize("seed", range(30))
def test_laying_out_only_ever_orders_and_twice_is_as_good_as_once(root: Path, seed: int) -> None:
    draw = random.Random(seed)
    drafts = [
        a_draft(root, *draw.sample(FILES, draw.randint(0, len(FILES))), prompt=draw.choice(["one", "two"]))
        for _ in range(draw.randint(1, 8))
    ]
    laid_out = lay_out(drafts)
    assert lay_out(laid_out) == laid_out
    for before, after in zip(drafts, laid_out, strict=True):
        assert sorted(before.spec.files, key=lambda file: file.name) == sorted(
            after.spec.files, key=lambda file: file.name
        )
        assert (before.spec.prompt, before.bodies) == (after.spec.prompt, after.bodies)
    for prompt in {draft.spec.prompt for draft in laid_out}:
        of_kind = [draft.spec for draft in laid_out if draft.spec.prompt == prompt]
        assert len({spec.files[: spec.prefix_files] for spec in of_kind}) == 1, f"seed {seed}"
