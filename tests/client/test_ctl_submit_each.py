"""koubou-ctl submit --each: which files become tasks, what each is told, where each answer goes."""

from pathlib import Path

import pytest

from koubou_client.ctl import submit_each
from koubou_client.ctl.submit_each import find_items
from koubou_common.errors import ErrorClass, KoubouError
from koubou_common.messages import Submit
from koubou_common.messages.values import Label, Option, Plan, TaskSpec
from support.ctl import Ctl
from support.fake_workshop import FakeWorkshop

EACH = "src/**/*.py"


@pytest.fixture(autouse=True)
def tree(repo: Path) -> Path:
    """A repository with some files."""
    for name in (
        "README.md",
        "src/b.py",
        "src/deep/c.py",
        "src/deep/b.py",
        "src/.hidden/x.py",
        "src/.y.py",
        "src/n.txt",
    ):
        (repo / name).parent.mkdir(exist_ok=True)
        (repo / name).write_text(f"# {name}\n")
    return repo


def submitted(workshop: FakeWorkshop) -> tuple[TaskSpec, ...]:
    return tuple(spec for message in workshop.heard(Submit) for spec in message.tasks)


def names(spec: TaskSpec) -> list[str]:
    return [file.name for file in spec.files]


def test_every_file_that_matches_is_a_task_of_one_batch_in_the_order_of_their_paths(
    ctl: Ctl, workshop: FakeWorkshop
) -> None:
    ran = ctl("submit", "Write its docs.", "--each", EACH)
    assert (ran.code, ran.out) == (0, "b12\n")
    specs = submitted(workshop)
    assert [spec.custom_id for spec in specs] == ["src/a.py", "src/b.py", "src/deep/b.py", "src/deep/c.py"]
    assert [names(spec) for spec in specs] == [[spec.custom_id] for spec in specs]
    assert len({spec.prompt.sha256 for spec in specs}) == 1


def test_the_files_of_all_come_first_the_item_last(ctl: Ctl, workshop: FakeWorkshop) -> None:
    ctl("submit", "Write its docs.", "--each", "src/*.py", "-f", "src/n.txt", "-f", "./README.md")
    assert [(names(spec), spec.prefix_files) for spec in submitted(workshop)] == [
        (["src/n.txt", "README.md", "src/a.py"], 2),
        (["src/n.txt", "README.md", "src/b.py"], 2),
    ]


def test_an_item_that_all_have_is_not_sent_twice(ctl: Ctl, workshop: FakeWorkshop) -> None:
    ctl("submit", "Write its docs.", "--each", "src/*.py", "-f", "./src/a.py")
    assert [names(spec) for spec in submitted(workshop)] == [["src/a.py"], ["src/a.py", "src/b.py"]]


@pytest.mark.parametrize(
    ("template", "outs"),
    [
        ("docs/{stem}.md", ["docs/a.md", "docs/b.md"]),
        ("docs/{name}.md", ["docs/a.py.md", "docs/b.py.md"]),
        ("docs/{path}.md", ["docs/src/a.py.md", "docs/src/b.py.md"]),
        ("{dir}/{stem}_test.py", ["src/a_test.py", "src/b_test.py"]),
    ],
)
def test_an_output_is_named_after_its_file(ctl: Ctl, workshop: FakeWorkshop, template: str, outs: list[str]) -> None:
    assert ctl("submit", "Write its docs.", "--each", "src/*.py", "-o", template).code == 0
    assert [(spec.out_path, spec.target) for spec in submitted(workshop)] == [(out, out) for out in outs]


def test_a_file_in_the_root_has_no_folder(ctl: Ctl, workshop: FakeWorkshop) -> None:
    assert ctl("submit", "Translate.", "--each", "*.md", "-o", "ja/{dir}/{name}").code == 0
    assert [spec.out_path for spec in submitted(workshop)] == ["ja/README.md"]


