"""The log of the database: bounded while nobody reads for long, shrinking afterwards, and never failing unheard."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import cast

import pytest
from sqlalchemy import Connection, create_engine

from koubou_broker import checkpoints, database
from koubou_broker.batches import Durable, FailureKind, Probed
from koubou_broker.checkpoints import Checkpoints
from support.disks import a_small_disk, files_at_most
from support.store_play import StorePlay, a_store, a_submitted_task
from support.waiting import eventually

MIB = 1024 * 1024
PROMPT = b"p" * 200_000


def log_bytes(play: StorePlay) -> int:
    return play.path.with_name(f"{play.path.name}-wal").stat().st_size


def write(play: StorePlay, first: int, count: int) -> None:
    for number in range(first, first + count):
        play.write(a_submitted_task(number, prompt=PROMPT + str(number).encode()))


def test_the_log_stays_small_however_much_is_written(tmp_path: Path) -> None:
    with a_store(tmp_path / "koubou.db") as play:
        write(play, 1, 100)
        assert play.path.stat().st_size > 16 * MIB
        assert log_bytes(play) < 8 * MIB


def test_a_long_reader_makes_the_log_grow_and_it_shrinks_when_that_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "WAL_KEPT_BYTES", 2 * MIB)
    with a_store(tmp_path / "koubou.db") as play:
        write(play, 1, 5)
        with closing(sqlite3.connect(f"file:{play.path}?mode=ro", uri=True, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM tasks").fetchall()
            write(play, 6, 60)
            assert log_bytes(play) > 10 * MIB, "its snapshot needs what the log holds"
        write(play, 66, 60)
        assert log_bytes(play) <= 8 * MIB


def test_a_checkpoint_without_room_harms_nothing_and_is_made_up_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "AGAIN_S", 0.0)
    with a_store(tmp_path / "koubou.db") as play:
        write(play, 1, 3)
        with files_at_most(play.path.stat().st_size + MIB):
            failed = []
            for number in range(4, 60):
                play.put(a_submitted_task(number, prompt=PROMPT + str(number).encode()))
                outcome = eventually(play.store.take)
                failed = [one for one in outcome if getattr(one, "kind", None) is FailureKind.FULL]
                if failed:
                    break
            assert failed, "the log met the limit"
            assert play.store.is_alive()
        play.term = 1
        write(play, 100, 30)
        assert play.rows("PRAGMA integrity_check") == [("ok",)]


class FaultyConnection:
    """A labelled fault: a store's connection whose checkpoints fail with `code`."""

    def __init__(self, folder: Path, code: int) -> None:
        self.connection = self.driver_connection = self
        self.engine = create_engine(f"sqlite:///{folder}/koubou.db")
        self._code = code

    def execute(self, statement: str) -> None:
        error = sqlite3.OperationalError(f"injected: {statement}")
        error.sqlite_errorcode = self._code
        raise error


def test_a_broken_disk_under_a_checkpoint_is_not_taken_for_a_full_one(tmp_path: Path) -> None:
    full = cast("Connection", FaultyConnection(tmp_path, sqlite3.SQLITE_FULL))
    assert not Checkpoints().run(full)
    for code in (sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_CORRUPT):
        broken = cast("Connection", FaultyConnection(tmp_path, code))
        with pytest.raises(sqlite3.OperationalError, match="wal_checkpoint"):
            Checkpoints().run(broken)


def test_a_broken_disk_under_a_checkpoint_ends_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Checkpoints, connection: Connection) -> bool:
        del self, connection
        return real(Checkpoints(), cast("Connection", FaultyConnection(tmp_path, sqlite3.SQLITE_IOERR_FSYNC)))

    real = Checkpoints.run
    with a_store(tmp_path / "koubou.db") as play:
        monkeypatch.setattr(Checkpoints, "run", fail)
        play.put(a_submitted_task(1, prompt=b"p" * 5 * MIB))
        eventually(lambda: any(getattr(one, "kind", None) is FailureKind.FATAL for one in play.heard()))
        eventually(lambda: not play.store.is_alive())
        assert play.heard()[0] == Durable(1, 0), "what was committed before was, and was told"


def test_what_can_be_written_is_found_out_by_writing(tmp_path: Path) -> None:
    with a_store(tmp_path / "koubou.db") as play:

        def probed() -> Probed:
            play.store.probe()
            return eventually(lambda: [one for one in play.store.take() if isinstance(one, Probed)])[0]

        with files_at_most(2 * MIB):
            assert probed() == Probed(can_write=True, fits_task=False)
        with files_at_most(0):
            assert probed() == Probed(can_write=False, fits_task=False)
        assert probed() == Probed(can_write=True, fits_task=True)
        assert play.rows("SELECT name FROM sqlite_master WHERE name = 'room_probe'") == []


def test_on_a_disk_without_a_free_byte_the_log_itself_is_room_for_results(tmp_path: Path) -> None:
    with a_small_disk(tmp_path / "small", 32 * MIB), a_store(tmp_path / "small" / "koubou.db") as play:
        write(play, 1, 30)
        play.store.probe()
        eventually(lambda: [one for one in play.store.take() if isinstance(one, Probed)])
        filler = tmp_path / "small" / "filler"
        with filler.open("wb", buffering=0) as file:
            while True:
                try:
                    file.write(bytes(4096))
                except OSError:
                    break
        play.write(a_submitted_task(500, prompt=b"small"))
        assert play.rows("SELECT count(*) FROM tasks WHERE task_id = 500") == [(1,)]
