"""What fits which worker: windows by worker and model, doubts, capabilities, versions."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from koubou_broker.core_settings import WorkerSettings
from koubou_broker.records import BodyRef, NewTask
from koubou_broker.routing.fitting import ANSWER_TOKENS_LEAST, Fitting, model_bytes_of
from koubou_broker.routing.workers import LiveWorker
from koubou_common.messages.values import ModelSeen, Option
from koubou_common.reasons import Reason
from support.core_play import MODEL, a_new_task, a_worker


def fitting_of(*settings: WorkerSettings) -> tuple[Fitting, dict[str, LiveWorker]]:
    workers = {one.worker_id: LiveWorker(one) for one in settings}
    return Fitting(workers), workers


def with_window(worker_id: str, num_ctx: int, **windows: int) -> WorkerSettings:
    """A worker with all models; windows of single ones by name."""
    options = tuple((name, (Option("num_ctx", size),)) for name, size in windows.items())
    return replace(a_worker(worker_id, models=("*",), num_ctx=num_ctx), model_options=options)


def a_task_of(tokens: float, bytes_per_token: float, **wishes: str) -> NewTask:
    """A task whose text, frame included, is so long."""
    spec = replace(a_new_task(), **wishes)  # type: ignore[arg-type] # names are checked by replace itself
    frame = model_bytes_of(replace(spec, prompt=BodyRef(bytes(32), 0)))
    return replace(spec, prompt=BodyRef(bytes(32), round(tokens * bytes_per_token) - frame))


def reason(fitting: Fitting, spec: NewTask, worker: LiveWorker) -> Reason | None:
    misfit = fitting.misfit(spec, (), worker)
    return misfit.reason if misfit is not None else None


def test_a_window_belongs_to_worker_and_model() -> None:
    fitting, workers = fitting_of(with_window("w1", 4_096, big=65_536), with_window("w2", 8_192))
    assert fitting.unfit(a_new_task(min_context=30_000), ()) == {"w1", "w2"}
    assert fitting.unfit(a_new_task(min_context=30_000, model="big:latest"), ()) == {"w2"}
    assert reason(fitting, a_new_task(min_context=30_000, model="big:latest"), workers["w1"]) is None


def test_a_prompt_that_surely_cannot_fit_is_measured_by_the_window_of_its_model() -> None:
    fitting, workers = fitting_of(with_window("w1", 4_096, big=65_536))
    long = a_task_of(10_000, 16)
    assert reason(fitting, long, workers["w1"]) is Reason.WINDOW_TOO_SMALL
    assert reason(fitting, replace(long, model="big:latest"), workers["w1"]) is None
    workers["w1"].models.reported([ModelSeen("big", context_length=2_048)])
    fitting.workers_changed()
    assert reason(fitting, replace(long, model="big:latest"), workers["w1"]) is Reason.WINDOW_TOO_SMALL


def test_a_default_model_has_the_window_of_its_own_options() -> None:
    fitting, _ = fitting_of(with_window("w1", 4_096, **{MODEL: 65_536}))
    assert fitting.unfit(a_new_task(min_context=30_000), ()) == frozenset()


def test_a_worker_is_doubtful_between_what_surely_fits_and_what_surely_does_not() -> None:
    fitting, _ = fitting_of(with_window("small", 8_192), with_window("large", 32_768))
    for _ in range(30):  # four bytes a token, always: the least error there is, a tenth
        fitting.observed(MODEL, a_task_of(1_000, 4), 1_000)
    room = 8_192 - ANSWER_TOKENS_LEAST
    for tokens, doubtful, unfit in [
        (room / 1.1 - 10, set(), set()),
        (room / 1.1 + 10, {"small"}, set()),
        (room * 2 - 10, {"small"}, set()),
        (room * 2 + 10, {"small"}, {"small"}),
        (32_512, {"small", "large"}, {"small"}),
    ]:
        spec = a_task_of(tokens, 4)
        assert (set(fitting.doubtful(spec)), set(fitting.unfit(spec, ()))) == (doubtful, unfit), tokens


def test_where_nothing_was_measured_half_as_much_again_is_doubtful() -> None:
    fitting, _ = fitting_of(with_window("w1", 8_192))
    room = 8_192 - ANSWER_TOKENS_LEAST
    assert not fitting.doubtful(a_task_of(room / 1.5 - 10, 3.5))
    assert fitting.doubtful(a_task_of(room / 1.5 + 10, 3.5)) == {"w1"}


def test_each_misfit_has_its_reason_and_its_words() -> None:
    fitting, workers = fitting_of(replace(a_worker("w1"), capabilities=("general", "review")))
    workers["w1"].models.reported([ModelSeen(MODEL, digest="b" * 64)])
    for spec, expected, text in [
        (a_new_task(worker="w2"), Reason.OTHER_WORKER, "worker w2 was asked for"),
        (replace(a_new_task(), capabilities=("vision",)), Reason.CAPABILITY_MISSING, "has no capability vision"),
        (replace(a_new_task(), capabilities=("review",)), None, ""),
        (a_new_task(model="other:7b"), Reason.MODEL_NOT_LISTED, "has no model other:7b"),
        (
            a_new_task(min_context=9_000),
            Reason.WINDOW_TOO_SMALL,
            "its window of 8192 tokens is below --min-context 9000",
        ),
        (
            replace(a_new_task(), digest="a" * 64),
            Reason.DIGEST_DIFFERS,
            "has version bbbbbbbbbbbb of gpt-oss:20b, not aaaaaaaaaaaa that --same-digest chose",
        ),
        (replace(a_new_task(), digest="b" * 64), None, ""),
    ]:
        misfit = fitting.misfit(spec, (), workers["w1"])
        assert (misfit.reason if misfit else None, misfit.text if misfit else "") == (expected, text)
        is_unfit = "w1" in fitting.unfit(spec, ())
        assert is_unfit == (expected is not None and expected is not Reason.DIGEST_DIFFERS), "a version may come back"


def test_who_was_ruled_out_without_trying_is_told_so() -> None:
    fitting, workers = fitting_of(with_window("w1", 8_192), with_window("w2", 4_096), with_window("w3", 16_384))
    excluded = fitting.no_larger(MODEL, 8_192)
    assert excluded == ("w1", "w2")
    tried, not_tried = (fitting.misfit(a_new_task(), excluded, workers[one]) for one in excluded)
    assert tried is not None
    assert tried.text == "failed on this task in a way that would repeat"
    assert not_tried is not None
    assert not_tried.text == f"it, or one with a window no smaller than its 4096 tokens, {tried.text}"


@given(st.lists(st.sampled_from([2_048, 4_096, 4_096, 8_192, 16_384]), min_size=1, max_size=6), st.integers(1, 300_000))
def test_who_is_unfit_agrees_with_the_words(windows: list[int], size: int) -> None:
    fitting, workers = fitting_of(*(with_window(f"w{nth}", one) for nth, one in enumerate(windows)))
    spec = a_new_task(prompt_bytes=size)
    unfit = fitting.unfit(spec, ())
    assert unfit <= fitting.doubtful(spec), "what surely does not fit does not surely fit"
    for worker_id, worker in workers.items():
        assert (fitting.misfit(spec, (), worker) is not None) == (worker_id in unfit)


@pytest.mark.parametrize("model", ["", MODEL, "GPT-OSS:20B"])
def test_a_measured_ratio_counts_under_every_spelling(model: str) -> None:
    fitting, _ = fitting_of(with_window("w1", 8_192))
    fitting.measured("Gpt-OSS:20b", 2.0)
    if model:
        assert fitting.estimate_tokens(model, 1_000) == 500
    assert fitting.unfit(a_task_of(8_192, 4), ()) == {"w1"}