def test_a_target_may_be_a_template_too(ctl: Ctl, workshop: FakeWorkshop) -> None:
    ctl("submit", "Write its docs.", "--each", "src/*.py", "-o", "docs/{stem}.md", "-t", "{stem}.txt")
    assert [(spec.out_path, spec.target) for spec in submitted(workshop)] == [
        ("docs/a.md", "a.txt"),
        ("docs/b.md", "b.txt"),
    ]


def test_every_option_holds_for_every_task(ctl: Ctl, workshop: FakeWorkshop) -> None:
    ran = ctl(
        *("submit", "Write its docs.", "--each", "src/*.py", "-m", "m:1b", "-p", "low", "--label", "gpu=3090"),
        *("--option", "seed=7", "--strict-output", "--no-cache", "--idempotency-key", "k1"),
    )
    assert ran.code == 0, ran.err
    assert workshop.heard(Submit)[0].idempotency_key == "k1"
    for spec in submitted(workshop):
        assert (spec.model, spec.priority, spec.labels) == ("m:1b", 2, (Label("gpu", "3090"),))
        assert (spec.options, spec.strict_output, spec.use_cache) == ((Option("seed", 7),), True, False)


def test_waiting_writes_every_output(ctl: Ctl, workshop: FakeWorkshop, tree: Path) -> None:
    def finish(workshop: FakeWorkshop, ids: list[int]) -> None:
        for task_id in reversed(ids):
            workshop.succeed(task_id, f"docs of {workshop.specs[task_id].custom_id}".encode())

    workshop.on_submit = finish
    ran = ctl("submit", "Write its docs.", "--each", "src/*.py", "-o", "docs/{stem}.md", "--wait")
    assert ran.code == 0, ran.err
    assert (tree / "docs" / "a.md").read_text() == "docs of src/a.py\n"
    assert (tree / "docs" / "b.md").read_text() == "docs of src/b.py\n"


def test_a_failed_task_is_named_and_the_others_are_written(ctl: Ctl, workshop: FakeWorkshop, tree: Path) -> None:
    def finish(workshop: FakeWorkshop, ids: list[int]) -> None:
        workshop.fail(ids[0], ErrorClass.EMPTY_OUTPUT)
        workshop.succeed(ids[1])

    workshop.on_submit = finish
    ran = ctl("submit", "Write its docs.", "--each", "src/*.py", "-o", "docs/{stem}.md", "--wait")
    assert ran.code == 1
    assert not (tree / "docs" / "a.md").exists()
    assert (tree / "docs" / "b.md").exists()


def test_json_names_the_batch_and_its_tasks(ctl: Ctl) -> None:
    data = ctl("submit", "Write its docs.", "--each", "src/*.py", "--json").data
    assert data["batch"] == "b12"
    assert [task["id"] for task in data["tasks"]] == [142, 143]


def test_a_dry_run_shows_a_row_for_each_file_and_submits_nothing(ctl: Ctl, workshop: FakeWorkshop) -> None:
    ran = ctl("submit", "Write its docs.", "--each", "src/*.py", "--dry-run", is_terminal=True)
    assert ran.code == 0, ran.err
    assert "src/a.py" in ran.out
    assert "src/b.py" in ran.out
    assert workshop.tasks == {}


