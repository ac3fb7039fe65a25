"""What an error of the database means, on real files: full, at a limit, damaged, or broken for good."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from koubou_broker.batches import FailureKind
from koubou_broker.database import TRIAL_BYTES, is_damage, kind_of, open_writer, takes_no_more
from support.disks import a_small_disk, files_at_most, remount

LIMIT_BYTES = 2 * 1024 * 1024


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Engine]:
    engine = open_writer(tmp_path / "koubou.db")
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE t (bytes BLOB)")
    yield engine
    engine.dispose()


def fill(writer: Engine) -> Exception:
    """Write until it fails; why."""
    for _ in range(2_000):
        try:
            with writer.begin() as connection:
                connection.exec_driver_sql("INSERT INTO t VALUES (randomblob(3000))")
        except Exception as error:
            return error
    raise AssertionError("the disk took it all")


def an_error(code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("injected")
    error.sqlite_errorcode = code
    return error


def test_a_limit_that_sqlite_calls_an_io_error_is_a_full_disk(writer: Engine, tmp_path: Path) -> None:
    with files_at_most(LIMIT_BYTES):
        error = fill(writer)
        assert "disk I/O error" in str(error)
        assert kind_of(error, tmp_path) is FailureKind.FULL
        assert kind_of(error) is FailureKind.FATAL
    assert kind_of(error, tmp_path) is FailureKind.FATAL, "the disk takes it: then the error was the disk's own"
    with writer.begin() as connection:
        connection.exec_driver_sql("INSERT INTO t VALUES (randomblob(3000))")


def test_a_failed_fsync_is_fatal_also_on_a_full_disk(tmp_path: Path) -> None:
    with files_at_most(0):
        assert takes_no_more(tmp_path)
        assert kind_of(an_error(sqlite3.SQLITE_IOERR_FSYNC), tmp_path) is FailureKind.FATAL
        assert kind_of(an_error(sqlite3.SQLITE_IOERR_READ), tmp_path) is FailureKind.FATAL
        assert kind_of(an_error(sqlite3.SQLITE_IOERR_WRITE), tmp_path) is FailureKind.FULL
    assert not takes_no_more(tmp_path)
    assert kind_of(an_error(sqlite3.SQLITE_IOERR_WRITE), tmp_path) is FailureKind.FATAL


def test_a_disk_that_is_full_to_the_last_byte_is_full(tmp_path: Path) -> None:
    with a_small_disk(tmp_path / "small", 1 << 20):
        engine = open_writer(tmp_path / "small" / "koubou.db")
        with engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE t (bytes BLOB)")
        assert kind_of(fill(engine), tmp_path / "small") is FailureKind.FULL
        assert takes_no_more(tmp_path / "small")
        engine.dispose()


def test_a_read_only_disk_takes_no_more(tmp_path: Path) -> None:
    with a_small_disk(tmp_path / "small", 2 * TRIAL_BYTES):
        assert not takes_no_more(tmp_path / "small")
        remount(tmp_path / "small", "ro")
        assert takes_no_more(tmp_path / "small")
        assert kind_of(an_error(sqlite3.SQLITE_CANTOPEN), tmp_path / "small") is FailureKind.FULL


def test_the_try_leaves_nothing_behind(tmp_path: Path) -> None:
    takes_no_more(tmp_path)
    with files_at_most(0):
        takes_no_more(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_damage_is_told_from_other_trouble() -> None:
    assert is_damage(an_error(sqlite3.SQLITE_CORRUPT))
    assert is_damage(an_error(sqlite3.SQLITE_NOTADB))
    assert not is_damage(an_error(sqlite3.SQLITE_IOERR_READ))
    assert not is_damage(OSError(5, "I/O error"))


def test_an_error_of_the_file_system_is_full_or_fatal() -> None:
    assert kind_of(OSError(28, "no space")) is FailureKind.FULL
    assert kind_of(OSError(122, "quota")) is FailureKind.FULL
    assert kind_of(OSError(5, "I/O error")) is FailureKind.FATAL
