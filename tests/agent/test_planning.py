"""The plan of a call: whose options count, which window, and which limit of several."""

from dataclasses import replace

import pytest

from koubou_agent.call_plan import CallPlan, request_options
from koubou_agent.planning import (
    TOTAL_MEASURED,
    TOTAL_OF_TASK,
    TOTAL_OF_WORKER,
    ModelFacts,
    plan_call,
    plan_warm_up,
)
from koubou_common.messages import Dispatch
from koubou_common.messages.values import Option, WorkerConfig, WorkerLimits
from support.agent_play import a_dispatch

LIMITS = WorkerLimits(first_token_s=300.0, total_s=3600.0)
WORKER = WorkerConfig("lan_001", "tiny", ("*",), slots=2, options=(Option("seed", 7), Option("num_ctx", 4096)))
FACTS = ModelFacts("qwen2", context_length=131_072)


def planned(dispatch: Dispatch | None = None, facts: ModelFacts = FACTS) -> CallPlan:
    return plan_call(WORKER, dispatch or a_dispatch(1), facts, LIMITS, None)


def test_the_window_is_no_larger_than_the_model_was_trained_for() -> None:
    assert planned(facts=replace(FACTS, context_length=2048)).num_ctx == 2048
    assert planned(facts=replace(FACTS, context_length=131_072)).num_ctx == 4096
    assert planned(facts=replace(FACTS, context_length=0)).num_ctx == 4096


def test_the_models_options_lie_over_the_workers_and_under_the_tasks() -> None:
    plan = planned(
        replace(
            a_dispatch(1),
            model_options=(Option("seed", 8), Option("top_k", 20), Option("top_p", 0.5)),
            options=(Option("top_k", 30),),
        )
    )
    assert plan.options == {"seed": 8, "top_k": 30, "top_p": 0.5}


def test_the_window_is_the_models_and_never_the_tasks() -> None:
    asks = replace(a_dispatch(1), options=(Option("num_ctx", 999),))
    assert planned(asks).num_ctx == 4096
    assert planned(replace(asks, model_options=(Option("num_ctx", 16_384),))).num_ctx == 16_384


def test_the_models_answer_length_is_asked_for() -> None:
    assert planned(replace(a_dispatch(1), model_options=(Option("num_predict", 99),))).num_predict == 99


def test_warming_up_loads_the_window_that_the_tasks_will_ask_for() -> None:
    """Another window would have the model loaded twice."""
    worker = replace(WORKER, default_model_options=(Option("num_ctx", 16_384), Option("num_gpu", 1)))
    warm = plan_warm_up(worker, FACTS, LIMITS)
    task = plan_call(worker, replace(a_dispatch(1), model_options=worker.default_model_options), FACTS, LIMITS, None)
    assert warm.num_ctx == task.num_ctx == 16_384
    assert request_options(warm, 1) == request_options(task, 1)


@pytest.mark.parametrize(
    ("timeout_s", "measured_s", "expected"),
    [
        (None, None, (3600.0, TOTAL_OF_WORKER)),
        (None, 700.0, (700.0, TOTAL_MEASURED)),
        (None, 5000.0, (3600.0, TOTAL_OF_WORKER)),  # never above what workers.yaml allows
        (60.0, None, (60.0, TOTAL_OF_TASK)),
        (60.0, 700.0, (60.0, TOTAL_OF_TASK)),
        (1800.0, 700.0, (1800.0, TOTAL_OF_TASK)),  # a person's word beats a measurement
        (5000.0, 700.0, (3600.0, TOTAL_OF_WORKER)),
        (None, 0.0, (3600.0, TOTAL_OF_WORKER)),  # nothing measured
    ],
)
def test_the_whole_time_is_the_tasks_then_what_was_measured_and_never_above_the_workers(
    timeout_s: float | None, measured_s: float | None, expected: tuple[float, str]
) -> None:
    limits = planned(replace(a_dispatch(1), timeout_s=timeout_s, total_s=measured_s)).limits
    assert (limits.total_s, limits.total_of) == expected


def test_what_the_broker_measured_for_the_first_token_reaches_the_call() -> None:
    assert planned().first_token_s is None
    assert planned(replace(a_dispatch(1), first_token_s=450.0)).first_token_s == 450.0


@pytest.mark.parametrize(("told", "believed"), [(3.5, 3.5), (0.0, None), (0.2, None), (40.0, None)])
def test_a_ratio_of_bytes_to_tokens_is_believed_if_text_can_have_it(told: float, believed: float | None) -> None:
    assert planned(replace(a_dispatch(1), bytes_per_token=told)).bytes_per_token == believed
