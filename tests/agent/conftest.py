"""What tests of the agent share: environments with gemini-repo-cli, runners of it, and what it asks."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from koubou_agent.runner import Runner
from support.cli import CLI_KINDS, REAL_CLI_VARIABLE, TinyOllama, stand_in_python, tiny_ollama
from support.cli_runs import running


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the stand-in; no test changes it."""
    return stand_in_python(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module", params=CLI_KINDS)
def python(request: pytest.FixtureRequest, stand_in: Path) -> Path:
    """The stand-in's and, where one is named, the real program's."""
    return Path(os.environ[REAL_CLI_VARIABLE]) if request.param == "real" else stand_in


@pytest.fixture(scope="module", params=["warm", "plain"])
def runner(request: pytest.FixtureRequest, python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    """Either way of starting; no test ends it."""
    with running(python, tmp_path_factory.mktemp("work"), warm=request.param == "warm") as started:
        yield started


@pytest.fixture(scope="module")
def warm_runner(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    """For what does not depend on the way of starting: fifteen milliseconds a run."""
    with running(python, tmp_path_factory.mktemp("warm")) as started:
        yield started


@pytest.fixture
def ollama() -> Iterator[TinyOllama]:
    with tiny_ollama() as started:
        yield started


@pytest.fixture
def never() -> threading.Event:
    """A cancel that does not come."""
    return threading.Event()
