"""One broker at a time, epochs that only rise, and a restored database that is noticed."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from koubou_broker import migrate
from koubou_broker.database import open_writer
from koubou_broker.lock import RESTORED_JUMP, BrokerLock, Term, Witness, begin_term, read_witness, write_witness
from koubou_broker.lookups import read_numbers
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
    assert read_witness(tmp_path / "epoch") == Witness(NOW_MS + 5_000, 0)


def test_a_backup_of_an_earlier_term_is_noticed_and_numbers_jump(tmp_path: Path) -> None:
    with a_store(tmp_path / "koubou.db") as play:
        play.write(a_submitted_task(5))
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


def test_a_damaged_witness_stops_nobody(tmp_path: Path) -> None:
    begin(tmp_path)
    (tmp_path / "epoch").write_text("{")
    assert begin(tmp_path, NOW_MS + 9) == Term(NOW_MS + 9, was_restored=False)


def _back_up(root: Path) -> None:
    with closing(sqlite3.connect(root / "koubou.db")) as database:
        database.execute("VACUUM INTO ?", (str(root / "backup.db"),))


def _restore(root: Path) -> None:
    for leftover in root.glob("koubou.db*"):
        leftover.unlink()
    shutil.copy(root / "backup.db", root / "koubou.db")
