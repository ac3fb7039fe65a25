"""koubou-broker restore: what is fit is put in place whole, what is not changes nothing, and nothing is thrown away."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from koubou_broker import migrate
from koubou_broker.lock import RESTORED_MARK
from koubou_broker.restoration import restore
from koubou_broker.schema import HEAD_REVISION
from koubou_common.errors import Code, KoubouError
from support.broker_process import BrokerProcess
from support.store_play import a_store, a_submitted_task


def a_database(path: Path, *task_ids: int) -> Path:
    """A database of these queued tasks, closed."""
    with a_store(path) as play:
        for task_id in task_ids:
            play.write(a_submitted_task(task_id))
    return path


def a_backup(path: Path, *task_ids: int) -> Path:
    """What `koubou-ctl backup` would have written."""
    source = a_database(path.with_name("source.db"), *task_ids)
    with closing(sqlite3.connect(source)) as database:
        database.execute("VACUUM INTO ?", (str(path),))
    for left in path.parent.glob("source.db*"):
        left.unlink()
    return path


def tasks_in(path: Path) -> list[int]:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        return [row[0] for row in database.execute("SELECT task_id FROM tasks ORDER BY 1")]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_backup_takes_the_place_of_the_database_which_is_kept(tmp_path: Path) -> None:
    backup = a_backup(tmp_path / "backup", 1, 2)
    (tmp_path / "state").mkdir()
    database = a_database(tmp_path / "state" / "koubou.db", 1, 2, 3)
    restored = restore(backup, database)
    assert (restored.tasks, restored.live, restored.revision) == (2, 2, HEAD_REVISION)
    assert restored.kept is not None
    assert restored.kept.name.startswith("koubou.db.before-restore-2")
    assert names(database.parent) == ["koubou.db", restored.kept.name]
    assert (tasks_in(database), tasks_in(restored.kept)) == ([1, 2], [1, 2, 3])
    assert database.stat().st_mode & 0o777 == 0o600
    assert tasks_in(backup) == [1, 2]


def test_it_is_marked_so_that_the_next_start_notices(tmp_path: Path) -> None:
    database = tmp_path / "koubou.db"
    restore(a_backup(tmp_path / "backup", 1), database)
    with closing(sqlite3.connect(database)) as opened:
        assert opened.execute("SELECT value FROM meta WHERE key = ?", (RESTORED_MARK,)).fetchone() == (1,)


def test_what_the_old_databases_log_holds_is_kept_with_it(tmp_path: Path) -> None:
    backup = a_backup(tmp_path / "backup", 1)
    alive = tmp_path / "alive"
    alive.mkdir()
    state = tmp_path / "state"
    with a_store(alive / "koubou.db") as play:
        play.write(a_submitted_task(7))
        assert (alive / "koubou.db-wal").stat().st_size
        shutil.copytree(alive, state)  # as a kill -9 leaves it
    restored = restore(backup, state / "koubou.db")
    assert restored.kept is not None
    assert tasks_in(restored.kept) == [7]
    assert tasks_in(state / "koubou.db") == [1], "the old log must not be taken for the new database's"


def test_a_log_that_somebody_reads_is_set_aside_with_its_database(tmp_path: Path) -> None:
    backup = a_backup(tmp_path / "backup", 1)
    alive, state = tmp_path / "alive", tmp_path / "state"
    alive.mkdir()
    with a_store(alive / "koubou.db") as play:
        play.write(a_submitted_task(7))
        shutil.copytree(alive, state)
    with closing(sqlite3.connect(state / "koubou.db", isolation_level=None)) as shell:
        shell.execute("BEGIN")
        shell.execute("SELECT count(*) FROM tasks").fetchone()
        restored = restore(backup, state / "koubou.db")
        assert tasks_in(state / "koubou.db") == [1], "the old log must not be taken for the new database's"
    assert restored.kept is not None
    assert tasks_in(restored.kept) == [7]


def test_a_damaged_database_with_its_log_is_kept_byte_for_byte(tmp_path: Path) -> None:
    backup = a_backup(tmp_path / "backup", 1)
    state = tmp_path / "state"
    state.mkdir()
    (state / "koubou.db").write_bytes(b"no database any more" * 1_000)
    (state / "koubou.db-wal").write_bytes(b"a log")
    restored = restore(backup, state / "koubou.db")
    assert restored.kept is not None
    assert restored.kept.read_bytes() == b"no database any more" * 1_000
    assert Path(f"{restored.kept}-wal").read_bytes() == b"a log"
    assert tasks_in(state / "koubou.db") == [1]


def test_a_plain_copy_of_a_database_in_use_is_taken_with_its_log(tmp_path: Path) -> None:
    alive, copied = tmp_path / "alive", tmp_path / "copied"
    alive.mkdir()
    with a_store(alive / "koubou.db") as play:
        play.write(a_submitted_task(7))
        shutil.copytree(alive, copied)
    restored = restore(copied / "koubou.db", tmp_path / "koubou.db")
    assert (restored.tasks, tasks_in(tmp_path / "koubou.db")) == (1, [7])


def test_an_older_release_is_taken_and_migrated_by_the_next_start(tmp_path: Path) -> None:
    backup = a_backup(tmp_path / "backup", 1)
    _set_revision(backup, "0000")
    assert restore(backup, tmp_path / "koubou.db").revision == "0000"


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        ("missing", "is no file"),
        ("folder", "is no file"),
        ("text", "cannot be used"),
        ("foreign", "not a database of Koubou's"),
        ("newer", "newer Koubou"),
        ("cut", "cannot be used"),
        ("page", "cannot be used"),
        ("index", "cannot be used"),
        ("empty", "not a database of Koubou's"),
    ],
)
def test_what_is_not_fit_changes_nothing(tmp_path: Path, spoil: str, says: str) -> None:
    (tmp_path / "state").mkdir()
    database = a_database(tmp_path / "state" / "koubou.db", 5)
    before = {path.name: path.read_bytes() for path in database.parent.iterdir()}
    backup = a_backup(tmp_path / "backup", *range(1, 40))
    _spoil(backup, spoil)
    with pytest.raises(KoubouError, match=says) as refused:
        restore(backup, database)
    assert refused.value.hint
    assert refused.value.code is Code.BAD_CONFIGURATION
    assert {path.name: path.read_bytes() for path in database.parent.iterdir()} == before


def test_a_broker_that_runs_is_not_pulled_the_rug_from_under(tmp_path: Path) -> None:
    backup = a_backup(tmp_path / "backup", 1)
    with BrokerProcess(tmp_path / "home") as broker:
        code, _, err = broker.run("restore", str(backup))
        assert (code, "already runs" in err, "stop it first" in err) == (8, True, True)
        broker.kill()
        code, out, err = broker.run("restore", str(backup))
        assert code == 0, err
        assert "1 tasks, 1 of them still to be done" in out
        assert "kept" in out
        assert "koubou-ctl parked" in out
        assert "keys  " not in out


def test_an_empty_home_gets_the_database_and_is_told_of_its_missing_keys(tmp_path: Path) -> None:
    backup = a_backup(tmp_path / "backup", 1)
    broker = BrokerProcess(tmp_path / "home")
    code, out, err = broker.run("restore", str(backup))
    broker.context.destroy(linger=0)
    assert code == 0, err
    assert "nothing: there was no database" in out
    assert "put the old ones there" in out
    assert tasks_in(tmp_path / "home" / "state" / "koubou.db") == [1]
    assert migrate.prepare(tmp_path / "home" / "state" / "koubou.db") is False


def _set_revision(path: Path, revision: str) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("UPDATE alembic_version SET version_num = ?", (revision,))
        database.commit()


def _spoil(backup: Path, how: str) -> None:
    data = backup.read_bytes()
    match how:
        case "missing":
            backup.unlink()
        case "folder":
            backup.unlink()
            backup.mkdir()
        case "text":
            backup.write_text("a letter to somebody" * 500)
        case "empty":
            backup.write_bytes(b"")
        case "newer":
            _set_revision(backup, "9999")
        case "cut":
            backup.write_bytes(data[: len(data) // 2])
        case "page":
            middle = len(data) // 4096 // 2 * 4096
            backup.write_bytes(data[:middle] + b"\xff" * 4096 + data[middle + 4096 :])
        case "index":  # what no count of tasks would stumble over
            with closing(sqlite3.connect(backup)) as database:
                [(page,)] = database.execute("SELECT rootpage FROM sqlite_master WHERE name = 'ix_events_task_id'")
            at = (page - 1) * 4096
            backup.write_bytes(data[:at] + b"\xff" * 4096 + data[at + 4096 :])
        case _:
            backup.unlink()
            with closing(sqlite3.connect(backup)) as database:
                database.execute("CREATE TABLE notes (text)")
                database.commit()
