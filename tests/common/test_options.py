"""Model options: what Ollama would accept and then go wrong with is refused first."""

import math

import pytest

from koubou_common.options import check_options

GOOD = {
    "num_predict": 1,
    "temperature": 0,
    "seed": -1,
    "top_k": 40,
    "top_p": 0.9,
    "min_p": 0.0,
    "typical_p": 1,
    "repeat_last_n": -1,
    "repeat_penalty": 1.1,
    "presence_penalty": -0.5,
    "frequency_penalty": 0.5,
    "num_keep": 4,
    "stop": ["END", "\n\n"],
}
RELOADING = {
    "num_ctx": 256,
    "num_batch": 512,
    "num_gpu": -1,
    "main_gpu": 0,
    "num_thread": 8,
    "use_mmap": True,
}


def test_every_known_option_is_accepted_where_it_belongs() -> None:
    assert check_options(GOOD, from_task=True) == []
    assert check_options({**GOOD, **RELOADING}, from_task=False) == []


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("num_predict", 0, "at least 1"),
        ("num_predict", -1, "at least 1"),
        ("num_predict", 2**31, "at most"),
        ("num_predict", "512", "whole number"),
        ("num_predict", 4096.5, "whole number"),
        ("num_predict", True, "whole number"),
        ("num_predict", None, "whole number"),
        ("num_ctx", 255, "at least 256"),
        ("num_ctx", 0, "at least 256"),
        ("num_ctx", -5, "at least 256"),
        ("num_ctx", "8192", "whole number"),
        ("temperature", "hot", "a number"),
        ("temperature", math.nan, "finite"),
        ("temperature", math.inf, "finite"),
        ("temperature", -0.1, "between 0 and 5"),
        ("temperature", False, "a number"),
        ("temperature", 10**400, "between 0 and 5"),
        ("top_p", 1.5, "between 0 and 1"),
        ("use_mmap", "yes", "true or false"),
        ("stop", "END", "list of texts"),
        ("stop", [1], "list of texts"),
        ("stop", [""], "1 to 256"),
        ("stop", ["x"] * 17, "at most 16"),
    ],
)
def test_a_wrong_value_is_named_with_what_it_must_be(name: str, value: object, said: str) -> None:
    [fault] = check_options({name: value}, from_task=False)
    assert fault.startswith(name)
    assert said in fault
    assert len(fault) < 200


def test_a_task_that_sets_the_window_is_told_of_min_context() -> None:
    [fault] = check_options({"num_ctx": 8192}, from_task=True)
    assert "--min-context" in fault


@pytest.mark.parametrize("name", sorted(set(RELOADING) - {"num_ctx"}))
def test_a_task_may_not_set_what_reloads_the_model(name: str) -> None:
    [fault] = check_options({name: RELOADING[name]}, from_task=True)
    assert "reload" in fault


@pytest.mark.parametrize(
    ("typo", "meant"),
    [("temprature", "temperature"), ("num-predict", "num_predict"), ("Seed", "seed"), ("topk", "top_k")],
)
def test_a_mistyped_name_gets_the_one_that_was_meant(typo: str, meant: str) -> None:
    assert check_options({typo: 1}, from_task=True) == [f"{typo} is not a model option; did you mean {meant}?"]


def test_a_name_like_no_other_gets_the_list_without_what_a_task_may_not_set() -> None:
    [fault] = check_options({"xyzzy": 1}, from_task=True)
    assert "temperature" in fault
    assert "num_ctx" not in fault


@pytest.mark.parametrize("name", ["think", "keep_alive", "format", "system", "truncate", "shift"])
def test_a_field_of_the_request_is_no_option_and_says_where_it_belongs(name: str) -> None:
    [fault] = check_options({name: True}, from_task=True)
    assert fault.startswith(f"{name} is not a model option: ")


def test_all_faults_are_told_at_once_in_order() -> None:
    faults = check_options({"top_p": 2, "num_predict": 0, "nope": 1}, from_task=True)
    assert [fault.split()[0] for fault in faults] == ["top_p", "num_predict", "nope"]
