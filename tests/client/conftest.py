"""What the tests of the client share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from koubou_client.client import Client
from support.ctl import Ctl
from support.fake_workshop import FakeWorkshop, a_workshop


@pytest.fixture
def workshop(tmp_path: Path) -> Iterator[FakeWorkshop]:
    """A broker that does what the test says."""
    with a_workshop(tmp_path / "home") as workshop:
        yield workshop


@pytest.fixture
def client(workshop: FakeWorkshop) -> Iterator[Client]:
    """A client of that broker."""
    with Client(home=workshop.home.root) as client:
        yield client


@pytest.fixture
def ctl(workshop: FakeWorkshop) -> Ctl:
    """koubou-ctl with that broker."""
    return Ctl(workshop.home.root)


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a file, which is the current folder."""
    folder = tmp_path / "repo"
    (folder / "src").mkdir(parents=True)
    (folder / "src" / "a.py").write_text("x = 1\n")
    monkeypatch.chdir(folder)
    return folder
