"""The spool on a real disk: whole or not at all, and nothing damaged is trusted."""

import os
import stat
from pathlib import Path

import pytest

from koubou_agent.spool import Spool
from support.agent_play import a_failure, a_success, uid


def the_file(folder: Path, number: int) -> Path:
    return folder / f"{uid(number)}.outcome"


def test_an_outcome_and_its_text_come_back_after_a_restart(tmp_path: Path) -> None:
    Spool(tmp_path).write(a_success(1, b"\x00raw text\n"), b"\x00raw text\n")
    spool = Spool(tmp_path)
    assert spool.load() == [a_success(1, b"\x00raw text\n")]
    assert spool.raw_of(uid(1)) == b"\x00raw text\n"


def test_failures_are_kept_too_and_the_oldest_comes_first(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.write(a_failure(2), b"")
    spool.write(a_success(1), b"hello")
    os.utime(the_file(tmp_path, 2), ns=(1, 1))
    assert Spool(tmp_path).load() == [a_failure(2), a_success(1)]


def test_what_was_deleted_stays_away(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.write(a_success(1), b"hello")
    spool.delete(uid(1))
    spool.delete(uid(1))
    assert spool.load() == []
    assert spool.raw_of(uid(1)) is None


def test_a_half_written_file_is_not_an_outcome(tmp_path: Path) -> None:
    (tmp_path / f"{uid(1)}.outcome.partial").write_bytes(b"koubou-outc")
    assert Spool(tmp_path).load() == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("cut", [0, 5, 40, 100, -1])
def test_a_cut_file_is_set_aside_with_a_log_line(tmp_path: Path, cut: int, caplog: pytest.LogCaptureFixture) -> None:
    spool = Spool(tmp_path)
    spool.write(a_success(1), b"hello")
    path = the_file(tmp_path, 1)
    path.write_bytes(path.read_bytes()[:cut])
    assert spool.load() == []
    assert [item.name for item in tmp_path.iterdir()] == [f"{path.name}.damaged"]
    assert path.name in caplog.text


@pytest.mark.parametrize("at", [0, 20, 60, -40, -1])
def test_one_flipped_bit_is_noticed(tmp_path: Path, at: int) -> None:
    spool = Spool(tmp_path)
    spool.write(a_success(1), b"hello")
    path = the_file(tmp_path, 1)
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)
    assert spool.raw_of(uid(1)) is None
    assert spool.load() == []
    assert path.with_name(path.name + ".damaged").exists()


def test_a_file_under_another_name_is_set_aside(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.write(a_success(1), b"hello")
    the_file(tmp_path, 1).rename(the_file(tmp_path, 2))
    assert spool.load() == []


def test_foreign_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert Spool(tmp_path).load() == []
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_an_outcome_that_the_disk_refuses_is_held_in_memory_until_it_fits(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    blocker = tmp_path / f"{uid(1)}.outcome.partial"
    blocker.mkdir()  # opening it for writing fails, as a full disk would
    (blocker / "x").touch()
    with pytest.raises(OSError):  # noqa: PT011 - which one depends on the platform
        spool.write(a_success(1), b"hello")
    assert spool.raw_of(uid(1)) == b"hello"
    assert not the_file(tmp_path, 1).exists()
    (blocker / "x").unlink()
    blocker.rmdir()
    spool.write(a_success(1), b"hello")
    assert Spool(tmp_path).raw_of(uid(1)) == b"hello"


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "a" * 31, "A" * 32, "." * 32])
def test_a_uid_that_is_no_uid_never_becomes_a_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="not an attempt's uid"):
        Spool(tmp_path).raw_of(name)


@pytest.mark.skipif(os.name != "posix", reason="modes mean nothing elsewhere")
def test_folder_and_files_are_for_their_owner_only(tmp_path: Path) -> None:
    Spool(tmp_path / "spool").write(a_success(1), b"hello")
    assert (tmp_path / "spool").stat().st_mode & 0o777 == 0o700
    assert the_file(tmp_path / "spool", 1).stat().st_mode & 0o777 == 0o600


def test_an_outcome_is_there_after_a_loss_of_power(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    fsync, rename = os.fsync, Path.replace

    def synced(handle: int) -> None:
        fsync(handle)
        steps.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")

    def renamed(source: Path, target: Path) -> Path:
        steps.append("rename")
        return rename(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    Spool(tmp_path).write(a_success(1), b"hello")
    assert steps == ["file", "rename", "folder"]
