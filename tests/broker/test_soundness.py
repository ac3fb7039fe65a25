"""Damage is found before a broker goes on with it; a clean end leaves nothing to look for."""

import logging
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from koubou_broker import migrate, soundness
from koubou_broker.soundness import faults_of, file_system_of, look_into, note_surroundings, refuse_foreign, trusted
from koubou_common.errors import Code, ConfigError, KoubouError
from support.disks import files_at_most
from support.store_play import a_store, a_submitted_task


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


def test_a_start_that_the_disk_had_no_room_for_is_no_crash(database: Path, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no room"), trusted(database, tmp_path / "in_use"):
        raise OSError(28, "no room")
    assert not (tmp_path / "in_use").exists()


def test_all_of_a_whole_database_is_looked_at_and_nothing_found(database: Path) -> None:
    assert faults_of(database) == []
    assert faults_of(database, most_s=10.0) == []


def test_a_text_that_the_disk_changed_is_found_although_every_page_is_well_formed(tmp_path: Path) -> None:
    path = tmp_path / "koubou.db"
    with a_store(path) as play:
        play.write(a_submitted_task(1, prompt=b"translate this" * 1_000))
    path.write_bytes(path.read_bytes().replace(b"translate this", b"translate thas", 1))
    assert faults_of(path, most_s=10.0) == []
    (fault,) = faults_of(path)
    assert "of 14000 bytes is spoilt" in fault


def test_a_database_that_is_looked_into_keeps_its_log(database: Path) -> None:
    writer = sqlite3.connect(database, isolation_level=None)
    writer.execute("PRAGMA wal_autocheckpoint = 0")
    writer.execute("INSERT INTO audit VALUES (5000, 1, 'a', 'b', 'c', 'd')")
    log = database.with_name(f"{database.name}-wal")
    before, logged = database.read_bytes(), log.read_bytes()
    copy = database.with_name("copy.db")
    copy.write_bytes(before)
    copy.with_name("copy.db-wal").write_bytes(logged)
    writer.close()
    with closing(look_into(copy)) as connection:
        assert connection.execute("SELECT count(*) FROM audit").fetchone() == (1_000,)
    assert copy.read_bytes() == before
    assert copy.with_name("copy.db-wal").read_bytes() == logged


def test_a_full_disk_is_not_taken_for_a_damaged_database(database: Path) -> None:
    writer = sqlite3.connect(database, isolation_level=None)
    writer.execute("INSERT INTO audit VALUES (5000, 1, 'a', 'b', 'c', 'd')")
    copy = database.with_name("copy.db")
    for name in ("", "-wal"):
        copy.with_name(copy.name + name).write_bytes(database.with_name(database.name + name).read_bytes())
    writer.close()
    with files_at_most(0), pytest.raises(sqlite3.Error):
        faults_of(copy)  # the log's index cannot be made
    assert faults_of(copy) == []


@pytest.mark.parametrize("left", ["nothing", "an empty file"])
def test_a_database_that_vanished_is_not_begun_anew(tmp_path: Path, left: str) -> None:
    path, witness = tmp_path / "koubou.db", tmp_path / "epoch"
    migrate.prepare(path)
    witness.write_text("{}")
    path.unlink()
    if left == "an empty file":
        path.touch()
    with pytest.raises(ConfigError, match="this home had one") as caught:
        migrate.prepare(path)
    assert "koubou-broker restore" in caught.value.hint
    assert str(witness) in caught.value.hint
    assert not path.exists() or path.stat().st_size == 0
    witness.unlink()
    assert migrate.prepare(path)


@contextmanager
def as_another_account() -> Iterator[None]:
    """Root may read everything: with root's rights a test borrows those of nobody."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65_534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_database_of_another_account_is_refused_with_whose_it_is() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "koubou.db"
        migrate.prepare(path)
        Path(folder).chmod(0o777)
        path.chmod(0o000)
        with as_another_account(), pytest.raises(ConfigError, match="cannot be read and written by this account") as no:
            refuse_foreign(path)
        assert f"user {path.stat().st_uid}" in no.value.message
        assert "chown" in no.value.hint or "chmod" in no.value.hint
        path.chmod(0o600)
        refuse_foreign(path)
