"""Whether this box's disk takes an attempt: asked of real disks, full, limited and read-only."""

from pathlib import Path

from koubou_agent.room import LEAST_BYTES, issue_of
from support.disks import a_small_disk, files_at_most, remount


def test_a_disk_with_room_has_no_issue_and_keeps_no_trace(tmp_path: Path) -> None:
    assert issue_of((tmp_path / "spool", tmp_path / "work")) == ""
    assert list((tmp_path / "spool").iterdir()) == []


def test_a_disk_that_takes_nothing_is_named_with_the_folder(tmp_path: Path) -> None:
    with files_at_most(0):
        issue = issue_of((tmp_path / "spool",))
    assert issue.startswith("this box cannot keep results: its disk takes nothing: File too large")
    assert str(tmp_path / "spool") in issue
    assert list((tmp_path / "spool").iterdir()) == []


def test_a_disk_that_is_nearly_full_is_named_with_the_numbers(tmp_path: Path) -> None:
    with a_small_disk(tmp_path / "small", LEAST_BYTES // 2):
        issue = issue_of((tmp_path, tmp_path / "small"))
    assert "16 MiB are free and 32 MiB needed" in issue


def test_a_disk_that_became_read_only_is_named(tmp_path: Path) -> None:
    with a_small_disk(tmp_path / "small", 2 * LEAST_BYTES):
        assert issue_of((tmp_path / "small",)) == ""
        remount(tmp_path / "small", "ro")
        assert "Read-only file system" in issue_of((tmp_path / "small",))
