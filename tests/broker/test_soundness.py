"""Damage is found before a broker goes on with it; a clean end leaves nothing to look for."""

import logging
import sqlite3
from pathlib import Path

import pytest

from koubou_broker import migrate, soundness
from koubou_broker.soundness import file_system_of, note_surroundings, trusted
from koubou_common.errors import Code, KoubouError


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """Koubou's tables with some hundred pages of events."""
    path = tmp_path / "koubou.db"
    migrate.prepare(path)
    connection = sqlite3.connect(path)
    with connection:
        connection.executemany(
            "INSERT INTO audit VALUES (?, 1, 'a', 'b', 'c', ?)", [(n, "x" * 900) for n in range(999)]
        )
    connection.close()
    return path


def damage(path: Path) -> None:
    """Overwrite pages in the middle, as a dying disk does."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\xff" * 8_192)


def crash(database: Path, marker: Path) -> None:
    with pytest.raises(ZeroDivisionError), trusted(database, marker):
        raise ZeroDivisionError


def test_after_a_clean_end_nothing_is_looked_at(database: Path, tmp_path: Path) -> None:
    marker = tmp_path / "in_use"
    with trusted(database, marker):
        assert marker.exists()
    assert not marker.exists()
    damage(database)
    with trusted(database, marker):
        pass


def test_after_a_crash_damage_is_found_and_told_again_at_every_start(database: Path, tmp_path: Path) -> None:
    marker = tmp_path / "in_use"
    crash(database, marker)
    damage(database)
    for _ in range(2):
        with pytest.raises(KoubouError, match="is damaged") as caught, trusted(database, marker):
            raise AssertionError("a damaged database was trusted")
        assert "backup" in caught.value.hint


def test_an_address_in_use_is_no_crash(database: Path, tmp_path: Path) -> None:
    with pytest.raises(KoubouError), trusted(database, tmp_path / "in_use"):
        raise KoubouError(Code.BAD_CONFIGURATION, "cannot listen")
    assert not (tmp_path / "in_use").exists()


def test_after_a_crash_that_did_no_harm_the_broker_goes_on(database: Path, tmp_path: Path) -> None:
    marker = tmp_path / "in_use"
    crash(database, marker)
    with trusted(database, marker):
        pass
    assert not marker.exists()


def test_a_look_that_takes_too_long_holds_up_no_start(
    database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    marker = tmp_path / "in_use"
    crash(database, marker)
    monkeypatch.setattr(soundness, "CHECK_MOST_S", -1.0)
    monkeypatch.setattr(soundness, "_PROGRESS_STEPS", 10)
    with caplog.at_level(logging.WARNING), trusted(database, marker):
        pass
    assert "was not looked at" in caplog.text


def test_a_network_file_system_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path.resolve()
    share = root / "a share"
    share.mkdir()
    mounts = root / "mounts"
    escaped = str(share).replace(" ", "\\040")
    mounts.write_text(f"/dev/sda1 / ext4 rw 0 0\nnas:/x {escaped} nfs4 rw 0 0\nbroken\n")
    assert file_system_of(share / "koubou.db", mounts) == "nfs4"
    assert file_system_of(root / "koubou.db", mounts) == "ext4"
    assert file_system_of(root, root / "nothing") == ""
    monkeypatch.setattr(soundness, "_MOUNTS", mounts)
    with caplog.at_level(logging.WARNING, "koubou_broker"):
        note_surroundings(root / "koubou.db")
        assert caplog.text == ""
        note_surroundings(share / "koubou.db")
    assert "network file system (nfs4)" in caplog.text
