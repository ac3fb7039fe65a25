"""One broker at a time, epochs that only rise, and a restored database that is noticed."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from koubou_broker import migrate
from koubou_broker.database import open_reader, open_writer
from koubou_broker.effects import Loss
from koubou_broker.lock import (
    RESTORED_JUMP,
    RESTORED_MARK,
    BrokerLock,
    Term,
    Witness,
    begin_term,
    note_progress,
    read_witness,
    write_witness,
)
from koubou_broker.lookups import read_loss, read_numbers
from koubou_common.errors import ConfigError
from support.store_play import EPOCH, a_store, a_submitted_task

NOW_MS = EPOCH + 1_000_000


def begin(root: Path, wall_ms: int = NOW_MS) -> Term:
    path = root / "koubou.db"
    migrate.prepare(path)
    engine = open_writer(path)
    try:
        return begin_term(engine, root / "epoch", wall_ms)
    finally:
        engine.dispose()


def test_a_second_broker_is_refused_and_told_who_runs(tmp_path: Path) -> None:
    with BrokerLock(tmp_path / "state" / "broker.lock"):
        with (
            pytest.raises(ConfigError, match="already runs") as refused,
            BrokerLock(tmp_path / "state" / "broker.lock"),
        ):
            pass
        assert refused.value.hint
    with BrokerLock(tmp_path / "state" / "broker.lock"):
        pass


def test_the_epoch_is_the_time_of_the_start_but_never_falls(tmp_path: Path) -> None:
    assert begin(tmp_path) == Term(NOW_MS, was_restored=False)
    assert begin(tmp_path, NOW_MS - 3_600_000) == Term(NOW_MS + 1, was_restored=False)
    assert begin(tmp_path, NOW_MS + 5_000) == Term(NOW_MS + 5_000, was_restored=False)
    assert read_witness(tmp_path / "epoch") == Witness(NOW_MS + 5_000, 0, 1, 1, 1)


def test_a_backup_of_an_earlier_term_is_noticed_and_numbers_jump(tmp_path: Path) -> None:
    with a_store(tmp_path / "koubou.db") as play:
        play.write(a_submitted_task(5))
    write_witness(tmp_path / "epoch", Witness(EPOCH))
    begin(tmp_path)
    _back_up(tmp_path)
    begin(tmp_path, NOW_MS + 1_000)
    _restore(tmp_path)
    assert begin(tmp_path, NOW_MS + 500) == Term(NOW_MS + 1_001, was_restored=True)
    engine = open_writer(tmp_path / "koubou.db")
    with engine.begin() as connection:
        assert read_numbers(connection)["next_task_id"] == 6 + RESTORED_JUMP
    engine.dispose()
    assert begin(tmp_path, NOW_MS + 2_000).was_restored is False


def test_a_backup_of_the_same_term_is_noticed_by_the_events_that_are_missing(tmp_path: Path) -> None:
    with a_store(tmp_path / "koubou.db") as play:
        play.write(a_submitted_task(1))
    write_witness(tmp_path / "epoch", Witness(EPOCH))
    term = begin(tmp_path)
    _back_up(tmp_path)
    with a_store(tmp_path / "koubou.db") as play:
        play.write(a_submitted_task(2))
    write_witness(tmp_path / "epoch", Witness(term.epoch, 2))
    with closing(sqlite3.connect(tmp_path / "koubou.db")) as database:
        database.execute("UPDATE meta SET value = ? WHERE key = 'epoch'", (term.epoch,))
        database.commit()
    assert begin(tmp_path).was_restored is False
    write_witness(tmp_path / "epoch", Witness(term.epoch, 2))
    _restore(tmp_path)
    assert begin(tmp_path).was_restored is True


def test_a_file_put_in_place_by_restore_is_noticed_without_any_witness(tmp_path: Path) -> None:
    with a_store(tmp_path / "koubou.db") as play:
        play.write(a_submitted_task(5))
    with closing(sqlite3.connect(tmp_path / "koubou.db")) as database:
        database.execute("INSERT INTO meta (key, value) VALUES (?, 1)", (RESTORED_MARK,))
        database.commit()
    assert begin(tmp_path).was_restored is True
    engine = open_reader(tmp_path / "koubou.db")
    with engine.begin() as connection:
        assert read_loss(connection) == Loss(NOW_MS, 6, 6 + RESTORED_JUMP)
    engine.dispose()
    assert begin(tmp_path, NOW_MS + 1).was_restored is False, "once is enough"


def test_the_same_backup_restored_twice_gives_no_number_out_twice(tmp_path: Path) -> None:
    with a_store(tmp_path / "koubou.db") as play:
        play.write(a_submitted_task(5))
    begin(tmp_path)
    _back_up(tmp_path)
    begin(tmp_path, NOW_MS + 1)
    first = _next_numbers_after_restore(tmp_path, NOW_MS + 2)
    note_progress(tmp_path / "epoch", NOW_MS + 2, first["next_event_seq"])
    second = _next_numbers_after_restore(tmp_path, NOW_MS + 3)
    assert all(second[key] >= first[key] + RESTORED_JUMP for key in first)


def test_a_note_of_progress_keeps_what_else_the_witness_knows(tmp_path: Path) -> None:
    write_witness(tmp_path / "epoch", Witness(3, 4, 5, 6, 7))
    note_progress(tmp_path / "epoch", 3, 9)
    assert read_witness(tmp_path / "epoch") == Witness(3, 9, 5, 6, 7)


def test_the_witness_of_an_earlier_release_is_read(tmp_path: Path) -> None:
    (tmp_path / "epoch").write_text('{"epoch": 3, "event_seq": 4, "written": 5}')
    assert read_witness(tmp_path / "epoch") == Witness(3, 4)


def test_a_database_with_a_history_whose_witness_is_gone_counts_as_restored(tmp_path: Path) -> None:
    with a_store(tmp_path / "koubou.db") as play:
        play.write(a_submitted_task(5))
    begin(tmp_path)
    (tmp_path / "epoch").unlink()
    assert begin(tmp_path, NOW_MS + 9) == Term(NOW_MS + 9, was_restored=True)
    assert begin(tmp_path, NOW_MS + 10).was_restored is False


def test_a_damaged_witness_stops_nobody(tmp_path: Path) -> None:
    begin(tmp_path)
    (tmp_path / "epoch").write_text("{")
    assert begin(tmp_path, NOW_MS + 9) == Term(NOW_MS + 9, was_restored=False)


def _next_numbers_after_restore(root: Path, wall_ms: int) -> dict[str, int]:
    _restore(root)
    assert begin(root, wall_ms).was_restored
    engine = open_reader(root / "koubou.db")
    with engine.begin() as connection:
        numbers = read_numbers(connection)
    engine.dispose()
    return numbers


def _back_up(root: Path) -> None:
    with closing(sqlite3.connect(root / "koubou.db")) as database:
        database.execute("VACUUM INTO ?", (str(root / "backup.db"),))


def _restore(root: Path) -> None:
    for leftover in root.glob("koubou.db*"):
        leftover.unlink()
    shutil.copy(root / "backup.db", root / "koubou.db")
