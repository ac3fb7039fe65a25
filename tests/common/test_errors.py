"""Every way to fail that people may read about is one that the code can end in."""

import re

import pytest

from koubou_common.errors import Category, ErrorClass, category_of
from support.house import package_folders

PRODUCERS = ("koubou_agent", "koubou_broker")
READ_ONLY = ErrorClass.OTHER  # what the codec makes of a newer release's word


def named() -> set[str]:
    folders = package_folders()
    files = [file for name in PRODUCERS for file in folders[name].rglob("*.py")]
    return {found for file in files for found in re.findall(r"ErrorClass\.([A-Z_]+)\b", file.read_text("utf-8"))}


@pytest.mark.parametrize("error_class", [one for one in ErrorClass if one is not READ_ONLY])
def test_every_class_is_given_by_agent_or_broker(error_class: ErrorClass) -> None:
    assert error_class.name in named()


def test_what_the_design_puts_into_a_category_is_there() -> None:
    expected = {
        Category.INFRA: "agent_lost agent_restarted drain",
        Category.TRANSIENT: "ollama_error ollama_unreachable cli_failed stalled stuck timeout ollama_busy",
        Category.WORKER: "model_missing model_unloadable context_overflow",
        Category.PERMANENT: "bad_request empty_output cut_output degenerate output_too_large",
    }
    for category, words in expected.items():
        for word in words.split():
            assert category_of(ErrorClass(word)) is category, word
