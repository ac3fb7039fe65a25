"""One environment of gemini-repo-cli for all process tests: the real one where it is named, else the stand-in."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.site import Site
from support.cli import REAL_CLI_VARIABLE, stand_in_python


@pytest.fixture(scope="session")
def cli_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    real = os.environ.get(REAL_CLI_VARIABLE)
    return Path(real) if real else stand_in_python(tmp_path_factory.mktemp("cli"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, cli_python: Path) -> Iterator[Site]:
    """A home without a broker yet: the module's own fixture opens it."""
    with Site(tmp_path_factory.mktemp("site"), cli_python) as site:
        yield site
