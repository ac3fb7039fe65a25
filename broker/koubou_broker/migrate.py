"""Bringing a database to this release's tables: a copy first, all or nothing, never backwards."""

import logging
import os
import sqlite3
from contextlib import closing
from pathlib import Path

from koubou_broker.batches import FailureKind
from koubou_broker.database import kind_of, open_writer
from koubou_broker.schema import HEAD_REVISION
from koubou_broker.soundness import damaged, look_into, refuse_foreign
from koubou_common import durable
from koubou_common.errors import ConfigError

WITNESS = "epoch"  # the file beside a database that has been used

log = logging.getLogger("koubou_broker")


def prepare(path: Path) -> bool:
    """Create or upgrade the database; whether anything was done. The caller holds the broker's lock."""
    refuse_foreign(path)
    found = _revision(path)
    if found == HEAD_REVISION:
        return False
    if found is None:
        _refuse_vanished(path, path.with_name(WITNESS))
        _create_private(path)
    else:
        if found > HEAD_REVISION:
            raise ConfigError(
                f"{path} was written by a newer Koubou (tables {found}, this release knows {HEAD_REVISION})",
                "install that release again, or restore the copy it made before it upgraded",
            )
        _copy(path, path.with_name(f"{path.stem}-before-{HEAD_REVISION}{path.suffix}"))
    _upgrade(path)
    return True


def _revision(path: Path) -> str | None:
    """The migration a database stands at; None if there is nothing yet; ConfigError if it is none of ours."""
    if not path.exists() or path.stat().st_size == 0:
        return None
    try:
        with closing(look_into(path)) as connection:
            names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
            if not names:
                return None  # a first start that was killed before its first commit
            if "alembic_version" not in names:
                raise ConfigError(f"{path} is a database, but not one of Koubou's", "move it away, or set another home")
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
            return str(row[0]) if row else None
    except sqlite3.DatabaseError as error:
        if kind_of(error, path.parent) is FailureKind.FULL:
            raise
        raise damaged(path, [str(error)]) from error


def _refuse_vanished(path: Path, witness: Path) -> None:
    """An empty database where there was one must not be begun anew: everybody's tasks would be gone without a word."""
    if not witness.exists():
        return
    what = "is empty" if path.exists() else "is missing"
    raise ConfigError(
        f"the database {path} {what}, but this home had one: {witness} notes how far it had come",
        f"restore a backup: koubou-broker restore FILE; only to begin anew without any task: remove {witness}",
    )


def _create_private(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # prompts live in it


def _copy(path: Path, copy: Path) -> None:
    """The database as it is, for the way back; an earlier try's copy is as good and is kept."""
    if copy.exists():
        return
    partial = copy.with_name(f".{copy.name}.partial")
    partial.unlink(missing_ok=True)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("VACUUM INTO ?", (str(partial),))
    partial.chmod(0o600)
    durable.replace(partial, copy)
    log.info("copied the database before its upgrade to %s", copy)


def _upgrade(path: Path) -> None:
    from alembic import command  # noqa: PLC0415 - 150 ms that only a due migration needs
    from alembic.config import Config  # noqa: PLC0415 - as above

    config = Config()
    config.set_main_option("script_location", str(_scripts()).replace("%", "%%"))
    engine = open_writer(path)
    try:
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, HEAD_REVISION)
    finally:
        engine.dispose()
    log.info("the database is at revision %s", HEAD_REVISION)


def _scripts() -> Path:
    return Path(__file__).parent / "migrations"
