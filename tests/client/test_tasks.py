"""From what a person asks to the messages of a submission."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from koubou_client.inputs import InputLimits, body_of
from koubou_client.tasks import TaskDraft, draft_task, new_idempotency_key, parts_of, read_priority
from koubou_common.codec import encode
from koubou_common.errors import Code, KoubouError
from koubou_common.messages import Submit
from koubou_common.messages.limits import BATCH_TASKS, INLINE_BYTES, MESSAGE_BYTES, PART_TASKS, TASK_FILES
from koubou_common.messages.values import File, Option, TaskSpec


def parts(drafts: list[TaskDraft]) -> list[tuple[Submit, dict[bytes, bytes]]]:
    request_ids = [f"r{number}" for number in range(len(drafts))]
    return parts_of(drafts, request_ids, "key", as_batch=True, dry_run=False)


def test_defaults_are_those_of_the_contract(tmp_path: Path) -> None:
    draft = draft_task("hello", root=tmp_path)
    assert draft.spec == TaskSpec(body_of(b"hello"), repo=tmp_path.name)
    assert draft.bodies == {body_of(b"hello").sha256: b"hello"}


def test_the_output_is_the_target_unless_another_is_named(tmp_path: Path) -> None:
    assert draft_task("x", root=tmp_path, out_path="a.md").spec.target == "a.md"
    spec = draft_task("x", root=tmp_path, out_path="a.md", target="b.md").spec
    assert (spec.target, spec.out_path) == ("b.md", "a.md")


@pytest.mark.parametrize(("word", "number"), [("low", 2), ("normal", 5), ("HIGH", 8), (1, 1), ("10", 10), (" 7 ", 7)])
def test_priorities_are_numbers_or_words(word: str | int, number: int) -> None:
    assert read_priority(word) == number


@pytest.mark.parametrize("word", [0, 11, -1, "", "urgent", "５", "1.5", True])
def test_other_priorities_are_refused(word: str | int) -> None:
    with pytest.raises(KoubouError, match="1 to 10"):
        read_priority(word)


def test_prompt_and_files_together_have_a_limit(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 60)
    with pytest.raises(KoubouError, match="110 bytes, at most 100") as caught:
        draft_task("y" * 50, files=["a"], root=tmp_path, limits=InputLimits(task_bytes=100))
    assert caught.value.code is Code.TOO_LARGE


def test_all_faults_of_the_options_are_told_at_once() -> None:
    with pytest.raises(KoubouError, match=r"num_predict must be at least 1.*temperature must be") as caught:
        draft_task("x", options={"num_predict": 0, "temperature": "hot"})
    assert caught.value.code is Code.BAD_INPUT


def test_the_window_is_refused_with_what_to_say_instead() -> None:
    with pytest.raises(KoubouError, match="num_ctx") as caught:
        draft_task("x", options={"num_ctx": 8192})
    assert "--min-context" in caught.value.hint


@pytest.mark.parametrize(
    "task",
    [
        {"custom_id": "x" * 256},
        {"model": "x" * 256},
        {"task_type": "x" * 65},
        {"labels": {"gpu": "x" * 256}},
        {"timeout_s": 1e12},
        {"max_attempts": 21},
        {"min_context": -1},
        {"custom_id": "\ud800"},
        {"target": "../x"},
        {"out_path": "/x"},
    ],
)
def test_what_the_broker_could_not_read_is_refused_here(task: dict[str, object]) -> None:
    with pytest.raises(KoubouError) as caught:
        draft_task("x", **task)  # type: ignore[arg-type] # whatever a caller may write
    assert caught.value.code is Code.BAD_INPUT


def test_small_bodies_travel_inside_the_message() -> None:
    (message, pulled), *rest = parts([draft_task("a"), draft_task("b")])
    assert rest == []
    assert pulled == {}
    assert [spec.prompt.inline for spec in message.tasks] == [b"a", b"b"]
    assert (message.part, message.parts, message.as_batch) == (0, 1, True)


def test_the_same_body_travels_once(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"shared")
    drafts = [draft_task(f"task {number}", files=["a"], root=tmp_path) for number in range(3)]
    message, pulled = parts(drafts)[0]
    assert [spec.files[0].body.inline for spec in message.tasks] == [b"shared", None, None]
    assert pulled == {}


def test_large_bodies_are_left_to_be_pulled() -> None:
    big = "x" * (INLINE_BYTES + 1)
    message, pulled = parts([draft_task(big), draft_task("small")])[0]
    assert [spec.prompt.inline for spec in message.tasks] == [None, b"small"]
    assert pulled == {body_of(big.encode()).sha256: big.encode()}


def test_a_submission_is_cut_into_messages_in_order() -> None:
    drafts = [draft_task(f"task {number}") for number in range(PART_TASKS * 2 + 1)]
    messages = [message for message, _ in parts(drafts)]
    assert [len(message.tasks) for message in messages] == [PART_TASKS, PART_TASKS, 1]
    assert [(message.part, message.parts) for message in messages] == [(0, 3), (1, 3), (2, 3)]
    assert {message.idempotency_key for message in messages} == {"key"}
    sent = [spec.prompt.sha256 for message in messages for spec in message.tasks]
    assert sent == [draft.spec.prompt.sha256 for draft in drafts]


def test_too_many_tasks_are_refused() -> None:
    with pytest.raises(KoubouError, match="at most 10000"):
        parts([draft_task("x")] * (BATCH_TASKS + 1))


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, TASK_FILES), st.integers(0, 255), st.integers(0, 255), st.integers(1, INLINE_BYTES // 2)
        ),
        min_size=1,
        max_size=40,
    )
)
def test_every_message_fits_the_wire(shapes: list[tuple[int, int, int, int]]) -> None:
    messages = parts([_draft(index, *shape) for index, shape in enumerate(shapes)])
    assert [spec.prompt for message, _ in messages for spec in message.tasks] != []
    for message, pulled in messages:
        assert len(encode(message)) <= MESSAGE_BYTES
        bodies = [body for spec in message.tasks for body in (spec.prompt, *(file.body for file in spec.files))]
        inline = {body.sha256 for body in bodies if body.inline is not None}
        assert {body.sha256 for body in bodies} == inline | pulled.keys()


def test_keys_are_never_the_same() -> None:
    assert new_idempotency_key() != new_idempotency_key()


def _draft(index: int, files: int, name_chars: int, text_chars: int, prompt_bytes: int) -> TaskDraft:
    """A draft as wide as the limits allow: long names in letters of four bytes, options, labels."""
    prompt = f"{index}".encode().ljust(prompt_bytes, b"x")
    text = "\U00020000" * text_chars
    named = tuple(File("n" * name_chars + str(number), body_of(b"f")) for number in range(files))
    options = (Option("stop", (text, text)), Option("temperature", 0.5))
    spec = TaskSpec(body_of(prompt), named, text, text, text, options=options, custom_id=text, out_path=text)
    return TaskDraft(spec, {body_of(prompt).sha256: prompt, body_of(b"f").sha256: b"f"})
