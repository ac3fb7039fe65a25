"""The shim, compiled once; without a compiler what needs it is skipped."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from powercut import journal
from powercut.process import Forge


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if reason := journal.why_not():
        pytest.skip(reason)
    return journal.build(tmp_path_factory.mktemp("shim"))


@pytest.fixture(scope="session")
def forge() -> Iterator[Forge]:
    with Forge() as forge:
        yield forge
