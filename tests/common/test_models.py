"""Names of models: one spelling each, and those that lead out of the private network."""

import pytest

from koubou_common.models import check_model_name, is_cloud_model, normal_model, same_model


@pytest.mark.parametrize(
    ("name", "normal"),
    [
        ("qwen3", "qwen3:latest"),
        ("qwen3:latest", "qwen3:latest"),
        ("qwen3:8b", "qwen3:8b"),
        (" qwen3 ", "qwen3:latest"),
        ("library/qwen3", "qwen3:latest"),
        ("registry.ollama.ai/library/qwen3:8b", "qwen3:8b"),
        ("hf.co/someone/some-GGUF:Q4_K_M", "hf.co/someone/some-gguf:q4_k_m"),
        ("Qwen3:Latest", "qwen3:latest"),
        ("box.lan:5000/team/model", "box.lan:5000/team/model:latest"),
        ("box.lan:5000/team/model:v1", "box.lan:5000/team/model:v1"),
    ],
)
def test_a_name_has_one_normal_spelling(name: str, normal: str) -> None:
    assert normal_model(name) == normal
    assert normal_model(normal) == normal
    assert same_model(name, normal)


def test_another_tag_is_another_model() -> None:
    assert not same_model("qwen3:8b", "qwen3")


@pytest.mark.parametrize(
    "name", ["gpt-oss:120b-cloud", "kimi-k2:cloud", "GPT-OSS:120B-CLOUD", "thing-cloud", "thing-cloud:latest"]
)
def test_a_cloud_name_is_seen(name: str) -> None:
    assert is_cloud_model(name)
    assert "somebody else" in check_model_name(name)


@pytest.mark.parametrize("name", ["gpt-oss:20b", "cloud", "cloudy:7b", "my-cloud-model:7b"])
def test_a_local_name_is_not_taken_for_a_cloud_model(name: str) -> None:
    assert not is_cloud_model(name)
    assert check_model_name(name) == ""


@pytest.mark.parametrize(
    "name", ["", " x", "a b", "-x", "../x", "x:", ":x", "x:y:z", "x//y", "x\n", "日本", "x" * 256, "x;rm"]
)
def test_what_is_no_name_is_refused_in_words(name: str) -> None:
    assert check_model_name(name) != ""
