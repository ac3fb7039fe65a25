"""Windows, options and versions by worker and model."""

import pytest

from koubou_broker.core_settings import WorkerSettings
from koubou_broker.routing.models_seen import DEFAULT_NUM_CTX, ModelsSeen
from koubou_common.messages.values import ModelSeen, Option

OPTIONS = (Option("num_ctx", 4_096), Option("seed", 1))


def a_worker(**model_options: int) -> ModelsSeen:
    return ModelsSeen(
        WorkerSettings(
            "w1",
            options=OPTIONS,
            model_options=tuple((name, (Option("num_ctx", size),)) for name, size in model_options.items()),
        )
    )


@pytest.mark.parametrize(
    ("model", "num_ctx"),
    [("big", 16_384), ("BIG:latest", 16_384), ("library/big", 16_384), ("other", 4_096), ("", 4_096)],
)
def test_a_models_own_window_beats_the_general_one(model: str, num_ctx: int) -> None:
    assert a_worker(Big=16_384).num_ctx(model) == num_ctx


def test_where_no_window_is_set_the_agents_default_counts() -> None:
    assert ModelsSeen(WorkerSettings("w1")).num_ctx("m") == DEFAULT_NUM_CTX


def test_a_window_never_exceeds_what_the_model_was_trained_for() -> None:
    models = a_worker(big=16_384)
    assert models.reported([ModelSeen("big", context_length=8_192), ModelSeen("small", context_length=2_048)])
    assert [models.num_ctx(name) for name in ("big", "small", "other")] == [8_192, 2_048, 4_096]


def test_a_training_beyond_the_window_and_an_unknown_one_change_nothing() -> None:
    models = a_worker()
    assert not models.reported([ModelSeen("m", context_length=131_072), ModelSeen("n", context_length=0)])
    assert [models.num_ctx("m"), models.num_ctx("n")] == [4_096, 4_096]


def test_an_agent_that_knows_no_options_by_model_gives_the_general_window() -> None:
    models = a_worker(big=16_384)
    assert models.takes_options(told=False), "a window became another one"
    assert (models.num_ctx("big"), models.options("big")) == (4_096, ())
    assert not models.takes_options(told=False)
    assert models.takes_options(told=True)
    assert models.options("big") == (Option("num_ctx", 16_384),)


def test_who_has_no_options_by_model_never_changes_with_its_agent() -> None:
    assert not a_worker().takes_options(told=False)


def test_a_version_is_known_under_every_spelling_until_it_is_gone() -> None:
    models = a_worker()
    models.reported([ModelSeen("Qwen3:8B", digest="abc"), ModelSeen("old:1b")])
    assert (models.digest("qwen3:8b"), models.digest("old:1b"), models.digest("")) == ("abc", "", "")
    models.reported([])
    assert models.digest("qwen3:8b") == ""
