"""What a task asks of its worker: a dispatch to one that has all of it passes, each lack is noticed."""

from dataclasses import replace
from typing import Any

import pytest

from koubou_broker.core import WorkerSettings
from koubou_common.messages import Dispatch
from koubou_common.messages.values import Body, Label, Option
from sim.fit_checks import check_fit
from support.core_play import a_new_task
from support.shelf import Shelf

LAB = Label("room", "lab")
ABLE = WorkerSettings(
    "w0",
    models=("m",),
    capabilities=("general", "vision"),
    labels=(LAB,),
    options=(Option("num_ctx", 4_096),),
    model_options=(("m", (Option("num_ctx", 16_384),)),),
)
WIDE = (Option("num_ctx", 16_384),)
PLAIN = replace(ABLE, worker_id="w1", capabilities=("general",), labels=(), model_options=())


def given(worker: WorkerSettings, model_options: tuple[Option, ...], **wishes: Any) -> None:
    """A task with these wishes is given to the worker."""
    shelf = Shelf()
    task = shelf.tasks[1] = replace(a_new_task(model="m:latest"), **wishes)
    dispatch = Dispatch(
        number=1,
        session=1,
        attempt_uid="0" * 32,
        attempt=1,
        task_id=1,
        prompt=Body(task.prompt.sha256, task.prompt.size_bytes),
        files=(),
        target="",
        repo="",
        task_type="general",
        model="m:latest",
        options=(),
        timeout_s=None,
        strict_output=False,
        bytes_per_token=0.0,
        model_options=model_options,
    )
    check_fit(shelf, (worker,), worker.worker_id, dispatch)


WISHES: dict[str, dict[str, Any]] = {
    "all of": {"capabilities": ("vision",)},
    "Label": {"labels": (LAB,)},
    "a window": {"min_context": 8_192},
}


@pytest.mark.parametrize("lack", WISHES)
def test_who_has_what_a_task_asks_for_may_be_given_it_and_nobody_else(lack: str) -> None:
    given(ABLE, WIDE, **WISHES[lack])
    with pytest.raises(AssertionError, match=lack):
        given(PLAIN, (), **WISHES[lack])


def test_a_task_without_wishes_may_go_to_everybody() -> None:
    given(ABLE, WIDE)
    given(PLAIN, ())


def test_a_worker_must_be_told_the_window_it_has_for_the_model() -> None:
    with pytest.raises(AssertionError, match="is told a window of 4096 tokens"):
        given(ABLE, ())


def test_a_model_that_the_worker_does_not_have_is_noticed() -> None:
    with pytest.raises(AssertionError, match="the model m"):
        given(replace(PLAIN, models=("n",)), ())
