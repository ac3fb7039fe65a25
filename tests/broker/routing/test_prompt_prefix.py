"""What tasks of a batch share of their prompts."""

from dataclasses import replace

from koubou_broker.records import BodyRef, NewTask
from koubou_broker.routing.prompt_prefix import prefix_of
from koubou_common.messages.values import File
from support.core_play import a_body, a_new_task


def a_task(*names: str, shared: int, prompt: str = "Translate.", model: str = "m:latest") -> NewTask:
    """A task with these files, each of 100 bytes, of which the first `shared` are others' too."""
    files = tuple(File(name, a_body(name, 100)) for name in names)
    body = a_body(prompt)
    ref = BodyRef(body.sha256, body.size_bytes)
    return replace(a_new_task(model=model), prompt=ref, files=files, prefix_files=shared)


def test_tasks_that_begin_alike_have_one_prefix() -> None:
    one, other = a_task("all.md", "a.py", shared=1), a_task("all.md", "b.py", shared=1)
    assert prefix_of(one) == prefix_of(other)
    assert prefix_of(one)[1] == 100 + len("Translate.")


def test_another_prompt_model_order_or_name_is_another_prefix() -> None:
    one = a_task("all.md", "more.md", shared=2)
    others = [
        a_task("all.md", "more.md", shared=2, prompt="Review."),
        a_task("all.md", "more.md", shared=2, model="n:latest"),
        a_task("more.md", "all.md", shared=2),
        a_task("all.md", shared=1),
        replace(one, files=(File("else.md", one.files[0].body), one.files[1])),
        replace(one, files=(replace(one.files[0], body=a_body("changed", 100)), one.files[1])),
    ]
    keys = {prefix_of(task)[0] for task in [one, *others]}
    assert len(keys) == 7


def test_what_is_not_said_to_be_shared_has_none() -> None:
    assert prefix_of(a_task("a.py", shared=0)) == ("", 0)
