"""docs/configuration.md: its tables are the models'."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from koubou_common.settings import AgentSettings, BrokerSettings, WorkersFile
from koubou_common.settings.reference import BEGIN, END, tables, updated

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def models_of(annotation: Any) -> Iterator[type[BaseModel]]:
    """Every model that a type mentions, at any depth."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        for field in annotation.model_fields.values():
            yield from models_of(field.annotation)
    for part in get_args(annotation):
        yield from models_of(part)


def test_the_page_is_up_to_date() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert updated(text) == text, "python -m koubou_common.settings.reference docs/configuration.md"


@pytest.mark.parametrize("model", [BrokerSettings, WorkersFile, AgentSettings])
def test_every_setting_has_its_row(model: type[BaseModel]) -> None:
    rows = [line.split(" | ") for line in tables().splitlines() if line.startswith("| `")]
    told = {(row[0].removeprefix("| `").rstrip("`").rpartition(".")[2], row[2].removesuffix(" |")) for row in rows}
    for found in models_of(model):
        for name, field in found.model_fields.items():
            if not any(True for _ in models_of(field.annotation)):
                assert (name, field.description) in told, f"{found.__name__}.{name}"


def test_what_stands_around_the_tables_is_kept() -> None:
    page = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    assert updated(page).startswith(f"before\n{BEGIN}\n\n## broker.yaml")
    assert updated(page).endswith(f"{END}\nafter\n")
    assert updated(updated(page)) == updated(page)
    with pytest.raises(ValueError, match="lacks the lines"):
        updated("nothing")
