"""The database's tables: made by migrations alone, never half made, never taken backwards."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from koubou_broker import migrate, migrations
from koubou_broker.database import open_writer
from koubou_broker.lookups import read_snapshot
from koubou_broker.schema import HEAD_REVISION, metadata
from koubou_common.codec import pack
from koubou_common.errors import ConfigError, KoubouError


def query(path: Path, sql: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as database:
        return database.execute(sql).fetchall()


def test_migrations_lead_to_exactly_the_tables_of_the_schema(tmp_path: Path) -> None:
    path = tmp_path / "koubou.db"
    assert migrate.prepare(path) is True
    assert migrate.prepare(path) is False
    engine = open_writer(path)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, metadata) == []
    engine.dispose()


def test_the_head_of_the_schema_is_the_last_migration() -> None:
    folder = Path(migrations.__file__).parent
    assert ScriptDirectory(str(folder)).get_current_head() == HEAD_REVISION


def test_tables_keep_the_columns_and_indexes_of_the_requirements(tmp_path: Path) -> None:
    path = tmp_path / "koubou.db"
    migrate.prepare(path)
    workers = {name for _, name, *_ in query(path, "PRAGMA table_info(workers)")}
    assert workers >= {"location", "performance_factor", "endpoint_url", "network_latency_ms", "last_health_check"}
    metrics = {str(name): (bool(not_null), is_key) for _, name, _, not_null, _, is_key in query(path, _COLUMNS)}
    required = {name for name, (not_null, _) in metrics.items() if not_null}
    assert required >= {"worker_id", "task_id", "execution_time_ms", "success"}
    assert metrics.keys() >= {"tokens_processed", "prompt_length", "output_length", "error_type", "measured_at"}
    assert metrics["metric_id"][1] == 1
    indexes = {name for _, name, *_ in query(path, "PRAGMA index_list(worker_metrics)")}
    assert {"idx_worker_metrics_worker_id", "idx_worker_metrics_measured_at"} <= indexes
    path_of_foreign_keys = {(table, column) for _, _, table, column, *_ in query(path, _FOREIGN_KEYS)}
    assert path_of_foreign_keys == {("tasks", "task_id"), ("workers", "worker_id")}


def test_a_database_of_a_newer_release_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "koubou.db"
    migrate.prepare(path)
    with closing(sqlite3.connect(path)) as database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
        database.commit()
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="newer Koubou"):
        migrate.prepare(path)
    assert path.read_bytes() == before


def test_a_foreign_or_damaged_file_is_refused(tmp_path: Path) -> None:
    foreign, damaged = tmp_path / "foreign.db", tmp_path / "damaged.db"
    with closing(sqlite3.connect(foreign)) as database:
        database.execute("CREATE TABLE cats (name TEXT)")
        database.commit()
    damaged.write_bytes(b"no database at all " * 100)
    with pytest.raises(ConfigError, match="not one of Koubou"):
        migrate.prepare(foreign)
    with pytest.raises(KoubouError, match="is damaged"):
        migrate.prepare(damaged)


def test_an_older_database_is_copied_before_it_is_upgraded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next release is made up here, beside the real migrations."""
    path = tmp_path / "koubou.db"
    migrate.prepare(path)
    query(path, "SELECT 1")
    use_made_up_release(tmp_path, monkeypatch, "op.add_column('meta', sa.Column('note', sa.Text()))")
    assert migrate.prepare(path) is True
    assert [name for _, name, *_ in query(path, "PRAGMA table_info(meta)")] == ["key", "value", "note"]
    copy = tmp_path / "koubou-before-9999.db"
    assert query(copy, "SELECT version_num FROM alembic_version") == [(HEAD_REVISION,)]
    assert copy.stat().st_mode & 0o077 == 0


def test_a_task_of_the_first_release_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "koubou.db"
    with monkeypatch.context() as patch:
        patch.setattr(migrate, "HEAD_REVISION", "0001")
        migrate.prepare(path)
    columns = [(str(name), str(kind)) for _, name, kind, *_ in query(path, "PRAGMA table_info(tasks)")]
    assert "queue_timeout_s" not in dict(columns)
    nothing = pack(())
    values = {"TEXT": "", "FLOAT": None, "BLOB": nothing, "INTEGER": 0, "BOOLEAN": 0}
    row = {name: values[kind] for name, kind in columns}
    row |= {"task_id": 7, "state": "queued", "prompt_sha256": bytes(32), "prompt_bytes": 5, "submitted_ms": 1}
    row |= {"error_class": None, "result_sha256": None, "metrics": None, "generation": 1, "max_attempts": 5}
    with closing(sqlite3.connect(path)) as database:
        places = ", ".join(f":{name}" for name in row)
        database.execute(f"INSERT INTO tasks ({', '.join(row)}) VALUES ({places})", row)
        database.commit()
    assert migrate.prepare(path) is True
    engine = open_writer(path)
    with engine.begin() as connection:
        stored = read_snapshot(connection).tasks[0]
    engine.dispose()
    assert (stored.task.task_id, stored.task.queue_timeout_s, stored.progress.error_cause) == (7, None, None)


def test_a_migration_that_fails_half_way_leaves_the_database_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "koubou.db"
    migrate.prepare(path)
    use_made_up_release(tmp_path, monkeypatch, "op.drop_table('audit'); raise RuntimeError('power cut')")
    with pytest.raises(RuntimeError, match="power cut"):
        migrate.prepare(path)
    assert query(path, "SELECT version_num FROM alembic_version") == [(HEAD_REVISION,)]
    assert query(path, "SELECT count(*) FROM audit") == [(0,)]
    use_made_up_release(tmp_path, monkeypatch, "op.drop_table('audit')")
    assert migrate.prepare(path) is True


def test_a_first_start_killed_before_its_first_commit_begins_again(tmp_path: Path) -> None:
    path = tmp_path / "koubou.db"
    path.touch()
    assert migrate.prepare(path) is True


def use_made_up_release(root: Path, monkeypatch: pytest.MonkeyPatch, upgrade: str) -> None:
    """A release with one more migration, in a folder of its own."""
    real = Path(migrations.__file__).parent
    folder = root / "scripts"
    (folder / "versions").mkdir(parents=True, exist_ok=True)
    (folder / "env.py").write_text((real / "env.py").read_text())
    for script in (real / "versions").glob("0*.py"):
        (folder / "versions" / script.name).write_text(script.read_text())
    (folder / "versions" / "9999_made_up.py").write_text(
        f"import sqlalchemy as sa\nfrom alembic import op\nrevision = '9999'\ndown_revision = '{HEAD_REVISION}'\n"
        f"def upgrade():\n    {upgrade}\n"
    )
    monkeypatch.setattr(migrate, "HEAD_REVISION", "9999")
    monkeypatch.setattr(migrate, "_scripts", lambda: folder)


_COLUMNS = "PRAGMA table_info(worker_metrics)"
_FOREIGN_KEYS = "PRAGMA foreign_key_list(worker_metrics)"
