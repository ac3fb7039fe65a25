"""Folders and names that survive a loss of power (tests/powercut looks at the calls themselves)."""

from pathlib import Path

import pytest

from koubou_common import durable


def test_a_folder_and_those_above_it_are_made_for_their_owner_alone(tmp_path: Path) -> None:
    durable.make_folder(tmp_path / "a" / "b")
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("a", "a/b")] == [0o700, 0o700]
    durable.make_folder(tmp_path / "a" / "b")


def test_a_file_where_a_folder_should_be_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(FileExistsError):
        durable.make_folder(tmp_path / "a")
    with pytest.raises(OSError, match="a"):
        durable.make_folder(tmp_path / "a" / "b")