def test_a_dry_run_that_would_be_refused_says_why(ctl: Ctl, workshop: FakeWorkshop) -> None:
    workshop.plan = Plan("", 0, "", (), "no worker lists the model x")
    ran = ctl("submit", "Write its docs.", "--each", "src/*.py", "--dry-run")
    assert ran.code == 7
    assert "no worker lists the model x" in ran.err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--each", "src/*.rs"), 2, "no file below"),
        (("--each", "../*.py"), 2, "leads outside of --root"),
        (("--each", "/etc/*"), 2, "leads outside of --root"),
        (("--each", "src"), 2, "no file below"),
        (("--each", EACH, "-o", "docs/{stam}.md"), 2, "{stam} is not known beside --each"),
        (("--each", EACH, "-o", "docs/{stam}.md"), 2, "did you mean 'stem'?"),
        (("--each", EACH, "-t", "{}.md"), 2, "{} is not known beside --each"),
        (("--each", EACH, "-o", "docs/all.md"), 2, "src/b.py: -o docs/all.md: src/a.py would be written there too"),
        (("--each", EACH, "-o", "docs/{stem}.md"), 2, "1 of 4 files cannot be submitted"),
        (("--each", "src/*.py", "-o", "{path}"), 2, "src/a.py: exists already"),
        (("--each", "src/*.py", "-o", "../{stem}.md"), 2, "outside"),
        (("--each", "src/*.py", "-f", "nope.py"), 2, "nope.py: no such file"),
        (("--each", "src/*.py", "--jsonl", "-"), 2, "exclude each other"),
        (("--each", "src/*.py", "src/b.py"), 2, "Quote the pattern"),
    ],
)
def test_what_cannot_be_is_refused_with_a_way_out_and_nothing_is_submitted(
    ctl: Ctl, workshop: FakeWorkshop, arguments: tuple[str, ...], code: int, said: str
) -> None:
    ran = ctl("submit", "Write its docs.", *arguments)
    assert ran.code == code, ran.err
    assert said in ran.err
    assert workshop.heard(Submit) == []


def test_a_prompt_is_needed(ctl: Ctl) -> None:
    ran = ctl("submit", "--each", "src/*.py")
    assert (ran.code, "Give one prompt" in ran.err) == (2, True)


def test_existing_outputs_are_replaced_by_force(ctl: Ctl, workshop: FakeWorkshop) -> None:
    assert ctl("submit", "Rewrite it.", "--each", "src/*.py", "-o", "{path}", "--force").code == 0
    assert all(spec.out_digest for spec in submitted(workshop))


def test_secrets_among_the_files_are_refused(ctl: Ctl, workshop: FakeWorkshop, tree: Path) -> None:
    (tree / "src" / "b.py").write_text(
        "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA\n-----END RSA PRIVATE KEY-----\n"
    )
    ran = ctl("submit", "Write its docs.", "--each", "src/*.py")
    assert ran.code == 2
    assert "\nsrc/b.py: looks like a secret" in ran.err
    assert workshop.heard(Submit) == []


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("src/*.py", ["src/a.py", "src/b.py"]),
        ("./src/*.py", ["src/a.py", "src/b.py"]),
        ("src/[ab].py", ["src/a.py", "src/b.py"]),
        ("src/?.py", ["src/a.py", "src/b.py"]),
        ("src/deep/**", ["src/deep/b.py", "src/deep/c.py"]),
        ("**/**/c.py", ["src/deep/c.py"]),
        ("**/b.py", ["src/b.py", "src/deep/b.py"]),
        ("src/.y.py", ["src/.y.py"]),
        ("src/.*/*.py", ["src/.hidden/x.py"]),
        ("*/*/c.py", ["src/deep/c.py"]),
        ("src//a.py", ["src/a.py"]),
    ],
)
def test_patterns_match_as_a_shell_does(tree: Path, pattern: str, found: list[str]) -> None:
    assert find_items(pattern, tree) == found


def test_symbolic_links_are_neither_followed_nor_taken(tree: Path) -> None:
    (tree / "src" / "loop").symlink_to(tree / "src", target_is_directory=True)
    (tree / "src" / "z.py").symlink_to(tree / "src" / "a.py")
    assert find_items("**/[az].py", tree) == ["src/a.py"]


def test_more_files_than_one_submission_takes_are_refused(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit_each, "BATCH_TASKS", 3)
    assert len(find_items("src/*", tree)) == 3
    with pytest.raises(KoubouError, match="more than 3 files match"):
        find_items(EACH, tree)
